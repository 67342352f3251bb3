"""What comes of a job, in OpenAI's forms: chunks of a stream, or one object."""

import abc
import json
import math
import secrets
import time
from collections.abc import Iterable, Sequence
from typing import Any

from janus_jax import __version__
from janus_jax.generation.detokenizer import Detokenizer
from janus_jax.generation.requests import Event, LogProbs
from janus_jax.serving.asks import Ask
from janus_jax.serving.token_texts import Offsets, TokenTexts
from janus_jax.serving.worker import Scored

_LEAST = -9999.0
"""JSON has no infinity; OpenAI writes this instead."""

Top = Sequence[tuple[int, float]]


class Reply(abc.ABC):
    """One answer of HTTP, made of events.

    Args:
        model: its name.
    """

    kind, prefix = "", ""

    def __init__(self, ask: Ask, model: str, texts: TokenTexts, detokenizer: Detokenizer):
        self.ask, self._texts, self._detokenizer = ask, texts, detokenizer
        self._head = {
            "id": f"{self.prefix}-{secrets.token_hex(12)}",
            "object": self.kind,
            "created": int(time.time()),
            "model": model,
            "system_fingerprint": f"janus_jax-{__version__}",
        }
        self._tokens = 0
        self._made: dict[int, dict[str, Any]] = {}
        """The choices so far, if they are not streamed."""

    def first(self) -> list[dict[str, Any]]:
        """What stands before anything is computed: choices in part."""
        return []

    @abc.abstractmethod
    def parts(self, news: Event | Scored) -> list[dict[str, Any]]:
        """Parts of choices: `index`, `text`, `logprobs` and `finish_reason`."""

    @abc.abstractmethod
    def chunk(self, part: dict[str, Any]) -> dict[str, Any] | None:
        """A part as a chunk of a stream; None if it says nothing."""

    @abc.abstractmethod
    def _choice(self, made: dict[str, Any]) -> dict[str, Any]:
        """A choice of the whole answer."""

    def add(self, part: dict[str, Any]) -> None:
        """Joins a part to its choice."""
        made = self._made.setdefault(part["index"], {"text": [], "logprobs": {}, "finish_reason": None})
        made["text"].append(part["text"])
        made["finish_reason"] = part["finish_reason"] or made["finish_reason"]
        for name, values in (part["logprobs"] or {}).items():
            made["logprobs"][name] = made["logprobs"].get(name, []) + values if values is not None else None

    def whole(self) -> dict[str, Any]:
        choices = [self._choice({"index": index, **made}) for index, made in sorted(self._made.items())]
        return {**self._head, "choices": choices, "usage": self.usage()}

    def usage(self) -> dict[str, int]:
        prompts = sum(len(request.ids) for request in self.ask.requests)
        return {"prompt_tokens": prompts, "completion_tokens": self._tokens, "total_tokens": prompts + self._tokens}

    def last(self) -> dict[str, Any]:
        """The chunk with the count of tokens."""
        return {**self._head, "choices": [], "usage": self.usage()}

    def _chunked(self, choice: dict[str, Any]) -> dict[str, Any]:
        return {**self._head, "choices": [choice], **({"usage": None} if self.ask.usage else {})}

    def _index(self, event: Event) -> int:
        return event.request * self.ask.samples + event.sample


class ChatReply(Reply):
    kind, prefix = "chat.completion", "chatcmpl"

    def __init__(self, *arguments: Any):
        super().__init__(*arguments)
        if self.ask.stream:
            self._head["object"] = "chat.completion.chunk"
        self._begun: set[int] = set()

    def first(self) -> list[dict[str, Any]]:
        return [
            {"index": index, "text": "", "logprobs": None, "finish_reason": None, "role": "assistant"}
            for index in range(self.ask.samples)
        ]

    def parts(self, news: Event | Scored) -> list[dict[str, Any]]:
        assert isinstance(news, Event)
        self._tokens += len(news.ids)
        index, logprobs = self._index(news), None
        if self.ask.top is not None:
            tops = news.top or [()] * len(news.ids)
            rows = zip(news.ids, news.logps, tops, strict=True)
            begins = index not in self._begun
            tokens = [self._token(number, logp, top, begins and not i) for i, (number, logp, top) in enumerate(rows)]
            logprobs = {"content": tokens, "refusal": None}
        self._begun.add(index)
        return [{"index": index, "text": news.text, "logprobs": logprobs, "finish_reason": news.reason}]

    def chunk(self, part: dict[str, Any]) -> dict[str, Any] | None:
        if not (part["text"] or part["logprobs"] or part["finish_reason"] or "role" in part):
            return None
        delta = {"role": part["role"], "content": ""} if "role" in part else {}
        delta |= {"content": part["text"]} if part["text"] else {}
        rest = {"logprobs": part["logprobs"], "finish_reason": part["finish_reason"]}
        return self._chunked({"index": part["index"], "delta": delta, **rest})

    def _choice(self, made: dict[str, Any]) -> dict[str, Any]:
        message = {"role": "assistant", "content": "".join(made["text"]), "refusal": None}
        rest = {"logprobs": made["logprobs"] or None, "finish_reason": made["finish_reason"]}
        return {"index": made["index"], "message": message, **rest}

    def _token(self, number: int, logp: float, top: Top, begins: bool) -> dict[str, Any]:
        others = [self._spelled(other, logp if other == number else one, begins) for other, one in top]
        return {**self._spelled(number, logp, begins), "top_logprobs": others}

    def _spelled(self, number: int, logp: float, begins: bool) -> dict[str, Any]:
        content = self._texts.bytes(number, begins)
        token = self._texts.text(number, begins)
        return {"token": token, "logprob": finite(logp), "bytes": None if content is None else list(content)}


class CompletionReply(Reply):
    kind, prefix = "text_completion", "cmpl"

    def __init__(self, *arguments: Any):
        super().__init__(*arguments)
        self._offsets: dict[int, Offsets] = {}
        self._continues = [request.continues for request in self.ask.requests]

    def first(self) -> list[dict[str, Any]]:
        if not self.ask.echo:
            return []
        # A prompt that is scored comes with its log-probs. One of a single token has no other log-prob than null.
        waits = [self.ask.scores and len(request.ids) > 1 for request in self.ask.requests]
        return [
            part
            for place, later in enumerate(waits)
            if not later
            for part in self._prompt(place, LogProbs((), 0, True, ()))
        ]

    def parts(self, news: Event | Scored) -> list[dict[str, Any]]:
        if isinstance(news, Scored):
            return self._prompt(news.place, news.log_probs)
        self._tokens += len(news.ids)
        index, logprobs = self._index(news), None
        if self.ask.top is not None:
            if index not in self._offsets:
                self._offsets[index] = self._new_offsets(self._continues[news.request])
            logprobs = self._logprobs(news.ids, news.logps, news.top, self._offsets[index])
        return [{"index": index, "text": news.text, "logprobs": logprobs, "finish_reason": news.reason}]

    def _prompt(self, place: int, scores: LogProbs) -> list[dict[str, Any]]:
        """The prompt, as the beginning of all its choices."""
        ids, text, logprobs = self.ask.requests[place].ids, self.ask.prompts[place], None
        indices = range(place * self.ask.samples, (place + 1) * self.ask.samples)
        if self.ask.top is not None:
            logprobs = self._logprobs(ids, (None, *scores.tokens), ((), *scores.top), self._new_offsets(False))
            for index in indices if self.ask.makes else ():
                self._offsets[index] = self._new_offsets(self._continues[place])
                self._offsets[index].skip(len(text))
        reason = None if self.ask.makes else "length"
        return [{"index": index, "text": text, "logprobs": logprobs, "finish_reason": reason} for index in indices]

    def _new_offsets(self, inside: bool) -> Offsets:
        return Offsets(self._texts, self._detokenizer, inside)

    def _logprobs(
        self, ids: Sequence[int], logps: Sequence[float | None], tops: Sequence[Top], offsets: Offsets
    ) -> dict[str, Any]:
        """`top_logprobs` also holds the token itself. If two alternatives are spelled alike, the better one stays."""
        best = []
        for number, logp, top in zip(ids, logps, tops or [()] * len(ids), strict=True):
            named: dict[str, float] = {} if logp is None else {self._texts.text(number): finite(logp)}
            for other, one in top:
                if other != number:
                    named.setdefault(self._texts.text(other), finite(one))
            best.append(named if logp is not None else None)
        return {
            "tokens": [self._texts.text(number) for number in ids],
            "token_logprobs": [None if logp is None else finite(logp) for logp in logps],
            "top_logprobs": best if self.ask.top else None,
            "text_offset": offsets.push(ids),
        }

    def chunk(self, part: dict[str, Any]) -> dict[str, Any] | None:
        if not (part["text"] or part["logprobs"] or part["finish_reason"]):
            return None
        return self._chunked(part)

    def _choice(self, made: dict[str, Any]) -> dict[str, Any]:
        return {**made, "text": "".join(made["text"]), "logprobs": made["logprobs"] or None}


def finite(logp: float) -> float:
    """Raises ValueError if it is no number: the model is broken."""
    if math.isnan(logp):
        raise ValueError("a log-prob is not a number")
    return max(logp, _LEAST)


def as_json(value: Any) -> bytes:
    """In ASCII: some readers of streams take U+2028 for the end of a line."""
    return json.dumps(value, separators=(",", ":"), allow_nan=False).encode()


def as_event(value: Any) -> bytes:
    return b"data: " + as_json(value) + b"\n\n"


def as_events(chunks: Iterable[dict[str, Any] | None]) -> bytes:
    return b"".join(as_event(chunk) for chunk in chunks if chunk is not None)
