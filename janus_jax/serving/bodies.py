"""The bodies of requests: JSON, its fields and their types. Nothing that a client gave is dropped in silence."""

import json
import re
from typing import Annotated, Any, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from janus_jax.generation.requests import MOST_TOP
from janus_jax.serving.refusals import Refusal, shown
from janus_jax.storage.json_text import json_fault, strict_json

IGNORED = frozenset(
    "user store metadata service_tier safety_identifier parallel_tool_calls prompt_cache_key"
    " prompt_cache_retention".split()
)
"""Fields of OpenAI that cannot change an answer of this server."""

_NEUTRAL: dict[str, tuple[Any, ...]] = {
    "presence_penalty": (0,),
    "frequency_penalty": (0,),
    "logit_bias": ({},),
    "suffix": ("",),
    "tools": ([],),
    "functions": ([],),
    "tool_choice": ("none", "auto"),
    "function_call": ("none", "auto"),
    "response_format": ({"type": "text"},),
    "modalities": (["text"],),
}
"""Fields that are not supported -> the values that change nothing, which are allowed."""

_SUBJECT = re.compile(r"^\w+ should")
_MOST_SAMPLES = 128
_Whole = Annotated[int, Field(ge=0, lt=2**31)]
_Stop = Annotated[list[Annotated[str, Field(min_length=1, max_length=1000)]], Field(max_length=16)]


class StreamOptions(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)

    include_usage: bool = False
    include_obfuscation: bool = False  # changes no answer: OpenAI fills chunks up with it


class Body(BaseModel):
    """What both endpoints take."""

    model_config = ConfigDict(extra="forbid", strict=True, protected_namespaces=())

    model: str | None = None
    stream: bool = False
    stream_options: StreamOptions | None = None
    n: Annotated[int, Field(ge=1, le=_MOST_SAMPLES)] = 1
    stop: _Stop = []
    stop_token_ids: Annotated[list[_Whole], Field(max_length=16)] = []
    seed: Annotated[int, Field(ge=-(2**63), lt=2**63)] | None = None
    max_tokens: _Whole | None = None
    min_tokens: _Whole = 0
    temperature: Annotated[float, Field(ge=0, le=1e6)] = 1.0
    top_p: Annotated[float, Field(ge=0, le=1)] = 1.0
    top_k: Annotated[int, Field(ge=-1, lt=2**31)] = 0
    min_p: Annotated[float, Field(ge=0, le=1)] = 0.0
    repetition_penalty: Annotated[float, Field(ge=1e-6, le=1e6)] = 1.0


class Message(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)

    role: Literal["system", "developer", "user", "assistant"]
    content: Any = ""
    """A text, or a list of parts that hold texts."""


class ChatBody(Body):
    messages: Annotated[list[Message], Field(min_length=1)]
    max_completion_tokens: _Whole | None = None
    logprobs: bool = False
    top_logprobs: Annotated[int, Field(ge=0, le=MOST_TOP)] | None = None


class CompletionBody(Body):
    prompt: Any
    """A text, ids, or a list of either."""
    echo: bool = False
    logprobs: Annotated[int, Field(ge=0, le=MOST_TOP)] | None = None
    best_of: int | None = None
    add_special_tokens: bool = True


_Kind = TypeVar("_Kind", bound=Body)


def read(kind: type[_Kind], content: bytes) -> _Kind:
    """The fields of a body; `null` is a field that is not given.

    Raises:
        Refusal: it is no JSON object, or a field is unknown, not supported, or has a value that is not allowed.
    """
    fields = _object(content)
    for name, value in list(fields.items()):
        if name in IGNORED:
            del fields[name]
        elif name in _NEUTRAL and name not in kind.model_fields:
            if value not in _NEUTRAL[name] or isinstance(value, bool):
                allowed = " or ".join(json.dumps(one) for one in _NEUTRAL[name])
                raise Refusal(f"{name} = {shown(value)}: is not supported; allowed: {allowed}", param=name)
            del fields[name]
    if isinstance(fields.get("stop"), str):
        fields["stop"] = [fields["stop"]]
    try:
        return kind.model_validate(fields)
    except ValidationError as error:
        raise _refusal(error, kind) from None


def _object(content: bytes) -> dict[str, Any]:
    try:
        text = content.decode("utf-8")
    except UnicodeDecodeError as error:
        at = f"byte 0x{content[error.start]:02x} at position {error.start + 1}"
        raise Refusal(f"the body is not UTF-8: {at}") from None
    try:
        value = _given(strict_json(text))
        json.dumps(value, ensure_ascii=False, allow_nan=False).encode()
    except UnicodeEncodeError:
        raise Refusal("the body holds half a surrogate pair (\\ud800 to \\udfff), which is no character") from None
    except json.JSONDecodeError as error:
        raise Refusal(f"the body is {json_fault(error)}") from None
    except (ValueError, RecursionError) as error:
        what = "is nested too deeply" if isinstance(error, RecursionError) else f"{error}"[:200]
        raise Refusal(f"the body cannot be read as JSON: {what}") from None
    if not isinstance(value, dict):
        raise Refusal(f"the body is {shown(value)}; allowed: a JSON object")
    return value


def _given(value: Any) -> Any:
    """Without fields that are null: OpenAI takes them for fields that are not given."""
    if isinstance(value, dict):
        return {name: _given(one) for name, one in value.items() if one is not None}
    return [_given(one) for one in value] if isinstance(value, list) else value


def _refusal(error: ValidationError, kind: type[Body]) -> Refusal:
    first = error.errors(include_url=False)[0]
    name = ".".join(map(str, first["loc"]))[:100]
    what = {"extra_forbidden": "is no field that this server knows; leave it out", "missing": "is required"}.get(
        first["type"]
    )
    if what is None:
        what = f"= {shown(first['input'])}: {_SUBJECT.sub('should', first['msg'])}"
        return Refusal(f"{name} {what}", param=name)
    return Refusal(f"{name}: {what}", param=name)
