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
from janus_jax.text.template import Template
from janus_jax.text.tokenizer import Tokenizer

Boundary = Literal["separate", "joint"]

BOUNDARIES: tuple[Boundary, ...] = get_args(Boundary)


def check_boundary(boundary: str) -> None:
    """Raises DataError for a token boundary that is not in BOUNDARIES."""
    if boundary not in BOUNDARIES:
        raise DataError(f"boundary {boundary!r}: unknown; allowed: {', '.join(BOUNDARIES)}")


def encode_prompt(template: Template, tokenizer: Tokenizer, system: str, instruction: str) -> np.ndarray:
    """[n] int32 ids of the prompt, BOS first (if the tokenizer has one)."""
    bos = [] if tokenizer.bos_id is None else [tokenizer.bos_id]
    return np.asarray(bos + tokenizer.encode(template.prompt_text(system, instruction)), np.int32)


def encode_response(template: Template, tokenizer: Tokenizer, response: str) -> np.ndarray:
    """[m] int32 ids of the response, EOS last."""
    return np.asarray([*tokenizer.encode(template.response_text(response)), tokenizer.eos_id], np.int32)


def encode_example(
    template: Template, tokenizer: Tokenizer, record: Record, kind: str, boundary: Boundary = "separate"
) -> tuple[np.ndarray, np.ndarray, np.ndarray | None]:
    """Ids of a record: prompt [n], chosen [c] (the response, for sft), rejected [r] or None (sft); all int32.

    The prompt of a reward-model record (kind rm) already joins system message and instruction.
    """
    check_kind(kind)
    check_boundary(boundary)
    if kind != "sft" and record.rejected is None:
        raise DataError(f"kind {kind} needs a rejected response, but the record has none")
    texts = [record.chosen] if kind == "sft" or record.rejected is None else [record.chosen, record.rejected]
    prompt = encode_prompt(template, tokenizer, record.system, record.prompt)
    if boundary == "separate":
        responses = [encode_response(template, tokenizer, text) for text in texts]
    else:
        prompt, responses = _encode_joint(template, tokenizer, record, prompt, texts)
    if not len(prompt):  # possible without BOS; no slot would predict the response's first token
        text = template.prompt_text(record.system, record.prompt)
        raise DataError(f"the tokenizer turns the prompt {text[:40]!r} into no tokens; at least one is needed")
    return prompt, responses[0], responses[1] if len(responses) == 2 else None


def _encode_joint(
    template: Template, tokenizer: Tokenizer, record: Record, alone: np.ndarray, texts: list[str]
) -> tuple[np.ndarray, list[np.ndarray]]:
    """Prompt and responses, cut from the ids of prompt + response.

    The prompt is the longest common prefix of `alone` (the ids of the prompt by itself) and the ids of each prompt +
    response. So both responses of a pair share it, and it contains nothing of a response. TRL 0.8.6 goes back by at
    most one token; the result is the same wherever at most one token of the prompt merges with a response.
    """
    form = template.prompt_text(record.system, record.prompt)
    bos = [] if tokenizer.bos_id is None else [tokenizer.bos_id]
    wholes = [
        np.asarray([*bos, *tokenizer.encode(form + template.response_text(text)), tokenizer.eos_id], np.int32)
        for text in texts
    ]
    shared = len(alone)
    for whole in wholes:
        length = min(shared, len(whole) - 1)  # EOS never belongs to the prompt
        differ = np.flatnonzero(alone[:length] != whole[:length])
        shared = int(differ[0]) if len(differ) else length
    if not shared:
        raise DataError(f"boundary joint: the tokenizer merges all of the prompt {form[:40]!r} with its response")
    return alone[:shared], [whole[shared:] for whole in wholes]
