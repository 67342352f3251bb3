"""The key `remat`: a word, or names of tensors."""

from typing import Annotated, Any

from pydantic import PlainSerializer, PlainValidator, WithJsonSchema
from pydantic_core import PydanticCustomError

from janus_jax.model.remat import HOST, TENSORS, WORDS, Remat, in_order

_ALLOWED = f"{' | '.join(WORDS)}, or a list of {', '.join(TENSORS)}, each of them or input with {HOST} behind it"


def _remat(value: Any) -> Remat:
    if isinstance(value, str) and value in WORDS:
        return value
    if not isinstance(value, list | tuple):
        raise PydanticCustomError("remat_word", "neither one of these words nor a list")
    try:
        return in_order(value)
    except ValueError as error:
        raise PydanticCustomError("remat", "{text}", {"text": str(error)}) from None


RematKey = Annotated[
    Remat,
    PlainValidator(_remat),
    PlainSerializer(lambda value: value if isinstance(value, str) else list(value)),
    WithJsonSchema({"allowed": _ALLOWED}),
]
