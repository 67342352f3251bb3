"""What a client asks, checked and turned into work for the engine."""

import dataclasses
import secrets
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

from janus_jax.errors import JanusError
from janus_jax.generation.prompts import PromptFormat
from janus_jax.generation.requests import Request, check
from janus_jax.generation.sampling import SamplingOptions
from janus_jax.generation.stopping import StoppingOptions
from janus_jax.model.config import ModelConfig
from janus_jax.serving.bodies import Body, ChatBody, CompletionBody, Message, read
from janus_jax.serving.refusals import Refusal, shown

_MOST_LOG_PROBS = 1 << 18
"""Log-probs, alternatives included, that one response may hold."""
_COMPLETION_TOKENS = 16
"""`max_tokens` of a completion that names none, as OpenAI has it."""

T = TypeVar("T")


@dataclasses.dataclass(frozen=True)
class Served:
    """What the server says of its model."""

    name: str
    config: ModelConfig
    written: PromptFormat
    window: int
    """Tokens that prompt and answer may have together."""
    most_texts: int
    """Texts that it takes at the same time."""


@dataclasses.dataclass(frozen=True)
class Ask:
    """The work of one HTTP request."""

    requests: tuple[Request, ...]
    """One for each prompt, also if nothing is to be made (`makes`)."""
    makes: bool
    scores: bool
    """Whether log-probs of the prompts are asked for."""
    top: int | None
    """Most probable ids beside the log-prob of each token; None: no log-probs."""
    stream: bool
    usage: bool
    """Whether a stream ends with the count of tokens."""
    echo: bool = False
    prompts: tuple[str, ...] = ()
    """With `echo`: texts of the prompts."""

    @property
    def samples(self) -> int:
        return self.requests[0].samples

    @property
    def texts(self) -> int:
        """Texts to make, and prompts to score."""
        return self.samples * len(self.requests) * self.makes + len(self.requests) * self.scores


def chat(content: bytes, served: Served) -> Ask:
    """Reads the body of /v1/chat/completions.

    Raises:
        Refusal: it cannot be answered.
    """
    body = read(ChatBody, content)
    _require_common(body, served)
    if body.top_logprobs is not None and not body.logprobs:
        raise Refusal("top_logprobs: needs logprobs = true", param="top_logprobs")
    limits = {value for value in (body.max_tokens, body.max_completion_tokens) if value is not None}
    if len(limits) > 1:
        raise Refusal("max_tokens and max_completion_tokens differ; keep one", param="max_completion_tokens")
    messages = [_message(number, one) for number, one in enumerate(body.messages)]
    ids = _checked("messages", lambda: served.written.encode(messages))
    named = "max_completion_tokens" if body.max_tokens is None else "max_tokens"
    limit = _limit(served, "messages", ids, next(iter(limits), None), named)
    top = (body.top_logprobs or 0) if body.logprobs else None
    return _ask(body, served, [ids], limit, top, named)


def completion(content: bytes, served: Served) -> Ask:
    """Reads the body of /v1/completions.

    Raises:
        Refusal: it cannot be answered.
    """
    body = read(CompletionBody, content)
    _require_common(body, served)
    if body.best_of not in (None, body.n):
        raise Refusal(f"best_of = {body.best_of}: is not supported; allowed: n ({body.n})", param="best_of")
    written, prompts, given = served.written, [], _prompts(body.prompt)
    most = body.max_tokens if body.max_tokens is not None else _COMPLETION_TOKENS
    if most == 0 and not body.echo:
        raise Refusal("max_tokens = 0: needs echo = true; allowed: at least 1", param="max_tokens")
    for number, prompt in enumerate(given):
        encode = written.encode_text if body.add_special_tokens else written.tokenizer.encode
        ids = prompt if isinstance(prompt, list) else _checked("prompt", lambda p=prompt, e=encode: e(p))
        name = f"prompt.{number}" if len(given) > 1 else "prompt"
        prompts.append((ids, _limit(served, name, ids, most, "max_tokens")))
    ask = _ask(body, served, [ids for ids, _ in prompts], most, body.logprobs, "max_tokens")
    texts = tuple(written.decode([i for i in ids if i < written.tokenizer.vocab_size]) for ids, _ in prompts)
    requests = (
        dataclasses.replace(request, continues=text != "") for request, text in zip(ask.requests, texts, strict=True)
    )
    scores = body.echo and body.logprobs is not None
    return dataclasses.replace(
        ask, requests=tuple(requests), makes=most > 0, scores=scores, echo=body.echo, prompts=texts
    )


def _require_common(body: Body, served: Served) -> None:
    if body.model not in (None, served.name):
        what = f"model = {shown(body.model)}: is not served here; allowed: {served.name!r}"
        raise Refusal(what, 404, param="model", code="model_not_found")
    if body.stream_options is not None and not body.stream:
        raise Refusal("stream_options: needs stream = true", param="stream_options")


def _message(number: int, message: Message) -> dict[str, str]:
    name, content = f"messages.{number}.content", message.content
    if isinstance(content, list):
        for place, part in enumerate(content):
            fits = isinstance(part, dict) and part.keys() == {"type", "text"} and part["type"] == "text"
            if not fits or not isinstance(part["text"], str):
                what = f'{name}.{place} = {shown(part)}: allowed: {{"type": "text", "text": TEXT}}'
                raise Refusal(what, param=f"{name}.{place}")
        content = "".join(part["text"] for part in content)
    if not isinstance(content, str):
        raise Refusal(f"{name} = {shown(content)}: should be a text, or a list of parts with texts", param=name)
    if not content and message.role == "user":
        raise Refusal(f"{name}: is empty; a message of the user holds a text", param=name)
    role = "system" if message.role == "developer" else message.role
    return {"role": role, "content": content}


def _prompts(prompt: Any) -> list[str | list[int]]:
    """The prompts of a body, each a text or ids."""
    allowed = "allowed: a text, a list of texts, a list of ids, or a list of lists of ids; none of them empty"
    values = prompt if isinstance(prompt, list) else [prompt]
    if isinstance(prompt, list) and _are_ids(values):
        return [values]
    good = all(isinstance(one, str) for one in values) or all(isinstance(one, list) and _are_ids(one) for one in values)
    if not values or not good:
        raise Refusal(f"prompt = {shown(prompt)}: {allowed}", param="prompt")
    return values


def _are_ids(values: Sequence[Any]) -> bool:
    return bool(values) and all(type(one) is int for one in values)


def _limit(served: Served, name: str, ids: Sequence[int], most: int | None, param: str) -> int:
    """Tokens that an answer may have."""
    room = served.window - len(ids)
    if room < (1 if most is None else min(1, most)):
        allowed = f"at most {served.window - (most != 0):,} (the window is {served.window:,})"
        what = f"{name}: has {len(ids):,} tokens; allowed: {allowed}"
        raise Refusal(what, param=name.partition(".")[0], code="context_length_exceeded")
    if most is not None and most > room:
        what = f"{param} = {most:,}: {name} has {len(ids):,} tokens and the window is {served.window:,}"
        raise Refusal(f"{what}; allowed: at most {room:,}", param=param, code="context_length_exceeded")
    return room if most is None else most


def _ask(body: Body, served: Served, prompts: Sequence[list[int]], limit: int, top: int | None, param: str) -> Ask:
    """An ask whose tokens and options the engine takes."""
    if (texts := body.n * len(prompts)) > served.most_texts:
        what = f"asks for {texts:,} texts at once; allowed: at most {served.most_texts:,}"
        raise Refusal(what, param="n" if body.n > 1 else "prompt")
    tokens = (sum(map(len, prompts)) if isinstance(body, CompletionBody) and body.echo else 0) + texts * limit
    if top is not None and tokens * (1 + top) > _MOST_LOG_PROBS:
        what = f"asks for up to {tokens * (1 + top):,} log-probs; allowed: at most {_MOST_LOG_PROBS:,}"
        raise Refusal(f"{what} (lower {param}, n, or the number of alternatives)", param=param)
    if limit < body.min_tokens:
        raise Refusal(f"min_tokens = {body.min_tokens}: allowed: 0 to {limit} ({param})", param="min_tokens")
    stopping = _checked("stop", lambda: StoppingOptions(max(1, limit), body.min_tokens, body.stop, body.stop_token_ids))
    _checked("stop_token_ids", lambda: stopping.require_ids_below(served.config.vocab_size))
    options = (body.temperature, max(0, body.top_k), body.top_p, body.min_p, body.repetition_penalty)
    sampling = _checked("temperature", lambda: SamplingOptions(*options))
    seed = secrets.randbits(63) if body.seed is None else body.seed
    requests = [
        Request(ids, body.n, stopping, sampling, seed, top=top or 0, name=number) for number, ids in enumerate(prompts)
    ]
    longest = dataclasses.replace(served.config, max_position_embeddings=served.window + 1)
    for request in requests:
        _checked("prompt", lambda r=request: check(longest, "prompt", r))
    usage = body.stream_options is not None and body.stream_options.include_usage
    return Ask(tuple(requests), True, False, top, body.stream, usage)


def _checked(param: str, work: Callable[[], T]) -> T:
    """The result of work that raises an error of janus_jax for bad input."""
    try:
        return work()
    except JanusError as error:
        text = str(error)
        raise Refusal(text if text.startswith(param) else f"{param}: {text}", param=param) from error
