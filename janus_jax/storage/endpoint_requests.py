"""What is asked of an endpoint, and what it answers."""

import dataclasses
import functools
import json
import math
import os
import re
import threading
import urllib.parse
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from janus_jax.errors import ConfigError, StorageError, counted

Messages = Sequence[Mapping[str, str]]
"""Each with `role` and `content`."""
Options = dict[str, Any]
"""Of a request, such as temperature and max_tokens."""

BYTES_A_TOKEN = 4  # of English, about
_NO_COUNT = 10**12  # of tokens, which no reply has
OWN_OPTIONS = ("model", "messages", "n", "stream")
"""Of a request, which no caller sets."""
_AROUND_MESSAGE = 8  # tokens of roles and marks, at most


class UnreachableError(StorageError):
    """No connection to the endpoint."""


class BudgetError(ConfigError):
    """The budget may not suffice for the next request.

    Args:
        bounds: `tokens`, `money` -> what is spent, what requests without an answer may take, and the next at most; of
            the limits that it could pass.
        parts: as `JanusError`.
    """

    def __init__(self, bounds: "Mapping[str, tuple[float, float, float]]", *parts: str):
        super().__init__(*parts)
        self.bounds = bounds


class Reply(NamedTuple):
    """What came of one request."""

    place: int
    """Of the conversation, from 0 on."""
    sample: int
    text: str | None
    """None: there is no answer, as `failure` says."""
    finish_reason: str
    """As the endpoint names it; `length`: the text is cut. Empty without a text: the endpoint gave no whole reply."""
    prompt_tokens: int
    completion_tokens: int
    failure: str
    """Why there is no answer, in one line. It is not in the journal as an answer, so the next run asks again."""
    time: int = 0
    """When it came, in seconds since 1970; 0: unknown, as in older journals."""
    model: str = ""
    """As the endpoint names it in the reply."""
    waiting: bool = False
    """There is no answer yet: the request is in a file for a batch API."""
    other: int = 0
    """Which of `Wanted.or_else` it answers, from 1 on; 0: `Wanted.messages`."""


@dataclasses.dataclass(frozen=True)
class Prices:
    """Of a million tokens, in any currency."""

    prompt: float
    completion: float

    def cost(self, prompt: int, completion: int) -> float:
        return (prompt * self.prompt + completion * self.completion) / 1e6


@dataclasses.dataclass
class Usage:
    """Tokens that were paid for, as replies count them."""

    prompt_tokens: int = 0
    completion_tokens: int = 0
    uncounted: int = 0
    """Replies that do not say how many tokens they took, and requests that timed out: they count as the most that they
    can have taken."""

    @property
    def tokens(self) -> int:
        return self.prompt_tokens + self.completion_tokens


@dataclasses.dataclass(frozen=True)
class Estimate:
    """What a call would ask for, before it does."""

    requests: int
    in_journal: int
    prompt_tokens: int
    """About: four bytes of text are one token."""
    completion_tokens: int | None
    """At most; None: the options set no limit."""
    money: float | None
    """At most; None: prices or the limit are unknown."""
    most_prompt: int = 0
    """Tokens of the prompts, at most: what a budget reserves."""

    def text(self) -> str:
        """One line."""
        most = "no limit" if self.completion_tokens is None else f"at most {self.completion_tokens:,}"
        money = "" if self.money is None else f", at most {self.money:,.2f} of money"
        return (
            f"{counted(self.requests, 'request')} ({self.in_journal:,} more are in the journal), about "
            f"{self.prompt_tokens:,} tokens of prompts, {most} of answers{money}"
        )


class Wanted(NamedTuple):
    """What a caller asks for."""

    place: int
    """The caller's number for it, which the reply repeats."""
    messages: Messages
    sample: int = 0
    or_else: Sequence[Messages] = ()
    """Other messages for the same sample. The answer to the first of them that were asked already counts, and nothing
    is sent."""


@dataclasses.dataclass(eq=False)
class Request:
    """One request, for every place that asks the same."""

    key: str
    body: dict[str, Any]
    """The JSON that is sent."""
    places: list[tuple[int, int]]
    """(place, sample); several if they are the same."""
    other: int = 0
    """As of `Reply`."""

    @functools.cached_property
    def prompt_bytes(self) -> int:
        """Of all messages."""
        return _bytes(self.body["messages"])

    @property
    def most_prompt(self) -> int:
        """Tokens of the prompt, at most: a token has at least one byte."""
        return self.prompt_bytes + _AROUND_MESSAGE * (len(self.body["messages"]) + 1)

    @property
    def limit(self) -> int | None:
        """Most tokens of the answer."""
        return limit(self.body)


class Sent(NamedTuple):
    """What is remembered of a request that another process sent."""

    key: str
    most_prompt: int
    limit: int | None


class Account:
    """What was spent, what requests under way may yet take, and budgets that hold both. Threads share it.

    Args:
        tokens, money: most that may be spent; None: no limit. Money needs prices.

    Raises:
        ConfigError: an argument is not allowed.
    """

    def __init__(self, tokens: int | None, money: float | None, prices: Prices | None):
        for name, value in (("token_budget", tokens), ("money_budget", money)):
            if value is not None and not value >= 0:
                raise ConfigError(f"{name} = {value!r}: allowed: 0 or more")
        if money is not None and prices is None:
            raise ConfigError(f"money_budget = {money!r}: allowed: only with prices; token_budget needs none")
        self._tokens, self._money, self._prices = tokens, money, prices
        self.usage, self.reserved, self._paid = Usage(), Usage(), 0.0
        self._lock = threading.RLock()  # a finalizer of replies left halfway may come while it is held

    @property
    def is_limited(self) -> bool:
        return self._tokens is not None or self._money is not None

    @property
    def money(self) -> float | None:
        """Spent so far; None without prices."""
        return None if self._prices is None else self._paid

    def poor(self, request: Request) -> dict[str, tuple[float, float, float]]:
        """The limits that a request could pass, as `BudgetError` has them."""
        with self._lock:
            parts = (self.usage, self.reserved, Usage(request.most_prompt, request.limit or 0))
        bounds: dict[str, tuple[float, float, float]] = {}
        spent, waits, most = (one.tokens for one in parts)
        if self._tokens is not None and spent + waits + most > self._tokens:
            bounds["tokens"] = spent, waits, most
        if self._money is not None and self._prices is not None:
            _, waits, most = (self._prices.cost(one.prompt_tokens, one.completion_tokens) for one in parts)
            spent = self._paid
            if spent + waits + most > self._money:
                bounds["money"] = spent, waits, most
        return bounds

    def poor_text(self, bounds: Mapping[str, tuple[float, float, float]]) -> str:
        """What an error says of a request that the budgets do not allow."""
        limits = {"tokens": self._tokens or 0, "money": self._money or 0.0}
        names = {"tokens": "token_budget", "money": "money_budget"}
        shown = (f"{names[one]} = {figure(one, limits[one])}: {bound(one, *bounds[one])}" for one in bounds)
        return f"the budget may not suffice for the next request; {'; '.join(shown)}"

    def count(self, prompt_tokens: int, completion_tokens: int, uncounted: int, money: float) -> None:
        """Adds what was spent."""
        with self._lock:
            self._paid += money
            self.usage.prompt_tokens += prompt_tokens
            self.usage.completion_tokens += completion_tokens
            self.usage.uncounted += uncounted

    def reserve(self, request: Request | Sent, sign: int) -> None:
        """Holds, or with -1 lets go, the most that a request can take."""
        with self._lock:
            self.reserved.prompt_tokens += sign * request.most_prompt
            self.reserved.completion_tokens += sign * (request.limit or 0)

    def affords(self, request: Request | None = None) -> bool:
        """Whether the budgets suffice if all that is under way, and the request, takes as many tokens as it can."""
        with self._lock:
            spent, paid = self.usage.tokens, self._paid
            prompt, answer = self.reserved.prompt_tokens, self.reserved.completion_tokens
        if request is not None:
            prompt, answer = prompt + request.most_prompt, answer + (request.limit or 0)
        money = 0.0 if self._prices is None else paid + self._prices.cost(prompt, answer)
        return (self._tokens is None or spent + prompt + answer <= self._tokens) and (
            self._money is None or money <= self._money
        )


def _bytes(messages: Messages) -> int:
    return sum(len(json.dumps(one, ensure_ascii=False).encode("utf-8", "replace")) for one in messages)


def checked_url(name: str, url: str, like: str) -> str:
    """The address of an endpoint, which holds no secret.

    Args:
        name: what gives it, for the message.
        like: an allowed one.

    Raises:
        ConfigError: it is not allowed.
    """
    try:
        parts = urllib.parse.urlsplit(url)
        fits = parts.scheme in ("http", "https") and parts.hostname and parts.port != 0
    except ValueError:
        fits, parts = False, urllib.parse.urlsplit("")
    if "@" in url or parts.query or parts.fragment:  # not shown: it may hold a secret
        raise ConfigError(f"{name}: allowed: no user, password, query or fragment; a key goes into the environment")
    if not fits:
        raise ConfigError(f"{name} {url!r}: allowed: http:// or https:// and a host, like {like}")
    return url


def replies(request: Request, record: Mapping[str, Any]) -> Iterator[Reply]:
    """A record of the journal as replies."""
    for place, sample in request.places:
        tokens = record["prompt_tokens"], record["completion_tokens"]
        more = record.get("failure", ""), record.get("time", 0), record.get("model", "")
        text, reason = record["text"], record.get("finish_reason", "")
        if text is None and "model" in record:  # it was paid for, and is no failure of the endpoint
            reason = reason or "unknown"
        yield Reply(place, sample, text, reason, *tokens, *more, other=request.other)


def amount(money: float) -> str:
    """Money with two digits after the point; less than 1 with two that are not 0."""
    digits = 2 if money == 0 or abs(money) >= 1 else 1 - math.floor(math.log10(abs(money)))
    return f"{money:,.{max(2, digits)}f}"


def figure(name: str, value: float) -> str:
    """An amount of `tokens` or `money`."""
    return amount(value) if name == "money" else f"{value:,}"


def bound(name: str, spent: float, waits: float, most: float) -> str:
    """Figures of `BudgetError.bounds` as words."""
    waiting = f", requests without an answer can take {figure(name, waits)}" if waits else ""
    return f"{figure(name, spent)} {name} spent{waiting}, the next can take {figure(name, most)}"


def limit(options: Mapping[str, Any]) -> int | None:
    """Most tokens of an answer; None: no limit."""
    return options.get("max_completion_tokens", options.get("max_tokens"))


def valid(text: str) -> str:
    """A text without halves of UTF-16 pairs, which no file of UTF-8 holds: servers cut such pairs."""
    return re.sub("[\ud800-\udfff]", "\ufffd", text)


def usage(body: str) -> tuple[int, int] | None:
    """Tokens of prompt and answer, as a reply counts them."""
    try:
        counts = json.loads(body)["usage"]
        both = int(counts["prompt_tokens"]), int(counts.get("completion_tokens") or 0)
    except (ValueError, KeyError, TypeError, AttributeError, OverflowError, RecursionError):
        return None
    return both if all(0 <= count < _NO_COUNT for count in both) else None


def failure(why: str) -> dict[str, Any]:
    """A record without an answer."""
    return {"text": None, "failure": why, "finish_reason": "", "prompt_tokens": 0, "completion_tokens": 0}


def api_key(variable: str | None) -> str:
    """The key in an environment variable; empty for None.

    Raises:
        ConfigError: the variable is empty, or its value cannot be sent.
    """
    if variable is None:
        return ""
    key = os.environ.get(variable, "").strip()
    if not key and not (variable.isidentifier() and variable.isupper()):  # it may be the key: do not show it
        raise ConfigError("key_variable: is not the name of a variable that is set; give its name, not the key")
    if not key:
        raise ConfigError(f"${variable}: is not set; put the API key into it")
    if not (key.isascii() and key.isprintable()):
        raise ConfigError(f"${variable}: is no API key: it has characters that a header cannot have")
    return key


def access(base_url: str, key_variable: str | None) -> tuple[Any, str, str]:
    """The package openai, which an extra installs, the address, and the API key; empty: the endpoint takes none.

    Raises:
        ConfigError: the package is missing, the address is not allowed, or the variable holds no key.
    """
    try:
        import openai  # pyright: ignore[reportMissingImports] (an extra)
    except ModuleNotFoundError as error:
        raise ConfigError("openai is not installed; pip install 'janus_jax[llm]'") from error
    return openai, checked_url("base_url", base_url, "http://127.0.0.1:8000/v1").rstrip("/"), api_key(key_variable)
