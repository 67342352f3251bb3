"""Pairs that other projects published in columns of their own: one raw record in, one checked `Record` out.

| data set                               | columns that identify its records                          |
|----------------------------------------|------------------------------------------------------------|
| Anthropic/hh-rlhf                      | chosen, rejected: whole transcripts, and no prompt         |
| tasksource/oasst1_pairwise_rlhf_reward | lang, parent_id, prompt, chosen, rejected                  |
| openai/webgpt_comparisons              | question {full_text}, answer_0, answer_1, score_0, score_1 |

They read the same for all kinds of pairs and have no system message. Transcripts mark their own turns, so they need the
template `plain`. The space after the last mark belongs to neither prompt nor response: a sentencepiece tokenizer adds
it before the response, so tokenizing both separately gives the ids of the whole transcript.
"""

import os
from collections.abc import Mapping
from typing import Any

from janus_jax.data.columns import Columns, NoPreferenceError, RecordError, number, shown, text
from janus_jax.data.schema import Record, pair

_TURNS = ("\n\nHuman:", "\n\nAssistant:")
_OASST = ("lang", "parent_id", "prompt", "chosen", "rejected")
_WEBGPT = ("question", "answer_0", "answer_1", "score_0", "score_1")

PUBLISHED_COLUMNS = frozenset((*_OASST, *_WEBGPT))
"""All columns that this module reads, beside those of `schema.COLUMNS_READ`."""


def published_record(raw: Any, kind: str) -> Record | None:
    """The checked record; None if it is from none of these data sets, or `kind` is not a kind of pairs.

    Raises:
        NoPreferenceError: both answers have the same score.
        RecordError: a column has a wrong type or is empty, the two transcripts share no prompt, or the responses are
            equal. The message names column, value and what is allowed.
    """
    if kind == "sft" or not isinstance(raw, Mapping):
        return None
    if all(column in raw for column in _WEBGPT):
        return _webgpt(raw)
    if all(column in raw for column in _OASST) and raw.get("system") is None:
        return _oasst(raw)
    no_prompt = all(raw.get(column) is None for column in ("system", "prompt", "instruction", "input"))
    sides = [raw.get(column) for column in ("chosen", "rejected")]
    if no_prompt and all(isinstance(side, str) and any(turn in side for turn in _TURNS) for side in sides):
        return _transcripts(raw)
    return None


def _transcripts(raw: Mapping[str, Any]) -> Record:
    """The prompt ends with the last start of an assistant's turn in the common prefix of both transcripts."""
    chosen, rejected = (text(raw[column], column) for column in ("chosen", "rejected"))
    mark = _TURNS[1]
    start = os.path.commonprefix([chosen, rejected]).rfind(mark)  # noqa: RUF071 (by character is right here)
    if start < 0:
        raise RecordError(
            "no_shared_prompt",
            f"columns 'chosen' ({shown(chosen)}) and 'rejected' ({shown(rejected)}) have no common prefix up to "
            f"{mark!r}; both must be transcripts that start with the same prompt",
        )
    end = start + len(mark)
    sides = [_after(side[end:], column) for side, column in ((chosen, "chosen"), (rejected, "rejected"))]
    return pair(raw, "", chosen[:end], *sides)


def _after(response: str, column: str) -> str:
    """The text after the last mark, without the one space that the tokenizer adds back."""
    return text(response.removeprefix(" "), f"column {column!r} after its last shared {_TURNS[1]!r}")


def _oasst(raw: Mapping[str, Any]) -> Record:
    """Writes turns exactly as OpenRLHF does: it also replaces marks inside a user's text."""
    prompt, chosen, rejected = (text(raw[column], column) for column in ("prompt", "chosen", "rejected"))
    if not prompt.startswith("prompter:"):
        raise RecordError(
            "bad_prompt",
            f"column 'prompt' must begin with 'prompter:', as all prompts of this data set do; found {shown(prompt)}",
        )
    turns = prompt.replace("prompter:", "\nHuman: ").replace("assistant:", "\nAssistant: ")
    return pair(raw, "", f"{turns}\nAssistant:", chosen, rejected)


def _webgpt(raw: Mapping[str, Any]) -> Record:
    scores = [number(raw[column], column) for column in ("score_0", "score_1")]
    if scores[0] == scores[1]:
        raise NoPreferenceError(
            "tie", f"columns 'score_0' and 'score_1' are both {scores[0]:g}: no answer is preferred"
        )
    question = raw["question"]
    if not isinstance(question, Mapping) or "full_text" not in question:
        raise RecordError("wrong_type", f"column 'question' must be an object with full_text, found {shown(question)}")
    if isinstance(raw, Columns):
        raw.ignore("question", question, ("full_text",))
    prompt = text(question["full_text"], "question.full_text")
    answers = [text(raw[column], column) for column in ("answer_0", "answer_1")]
    better = int(scores[1] > scores[0])
    return pair(raw, "", prompt, answers[better], answers[1 - better])
