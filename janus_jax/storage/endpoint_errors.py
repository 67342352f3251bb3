"""What an endpoint refuses, and what it says of it."""

import json
import re
import threading
from collections.abc import Callable, Mapping
from typing import Any

from janus_jax.errors import ConfigError, StorageError, counted, first_line
from janus_jax.storage.endpoint_requests import OWN_OPTIONS, Request, valid

_NOT_TAKEN = re.compile(
    r"support|unknown|unrecogni[sz]ed|unexpected|extra|not (?:allowed|permitted|available|a valid)"
    r"|invalid (?:param|arg|option)",
    re.IGNORECASE,
)
_NO_MODEL = re.compile(r"not (?:a valid|found|exist|available)|(?:no such|unknown|invalid) model", re.IGNORECASE)
_TOO_LONG = re.compile(r"\bcontext\b|too (?:large|long|many)|exceed", re.IGNORECASE)


_SHOWN = 100  # characters of a reply that is no chat completion


class NoCompletionError(StorageError):
    """The endpoint sends something else in place of chat completions, and never sent one."""


class RefusedRequestError(ConfigError):
    """The endpoint refuses a request, and would refuse others, too: it refuses all, or has answered none so far.

    Args:
        about: what is wrong: `key`, `model` (or the path of the URL), or empty if the endpoint does not say.
        parts: as `JanusError`.
    """

    def __init__(self, about: str, *parts: str):
        super().__init__(*parts)
        self.about = about


class RefusedOptionError(ConfigError):
    """The endpoint does not take an option of requests.

    Args:
        option: its name.
        parts: as `JanusError`.
    """

    def __init__(self, option: str, *parts: str):
        super().__init__(*parts)
        self.option = option


class Refusals:
    """What an endpoint refuses or sends in place of chat completions, and whether that is all. Threads share it.

    Args:
        url, model, key_variable: as of `Endpoint`.
        key: the API key, which no text shows; empty: there is none.
        most: conversations that may be refused before any is answered.
        most_other: replies in a row that may be no chat completion before any is one.
        is_answered: whether the endpoint ever answered.
    """

    def __init__(
        self,
        url: str,
        model: str,
        key_variable: str | None,
        key: str,
        *,
        most: int,
        most_other: int,
        is_answered: Callable[[], bool],
    ):
        self._url, self._model, self._key_variable, self._key = url, model, key_variable, key
        self._most, self._most_other, self._is_answered = most, most_other, is_answered
        self._others, self._last, self._is_mixed = 0, "", False  # replies in a row that are no chat completion
        self.has_completion = False
        """Whether a chat completion came, also one without a text."""
        self._refused: list[RefusedRequestError] = []
        self._lock = threading.Lock()

    def take(self, request: Request, error: Any, why: str) -> str:
        """Why this request alone has no answer, where others are answered.

        Args:
            error: of openai.
            why: what it says, as `shown` gives it.

        Raises:
            RefusedRequestError, RefusedOptionError: it is not this request alone.
        """
        self.note(None)
        status, is_answered = error.status_code, self._is_answered()
        if status == 401 or (status == 403 and not is_answered):
            key = f"the key in ${self._key_variable}" if self._key_variable else "a request without a key"
            raise RefusedRequestError("key", self._url, f"does not accept {key} ({why})") from None
        if status in (400, 422) and (option := refused_option(error, request.body)):
            raise RefusedOptionError(option, self._url, f"refuses the option {option!r} ({why})") from None
        is_model = status in (400, 404, 422) and names_model(error, request.body, by_text=not is_answered)
        if is_model or status == 404:
            path = "" if is_model else "the path /chat/completions or "
            what = f"does not have {path}the model {self._model!r} ({why})"
            raise RefusedRequestError("model", self._url, what) from None
        if status not in (400, 403, 413, 422):  # 403: of moderation
            raise RefusedRequestError("", self._url, f"refuses requests ({why})") from None
        what = f"refuses conversation {request.places[0][0] + 1} ({why})"
        with self._lock:
            self._refused.append(RefusedRequestError("", self._url, what))
        if len(self._refused) >= self._most and (first := self.of_all()):
            raise first from None
        return why

    def note(self, other: str | None) -> None:
        """Counts what came of a try.

        Args:
            other: a reply that is no chat completion; None: anything else.

        Raises:
            NoCompletionError: too many came in a row, and there never was an answer.
        """
        with self._lock:
            self._others = 0 if other is None else self._others + 1
            self._is_mixed |= other is None
            self._last = other or ""
            too_many = self._others >= self._most_other
        if too_many and not (self.has_completion or self._is_answered()):
            raise self._no_completion()

    def of_all(self) -> RefusedRequestError | NoCompletionError | None:
        """What ends a call without an answer: the first refusal, as it is not the conversation that is wrong, or that
        no reply was a chat completion."""
        if self._is_answered():
            return None
        if self._refused:
            return self._refused[0]
        return self._no_completion() if self._others and not (self._is_mixed or self.has_completion) else None

    def _no_completion(self) -> NoCompletionError:
        shown = self.shown(" ".join(self._last.split()) or "nothing")[:_SHOWN]
        what = (
            f"has never sent a chat completion, to {counted(self._others, 'request')}; what came begins with: {shown}"
        )
        return NoCompletionError(self._url, what)

    def shown(self, text: object) -> str:
        """One line without the key, cut where it is too long."""
        whole = str(text).strip() or type(text).__name__
        whole = whole.replace(self._key, "***") if self._key else whole  # before it is cut: half a key is one too
        return " ".join(valid(first_line(whole)).split())


def detail(error: Any, name: str) -> object:
    """A value of the body of an error."""
    return error.body.get(name) if isinstance(error.body, dict) else None


def server_message(error: Any) -> str:
    """What a server says of an error, in one line: `message` as OpenAI has it, or what others have in its place."""
    body = error.body or _whole_body(error)  # openai takes `error` out of it, also if that holds nothing
    if isinstance(body, dict):
        body = next((body[name] for name in ("message", "error", "detail", "msg") if body.get(name)), body)
    text = body if isinstance(body, str) else json.dumps(body, ensure_ascii=False) if body else ""
    return " ".join(text.split()) or "without a message"


def _whole_body(error: Any) -> object:
    text = error.response.text
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return text


def refused_option(error: Any, body: Mapping[str, Any]) -> str | None:
    """The option that an endpoint does not take, as its error says; of several the first one."""
    text = server_message(error)
    if _TOO_LONG.search(text):  # for this conversation
        return None
    if isinstance(param := detail(error, "param"), str) and param in body and param not in OWN_OPTIONS:
        return param
    named = _options_in(text, body)
    return named[0] if named and _NOT_TAKEN.search(text) else None


def names_model(error: Any, body: Mapping[str, Any], *, by_text: bool) -> bool:
    """Whether an error is about the model, which some servers refuse as a bad request.

    Args:
        by_text: also if its text alone says so, and names no option. A text can also name the model and be about one
            conversation.
    """
    text = server_message(error)
    if _TOO_LONG.search(text):  # for this conversation
        return False
    if detail(error, "param") == "model" or detail(error, "code") == "model_not_found":
        return True
    is_in = _word(body["model"]).search(text) and _NO_MODEL.search(text)
    return by_text and bool(is_in) and not _options_in(text, body)


def _options_in(text: str, body: Mapping[str, Any]) -> list[str]:
    """Options that a text names. A word of the model's name, such as `seed`, is none."""
    words = re.findall(r"\w+", _word(body["model"]).sub(" ", text))
    return [word for word in words if word in body and word not in OWN_OPTIONS]


def _word(text: str) -> re.Pattern[str]:
    return re.compile(rf"(?<!\w){re.escape(text)}(?!\w)")
