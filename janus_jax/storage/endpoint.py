"""A client of OpenAI-compatible endpoints that asks and pays for nothing twice."""

import collections
import functools
import hashlib
import itertools
import json
import os
import queue
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent import futures
from typing import Any, Self

from janus_jax.errors import ConfigError, JanusError, StorageError, counted
from janus_jax.storage.endpoint_errors import Refusals, detail, server_message
from janus_jax.storage.endpoint_journal import ReplyJournal
from janus_jax.storage.endpoint_requests import (
    BYTES_A_TOKEN,
    OWN_OPTIONS,
    Account,
    BudgetError,
    Estimate,
    Messages,
    Options,
    Prices,
    Reply,
    Request,
    Sent,
    UnreachableError,
    Usage,
    Wanted,
    access,
    failure,
    limit,
    replies,
    usage,
    valid,
)
from janus_jax.storage.pace import GaveUpError, Pace, Tries

_AGAIN = (408, 409, 425, 429)
_A_CLIENT = 32  # requests at the same time
_ROUNDS = 3  # of requests at the same time, without one chat completion
_NOT_SENT = ("ConnectError", "ConnectTimeout")


class Endpoint:
    """Asks a model behind an OpenAI-compatible URL, many requests at the same time.

    Args:
        base_url: like https://api.openai.com/v1 or http://127.0.0.1:8000/v1, without a key in it.
        key_variable: name of the environment variable with the API key; None: the endpoint takes none.
        journal: file of replies, made if it does not exist. One that is in it is not asked for again.
        concurrent: requests at the same time.
        token_budget, money_budget: most that may be spent, with what the journal has already. A request that could pass
            it is not sent. 0: nothing is sent. Money needs `prices`.
        timeout_s: of one try.
        tries: of one request, with growing pauses. One that is too much (429) counts if nothing else is answered.
        keep_refusals: a reply without content, which was paid for, is not asked for again by a later call.
        tell: gets a line when what was interrupted waits for requests under way.

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
        tell: Callable[[str], None] = lambda line: None,
    ):
        self._openai, self._url, key = access(base_url, key_variable)
        self._model, self.prices, self.concurrent = model, prices, concurrent
        limits = {"concurrent": concurrent, "tries": tries, "timeout_s": timeout_s}
        limits |= {"requests_a_minute": requests_a_minute, "tokens_a_minute": tokens_a_minute}
        for name, value in limits.items():
            if value is not None and not value > 0:
                raise ConfigError(f"{name} = {value!r}: allowed: more than 0")
        self._account = Account(token_budget, money_budget, prices)
        self._keep_refusals, self._tell = keep_refusals, tell
        # a client looks at all its connections for each request
        self._clients = [
            self._openai.OpenAI(base_url=self._url, api_key=key or "none", max_retries=0, timeout=timeout_s)
            for _ in range(-(-concurrent // _A_CLIENT))
        ]
        self._turns = itertools.cycle(self._clients)
        self._stop = threading.Event()
        self._flowing: tuple[futures.ThreadPoolExecutor, dict[str, Request]] | None = None
        self._lock = threading.RLock()
        pace = Pace(requests_a_minute, tokens_a_minute, wait=self._stop.wait)
        self._tries = Tries(pace, tries, wait=self._stop.wait)
        self._journal = ReplyJournal(journal)
        self._refusals = Refusals(
            self._url,
            model,
            key_variable,
            key,
            most=tries,
            most_other=max(tries, _ROUNDS * concurrent),
            is_answered=lambda: bool(self._tries.answered or len(self._journal)),
        )
        spent = self._journal.spent
        paid = spent.money_at(prices) or 0.0
        self._account.count(spent.prompt_tokens, spent.completion_tokens, spent.uncounted, paid)

    @property
    def usage(self) -> Usage:
        """Of everything in the journal, and of this process."""
        return self._account.usage

    @property
    def money(self) -> float | None:
        """Spent so far; None without prices."""
        return self._account.money

    def close(self) -> None:
        """Waits for what is under way, which is paid for, and lets another process use the journal."""
        if self._flowing is not None:  # a caller has left replies halfway
            self._drain(self._flowing)
        for opened in (*self._clients, self._journal):
            opened.close()

    def __enter__(self) -> Self:
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
            ConfigError: an option is not allowed, the endpoint refuses (401, 404, ...), or the budget allows no further
                request. What was under way is waited for, and is in the journal. A conversation that alone is refused
                (400, 403, 413, 422), such as one that is too long, is a failure if others are answered.
            RefusedOptionError: the endpoint does not take an option.
            StorageError: the endpoint says for too long that it is too much; UnreachableError: it cannot be reached;
                NoCompletionError: it never sent a chat completion, but something else.
        """
        places = self._places(conversations, range(first_sample, first_sample + samples), options)
        waiting = collections.deque(places.values())
        for reply in self._flow(lambda: waiting.popleft() if waiting else None):
            if not reply.waiting:
                yield reply

    def stream(
        self, following: Callable[[], Wanted | None], *, others: Sequence[Options] = (), **options: Any
    ) -> Iterator[Reply]:
        """As `complete`, of any number of requests that are made while others are under way.

        Args:
            following: the next one; None: none now. It is called again after each reply, and all ends when it gives
                none and nothing is under way.
            others: options in place of `options`; a request that was asked with them is not sent.
        """
        self._check(options)

        def request() -> Request | None:
            if (wanted := following()) is None:
                return None
            choices = itertools.product((*enumerate(wanted.or_else, 1), (0, wanted.messages)), (options, *others))
            for (other, messages), form in choices if others or wanted.or_else else ():
                asked = self._request(wanted._replace(messages=messages), form)
                asked.other = other
                if self._was_asked(asked):
                    return asked
            return self._request(wanted, options)

        yield from self._flow(request)

    def estimate(
        self, conversations: Sequence[Messages], *, samples: int = 1, others: Sequence[Options] = (), **options: Any
    ) -> Estimate:
        """What `complete` with these arguments, or `stream`, would ask for."""
        forms = [self._places(conversations, range(samples), form).values() for form in (options, *others)]
        places = list(zip(*forms, strict=True))
        left = [one for one, *more in places if not any(map(self._known, (one, *more)))]
        prompts = sum(-(-request.prompt_bytes // BYTES_A_TOKEN) for request in left)
        longest = limit(options)
        answers = None if longest is None else longest * len(left)
        most = sum(request.most_prompt for request in left)
        money = self.prices.cost(most, answers) if self.prices is not None and answers is not None else None
        return Estimate(len(left), len(places) - len(left), prompts, answers, money, most)

    def _places(self, conversations: Sequence[Messages], samples: range, options: Options) -> dict[str, Request]:
        """Requests by key; equal ones are one."""
        self._check(options)
        if not samples:
            raise ConfigError(f"samples = {samples.stop - samples.start}: allowed: 1 or more")
        made: dict[str, Request] = {}
        for place, messages in enumerate(conversations):
            for sample in samples:
                request = self._request(Wanted(place, messages, sample), options)
                if (same := made.setdefault(request.key, request)) is not request:
                    same.places.extend(request.places)
        return made

    def _check(self, options: Options) -> None:
        if own := [name for name in options if name in OWN_OPTIONS]:
            raise ConfigError(f"{own[0]}: not allowed among the options; allowed: others of chat completions")
        if self._account.is_limited and limit(options) is None:
            raise ConfigError("a budget needs max_tokens (or max_completion_tokens) among the options")

    def _request(self, wanted: Wanted, options: Options) -> Request:
        body = {"model": self._model, "messages": [dict(one) for one in wanted.messages], **options}
        try:
            if options.get("seed") is not None:
                body["seed"] = options["seed"] + wanted.sample
            whole = json.dumps([self._url, body, wanted.sample], sort_keys=True, allow_nan=False)
        except (TypeError, ValueError) as error:
            raise ConfigError(f"conversation {wanted.place + 1}", f"cannot be sent: {error}") from error
        key = hashlib.sha256(whole.encode()).hexdigest()
        return Request(key, body, [(wanted.place, wanted.sample)])

    def _known(self, request: Request) -> dict[str, Any] | None:
        return self._journal.get(request.key, refusal=self._keep_refusals)

    def _was_asked(self, request: Request) -> bool:
        """Whether it need not be sent any more."""
        return self._journal.has(request.key, refusal=self._keep_refusals)

    def _flow(self, following: Callable[[], Request | None]) -> Iterator[Reply]:
        """Replies to the requests that `following` gives, which is called whenever one more may go out."""
        self._stop.clear()
        pool = futures.ThreadPoolExecutor(self.concurrent)
        done: queue.SimpleQueue[tuple[Request, futures.Future[Any]]] = queue.SimpleQueue()
        running: dict[str, Request] = {}
        self._flowing = flowing = pool, running
        held, end = None, None

        def ended(request: Request, future: futures.Future[Any]) -> None:
            self._account.reserve(request, -1)  # also of one that was cancelled
            done.put((request, future))

        try:
            while True:
                while end is None and len(running) < self.concurrent:
                    request, held = held or following(), None
                    if request is None:
                        break
                    if request.key in running:
                        running[request.key].places.extend(request.places)
                    elif (record := self._known(request)) is not None:
                        yield from replies(request, record)
                    elif self._account.affords(request):
                        running[request.key] = request
                        self._account.reserve(request, 1)
                        future = pool.submit(self._ask, request)
                        future.add_done_callback(functools.partial(ended, request))
                    else:
                        held = request  # until others have taken less than they might have
                        break
                if not running:
                    break
                request, future = done.get()
                del running[request.key]
                try:
                    record = future.result()
                except GaveUpError:
                    continue
                except JanusError as error:
                    end = end or error
                    self._stop.set()  # others that pause give up; those that are answered are kept
                    continue
                yield from replies(request, record)
            if end := end or (self._poor(held) if held is not None else self._refusals.of_all()):
                raise end
        finally:
            self._drain(flowing)

    def _drain(self, flowing: tuple[futures.ThreadPoolExecutor, dict[str, Request]]) -> None:
        """Waits for what is under way: it is paid for, and its thread writes it down. Interrupted, it waits no more."""
        self._stop.set()
        if self._flowing is flowing:
            self._flowing = None
        (pool, running), left = flowing, len(flowing[1])
        running.clear()  # `close` and the generator's end both come here
        if left:
            self._tell(f"waiting for {counted(left, 'request')} under way; a second Ctrl-C ends at once")
        end = threading.Thread(target=pool.shutdown, kwargs={"wait": left > 0, "cancel_futures": True}, daemon=True)
        end.start()
        while end.is_alive():  # in short waits: a signal just before an endless one would not end it
            end.join(0.2)

    def _poor(self, request: Request) -> BudgetError:
        bounds = self._account.poor(request)
        what = f"{self._account.poor_text(bounds)}; a larger one goes on from {self._journal.path}"
        return BudgetError(bounds, self._url, what)

    def _ask(self, request: Request) -> dict[str, Any]:
        """The record of a reply, which is in the journal if it was paid for.

        Raises:
            GaveUpError: others have failed, or the caller wants no more.
        """
        openai, why, status = self._openai, "", None
        for one in self._tries.of(request.prompt_bytes // BYTES_A_TOKEN + (request.limit or 0)):
            if one.failures and not self._account.affords():
                why, status = f"{why}; the budget may not suffice for another try", None
                break
            other = None
            try:
                more, client = {"headers": {"Idempotency-Key": request.key}}, next(self._turns)
                reply = client.post("/chat/completions", cast_to=str, body=request.body, options=more)
                if (record := self._read(request, reply)) is not None:
                    self._refusals.has_completion = True
                    return record
                why, other = "the reply is no chat completion", reply
            except openai.APIConnectionError as error:
                cause = error.__cause__ or error
                timed_out = isinstance(error, openai.APITimeoutError)
                why = "no reply in time" if timed_out else f"cannot be reached ({self._refusals.shown(cause)})"
                one.status = None if timed_out else 0
                if type(cause).__name__ not in _NOT_SENT:  # it may have been answered, and paid for
                    self._spend(request, {"failure": why})
            except openai.APIStatusError as error:
                code = one.status = error.status_code
                one.retry_after = error.response.headers.get("retry-after")
                why = self._refusals.shown(f"status {code}: {server_message(error)}")
                if (code < 500 and code not in _AGAIN) or detail(error, "code") == "insufficient_quota":
                    return failure(self._refusals.take(request, error, why))
            self._refusals.note(other)
            status = one.status
        if status in (0, 429):
            kind = StorageError if status else UnreachableError
            raise kind(self._url, f"{why}; tried {self._tries.most} times")
        return failure(why)

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
            why = f"refused: {refusal}" if refusal else f"no content ({reason or 'no reason'})"
            record["failure"] = self._refusals.shown(why)
        return self._spend(request, record, usage(body))

    def _spend(
        self, request: Request | Sent, record: dict[str, Any], usage: tuple[int, int] | None = None
    ) -> dict[str, Any]:
        """Writes down what was, or may have been, paid for."""
        prompt, completion = usage or (request.most_prompt, request.limit or 0)
        record |= {"prompt_tokens": prompt, "completion_tokens": completion} | ({} if usage else {"counted": False})
        money = self.prices.cost(prompt, completion) if self.prices else None
        self._journal.add(request.key, record | ({} if money is None else {"money": money}))
        self._account.count(prompt, completion, usage is None, money or 0.0)
        if record.get("text") is not None:
            self._tries.note_answer()
        return record
