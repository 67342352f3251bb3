"""Token ids of an example, and the token boundary: where its prompt ends and a response begins.

- `separate`: prompt and response are tokenized separately. With a sentencepiece model that adds a leading space mark,
  the response starts with the first token of `[/INST] response`.
- `joint`: prompt and response are tokenized as one text, without a space between them. The response starts with the
  first token of `[/INST]response`; where a piece spans the boundary, the prompt ends before that piece.

BOS stands once at the start of the prompt, EOS at the end of each response, both as ids.
"""

from typing import Literal, get_args

import numpy as np

from janus_jax.data.schema import Record, check_kind
from janus_jax.errors import DataError
from janus_jax.text.chat_format import ChatFormat

Boundary = Literal["separate", "joint"]

BOUNDARIES: tuple[Boundary, ...] = get_args(Boundary)


class PromptError(DataError):
    """No token of a prompt is left."""


def check_boundary(boundary: str) -> None:
    """Raises DataError for a token boundary that is not in BOUNDARIES."""
    if boundary not in BOUNDARIES:
        raise DataError(f"boundary {boundary!r}: unknown; allowed: {', '.join(BOUNDARIES)}")


def encode_example(chat: ChatFormat, record: Record, kind: str) -> tuple[np.ndarray, np.ndarray, np.ndarray | None]:
    """Ids of a record: prompt [n], chosen [c] (the response, for sft), rejected [r] or None (sft); all int32.

    The prompt of a reward-model record (kind rm) already joins system message and instruction.

    Raises:
        DataError: no token of the prompt is left, or the record lacks a response.
    """
    check_kind(kind)
    check_boundary(chat.boundary)
    if kind != "sft" and record.rejected is None:
        raise DataError(f"kind {kind} needs a rejected response, but the record has none")
    texts = [record.chosen] if kind == "sft" or record.rejected is None else [record.chosen, record.rejected]
    prompt = np.asarray(chat.encode_prompt(record.system, record.prompt), np.int32)
    if chat.boundary == "separate":
        responses = [np.asarray(chat.encode_response(text), np.int32) for text in texts]
    else:
        prompt, responses = _encode_joint(chat, record, prompt, texts)
    if not len(prompt):  # possible without BOS; no slot would predict the response's first token
        text = chat.text(record.system, record.prompt)
        raise PromptError(f"the tokenizer turns the prompt {text[:40]!r} into no tokens; at least one is needed")
    return prompt, responses[0], responses[1] if len(responses) == 2 else None


def _encode_joint(
    chat: ChatFormat, record: Record, alone: np.ndarray, texts: list[str]
) -> tuple[np.ndarray, list[np.ndarray]]:
    """Prompt and responses, cut from the ids of prompt + response.

    The prompt is the longest common prefix of `alone` (the ids of the prompt by itself) and the ids of each prompt +
    response. So both responses of a pair share it, and it contains nothing of a response. TRL 0.8.6 goes back by at
    most one token; the result is the same wherever at most one token of the prompt merges with a response.
    """
    wholes = [np.asarray(chat.encode_whole(record.system, record.prompt, text), np.int32) for text in texts]
    shared = len(alone)
    for whole in wholes:
        length = min(shared, len(whole) - 1)  # EOS never belongs to the prompt
        differ = np.flatnonzero(alone[:length] != whole[:length])
        shared = int(differ[0]) if len(differ) else length
    if not shared:
        text = chat.text(record.system, record.prompt)
        raise PromptError(f"boundary joint: the tokenizer merges all of the prompt {text[:40]!r} with its response")
    return alone[:shared], [whole[shared:] for whole in wholes]
