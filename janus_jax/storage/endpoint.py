"""A client of OpenAI-compatible endpoints that asks and pays for nothing twice."""

import hashlib
import json
import os
import re
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent import futures
from typing import Any

from janus_jax.errors import ConfigError, JanusError, StorageError, counted, first_line
from janus_jax.storage.endpoint_journal import ReplyJournal
from janus_jax.storage.endpoint_requests import (
    BYTES_A_TOKEN,
    Estimate,
    Messages,
    Prices,
    RefusedOptionError,
    Reply,
    Request,
    Sent,
    UnreachableError,
    Usage,
    checked_url,
    limit,
    replies,
    usage,
    valid,
)
from janus_jax.storage.pace import Pace, pause_after

_OWN = ("model", "messages", "n", "stream")
_AGAIN = (408, 409, 425, 429)
_NOT_TAKEN = re.compile(
    r"support|unknown|unrecogni[sz]ed|unexpected|not (?:allowed|permitted|a valid)|extra|invalid (?:param|arg|option)",
    re.IGNORECASE,
)
_TOO_LONG = re.compile(r"\bcontext\b|too (?:large|long|many)|exceed", re.IGNORECASE)
_NOT_SENT = ("ConnectError", "ConnectTimeout")


class Endpoint:
    """Asks a model behind an OpenAI-compatible URL, many requests at the same time.

    Args:
        base_url: like https://api.openai.com/v1 or http://127.0.0.1:8000/v1, without a key in it.
        key_variable: name of the environment variable with the API key; None: the endpoint takes none.
        journal: file of replies, made if it does not exist. One that is in it is not asked for again.
        concurrent: requests at the same time.
        token_budget, money_budget: most that may be spent, with what the journal has already. A request that could pass
            it is not sent. Money needs `prices`.
        timeout_s: of one try.
        tries: of one request, with growing pauses. One that is too much (429) counts if nothing else is answered.
        keep_refusals: a reply without content, which was paid for, is not asked for again by a later call.

    Raises:
        ConfigError: an argument is not allowed, the variable is empty, or the journal cannot be used.
        StorageError: the journal cannot be written.
    """

    def __init__(
        self,
        base_url: str,
        model: str,
        *,
        journal: str | os.PathLike[str],
        key_variable: str | None = "OPENAI_API_KEY",
        concurrent: int = 8,
        requests_a_minute: int | None = None,
        tokens_a_minute: int | None = None,
        token_budget: int | None = None,
        money_budget: float | None = None,
        prices: Prices | None = None,
        timeout_s: float = 120.0,
        tries: int = 8,
        keep_refusals: bool = False,
    ):
        self._url = checked_url("base_url", base_url, "http://127.0.0.1:8000/v1").rstrip("/")
        self._model, self.prices = model, prices
        limits = {"concurrent": concurrent, "tries": tries, "timeout_s": timeout_s, "token_budget": token_budget}
        limits |= {"requests_a_minute": requests_a_minute, "tokens_a_minute": tokens_a_minute}
        for name, value in (limits | {"money_budget": money_budget}).items():
            if value is not None and not value > 0:
                raise ConfigError(f"{name} = {value!r}: allowed: more than 0")
        if money_budget is not None and prices is None:
            raise ConfigError(f"money_budget = {money_budget!r}: allowed: only with prices; token_budget needs none")
        self._token_budget, self._money_budget = token_budget, money_budget
        self._key, self._concurrent, self._tries = _key(key_variable), concurrent, tries
        self._key_variable, self._keep_refusals = key_variable, keep_refusals
        self._client = _openai().OpenAI(
            base_url=self._url, api_key=self._key or "none", max_retries=0, timeout=timeout_s
        )
        self._stop = threading.Event()
        self._lock = threading.RLock()
        self._answered = 0
        self._refusals: list[ConfigError] = []
        self._running: dict[futures.Future[dict[str, Any] | None], Request] = {}
        self._pace = Pace(requests_a_minute, tokens_a_minute, wait=self._stop.wait)
        self.usage = Usage()
        """Of everything in the journal, and of this process."""
        self._journal = ReplyJournal(journal)
        spent = self._journal.spent
        self._count(spent.prompt_tokens, spent.completion_tokens, spent.uncounted)

    @property
    def money(self) -> float | None:
        """Spent so far; None without prices."""
        if self.prices is None:
            return None
        return self.prices.cost(self.usage.prompt_tokens, self.usage.completion_tokens)

    def close(self) -> None:
        """Lets another process use the journal."""
        self._client.close()
        self._journal.close()

    def __enter__(self) -> "Endpoint":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def complete(
        self, conversations: Sequence[Messages], *, samples: int = 1, first_sample: int = 0, **options: Any
    ) -> Iterator[Reply]:
        """Replies to all conversations, as they come; each is in the journal before it is given.

        Args:
            samples: answers to each conversation. Each is a request of its own; with a `seed` in the options, sample k
                has the seed plus k.
            first_sample: number of the first one, so that a later call can ask for more.
            options: of the request, such as temperature and max_tokens.

        Raises:
            ConfigError: an option is not allowed, the endpoint refuses (401, 403, 404, ...), or the budget allows no
                further request. What was under way is waited for, and is in the journal. A conversation that alone is
                refused (400, 413, 422), such as one that is too long, is a failure if others are answered.
            RefusedOptionError: the endpoint does not take an option.
            StorageError: the endpoint says for too long that it is too much; UnreachableError: it cannot be reached.
        """
        places = self._places(conversations, range(first_sample, first_sample + samples), options)
        waiting = []
        for key, request in places.items():
            if (record := self._journal.get(key, refusal=self._keep_refusals)) is not None:
                yield from replies(request, record)
            else:
                waiting.append(request)
        yield from self._ask_all(waiting)

    def estimate(self, conversations: Sequence[Messages], *, samples: int = 1, **options: Any) -> Estimate:
        """What `complete` with these arguments would ask for."""
        places = self._places(conversations, range(samples), options)
        kept = self._keep_refusals
        left = [request for key, request in places.items() if self._journal.get(key, refusal=kept) is None]
        prompts = sum(-(-request.prompt_bytes // BYTES_A_TOKEN) for request in left)
        longest = limit(options)
        answers = None if longest is None else longest * len(left)
        most = sum(request.most_prompt for request in left)
        money = self.prices.cost(most, answers) if self.prices is not None and answers is not None else None
        return Estimate(len(left), len(places) - len(left), prompts, answers, money, most)

    def _places(self, conversations: Sequence[Messages], samples: range, options: dict[str, Any]) -> dict[str, Request]:
        """Requests by key; equal ones are one."""
        if own := [name for name in options if name in _OWN]:
            raise ConfigError(f"{own[0]}: not allowed among the options; allowed: others of chat completions")
        if not samples:
            raise ConfigError(f"samples = {samples.stop - samples.start}: allowed: 1 or more")
        if (self._token_budget or self._money_budget) and limit(options) is None:
            raise ConfigError("a budget needs max_tokens (or max_completion_tokens) among the options")
        made: dict[str, Request] = {}
        for place, messages in enumerate(conversations):
            for sample in samples:
                body = {"model": self._model, "messages": [dict(one) for one in messages], **options}
                try:
                    if options.get("seed") is not None:
                        body["seed"] = options["seed"] + sample
                    whole = json.dumps([self._url, body, sample], sort_keys=True, allow_nan=False)
                except (TypeError, ValueError) as error:
                    raise ConfigError(f"conversation {place + 1}", f"cannot be sent: {error}") from error
                key = hashlib.sha256(whole.encode()).hexdigest()
                made.setdefault(key, Request(key, body, [])).places.append((place, sample))
        return made

    def _ask_all(self, requests: Sequence[Request]) -> Iterator[Reply]:
        self._stop.clear()
        pool = futures.ThreadPoolExecutor(self._concurrent)
        waiting, end = list(reversed(requests)), None
        running = self._running = {}
        try:
            while running or (waiting and end is None):
                while waiting and end is None and len(running) < self._concurrent:
                    with self._lock:  # one look at the budget at a time
                        if fits := self._affords(waiting[-1:]):
                            request = waiting.pop()
                            running[pool.submit(self._ask, request)] = request
                    if not fits:
                        end = None if running else self._poor(len(waiting))
                        break
                done, _ = futures.wait(running, return_when=futures.FIRST_COMPLETED)
                for future in done:
                    request = running.pop(future)
                    try:
                        record = future.result()
                    except JanusError as error:
                        end = end or error
                        self._stop.set()  # others that pause give up; those that are answered are kept
                        continue
                    if record is not None:
                        yield from replies(request, record)
            if end is None and self._refuses_all():
                end = self._refusals[0]
            if end is not None:
                raise end
        finally:
            self._stop.set()
            pool.shutdown(cancel_futures=True)  # what is under way is paid for, and its thread writes it down

    def _affords(self, more: Sequence[Request] = ()) -> bool:
        """Whether the budgets suffice if all that is under way, and more, takes as many tokens as it can."""
        with self._lock:
            requests = [*more, *(one for future, one in list(self._running.items()) if not future.done())]
        prompt = self.usage.prompt_tokens + sum(request.most_prompt for request in requests)
        answer = self.usage.completion_tokens + sum(request.limit or 0 for request in requests)
        if self._token_budget is not None and prompt + answer > self._token_budget:
            return False
        return (
            self._money_budget is None or self.prices is None or self.prices.cost(prompt, answer) <= self._money_budget
        )

    def _poor(self, left: int) -> ConfigError:
        money = (
            "" if self._money_budget is None else f", money_budget = {self._money_budget:,g}, spent {self.money:,.4f}"
        )
        tokens = "" if self._token_budget is None else f", token_budget = {self._token_budget:,}"
        return ConfigError(
            self._url,
            f"the budget may not suffice for the next of {counted(left, 'request')}{tokens}{money}, "
            f"{self.usage.tokens:,} tokens spent; a larger one goes on from {self._journal.path}",
        )

    def _ask(self, request: Request) -> dict[str, Any] | None:
        """The record of a reply, which is in the journal if it was paid for; None: asking was given up."""
        openai, why, failures = _openai(), "", 0
        status: int | None = None
        while failures < self._tries:
            if failures and not self._affords():
                why, status = f"{why}; the budget may not suffice for another try", None
                break
            answered = self._answered
            if not self._pace.pass_(request.prompt_bytes // BYTES_A_TOKEN + (request.limit or 0)):
                return None
            status, after = None, None
            try:
                rest = {name: value for name, value in request.body.items() if name not in _OWN}
                raw = self._client.chat.completions.with_raw_response.create(
                    model=self._model,
                    messages=request.body["messages"],
                    extra_body=rest,
                    extra_headers={"Idempotency-Key": request.key},
                )
                record = self._read(request, raw.http_response.text)
                if record is not None:
                    return record
                why = "the reply is no chat completion"
            except openai.APIConnectionError as error:
                cause = error.__cause__ or error
                timed_out = isinstance(error, openai.APITimeoutError)
                why = "no reply in time" if timed_out else f"cannot be reached ({first_line(cause)})"
                status = None if timed_out else 0
                if type(cause).__name__ not in _NOT_SENT:  # it may have been answered, and paid for
                    self._spend(request, {"failure": why})
            except openai.APIStatusError as error:
                code = status = error.status_code
                after = error.response.headers.get("retry-after")
                why = f"status {code}: {self._clean(error)}"
                if (code < 500 and code not in _AGAIN) or _detail(error, "code") == "insufficient_quota":
                    return self._refused(request, error, why)
            if status != 429 or self._answered == answered:  # while others are answered, it is only a matter of time
                failures += 1
            pause = pause_after(max(failures, 1), after)
            if status == 429:
                self._pace.pause(pause)
            elif failures < self._tries and self._stop.wait(pause):
                return None
        if status in (0, 429):
            raise (StorageError if status else UnreachableError)(
                self._url, self._clean(f"{why}; tried {self._tries} times")
            )
        return _failure(self._clean(why))

    def _read(self, request: Request | Sent, body: str) -> dict[str, Any] | None:
        """The record of a reply, written to the journal; None: it is no chat completion, and may come right."""
        try:
            content = json.loads(body)
            choice = content["choices"][0]
            text, reason = choice["message"].get("content"), choice.get("finish_reason") or ""
        except (ValueError, KeyError, IndexError, TypeError, AttributeError, RecursionError):
            if usage(body) is not None:
                self._spend(request, {"failure": "no choice"}, usage(body))
            return None
        record: dict[str, Any] = {"text": valid(text) if isinstance(text, str) else None, "finish_reason": str(reason)}
        record |= {"time": int(time.time()), "model": valid(str(content.get("model") or self._model))}
        if record["text"] is None:
            refusal = choice["message"].get("refusal")
            record["failure"] = self._clean(
                f"refused: {refusal}" if refusal else f"no content ({reason or 'no reason'})"
            )
        return self._spend(request, record, usage(body))

    def _spend(
        self, request: Request | Sent, record: dict[str, Any], usage: tuple[int, int] | None = None
    ) -> dict[str, Any]:
        """Writes down what was, or may have been, paid for."""
        prompt, completion = usage or (request.most_prompt, request.limit or 0)
        record |= {"prompt_tokens": prompt, "completion_tokens": completion} | ({} if usage else {"counted": False})
        self._journal.add(request.key, record)
        self._count(prompt, completion, usage is None)
        with self._lock:
            self._answered += record.get("text") is not None
        return record

    def _count(self, prompt: int, completion: int, uncounted: int) -> None:
        with self._lock:
            self.usage.prompt_tokens += prompt
            self.usage.completion_tokens += completion
            self.usage.uncounted += uncounted

    def _refused(self, request: Request, error: Any, why: str) -> dict[str, Any]:
        """A failure of this request alone, where others are answered; otherwise raises."""
        status = error.status_code
        if status in (401, 403):
            key = f"the key in ${self._key_variable}" if self._key_variable else "a request without a key"
            raise ConfigError(self._url, f"does not accept {key} (status {status})") from None
        if status == 404:
            what = f"does not have this path or the model {self._model!r} ({why})"
            raise ConfigError(self._url, what) from None
        if status in (400, 422) and (option := _refused_option(error, request.body)):
            raise RefusedOptionError(option, self._url, f"refuses the option {option!r} ({why})") from None
        refused = ConfigError(self._url, f"refuses conversation {request.places[0][0] + 1} ({why})")
        if status not in (400, 413, 422):
            raise refused from None
        with self._lock:
            self._refusals.append(refused)
        if self._refuses_all() and len(self._refusals) >= self._tries:
            raise self._refusals[0] from None
        return _failure(why)

    def _refuses_all(self) -> bool:
        """Whether there were refusals and never an answer: it is not the conversation that is wrong."""
        return bool(self._refusals) and not self._answered and not len(self._journal)

    def _clean(self, text: object) -> str:
        """One line without the key."""
        line = " ".join(valid(first_line(text)).split())
        return line.replace(self._key, "***") if self._key else line


def _failure(why: str) -> dict[str, Any]:
    return {"text": None, "failure": why, "finish_reason": "", "prompt_tokens": 0, "completion_tokens": 0}


def _detail(error: Any, name: str) -> object:
    body = error.body
    return body.get(name) if isinstance(body, dict) else None


def _refused_option(error: Any, body: Mapping[str, Any]) -> str | None:
    """The option that an endpoint does not take, as its error says; of several the first one."""
    if _TOO_LONG.search(str(error)):  # for this conversation
        return None
    options = [name for name in body if name not in _OWN]
    if (param := _detail(error, "param")) in options:
        return str(param)
    named = [match[0] for match in re.finditer(r"\w+", str(error)) if match[0] in options]
    return named[0] if named and _NOT_TAKEN.search(str(error)) else None


def _key(variable: str | None) -> str:
    if variable is None:
        return ""
    key = os.environ.get(variable, "").strip()
    if not key:
        raise ConfigError(f"${variable}: is not set; put the API key into it")
    if not (key.isascii() and key.isprintable()):
        raise ConfigError(f"${variable}: is no API key: it has characters that a header cannot have")
    return key


def _openai() -> Any:
    try:
        import openai  # pyright: ignore[reportMissingImports] (an extra)
    except ModuleNotFoundError as error:
        raise ConfigError("openai is not installed; pip install 'janus_jax[llm]'") from error
    return openai
