"""Pairs that other projects published in columns of their own: one raw row in, one checked `Record` out.

| data set                               | columns, by which a row is known                           |
|----------------------------------------|------------------------------------------------------------|
| Anthropic/hh-rlhf                      | chosen, rejected: whole transcripts, and no prompt         |
| tasksource/oasst1_pairwise_rlhf_reward | lang, parent_id, prompt, chosen, rejected                  |
| openai/webgpt_comparisons              | question {full_text}, answer_0, answer_1, score_0, score_1 |

They are the same for all kinds of pairs and have no system message. Transcripts mark their turns by themselves and want
the template `plain`. The space that follows the last mark belongs to neither text: a sentencepiece tokenizer puts it
before the response, and the ids, tokenized apart, are those of the whole transcript.
"""

from collections.abc import Mapping
from typing import Any

from janus_jax.data.schema import NoPreferenceError, Record, RecordError, number, pair, shown, text

_TURNS = ("\n\nHuman:", "\n\nAssistant:")
_OASST = ("lang", "parent_id", "prompt", "chosen", "rejected")
_WEBGPT = ("question", "answer_0", "answer_1", "score_0", "score_1")


def published_record(raw: Any, kind: str) -> Record | None:
    """The checked row; None if the row is not of these sets, or `kind` is not one of pairs.

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
    alone = all(raw.get(column) is None for column in ("system", "prompt", "instruction", "input"))
    sides = [raw.get(column) for column in ("chosen", "rejected")]
    if alone and all(isinstance(side, str) and any(turn in side for turn in _TURNS) for side in sides):
        return _transcripts(raw)
    return None


def _transcripts(raw: Mapping[str, Any]) -> Record:
    """The prompt is what both sides say up to the last place where the assistant's turn begins for both."""
    chosen, rejected = (text(raw[column], column) for column in ("chosen", "rejected"))
    mark = _TURNS[1]
    parting = next((i for i, (a, b) in enumerate(zip(chosen, rejected, strict=False)) if a != b), None)
    start = chosen[: min(len(chosen), len(rejected)) if parting is None else parting].rfind(mark)
    if start < 0:
        raise RecordError(
            "no_shared_prompt",
            f"columns 'chosen' ({shown(chosen)}) and 'rejected' ({shown(rejected)}) share no beginning up to "
            f"{mark!r}; both must be transcripts that begin with the same prompt",
        )
    end = start + len(mark)
    sides = [_after(side[end:], column) for side, column in ((chosen, "chosen"), (rejected, "rejected"))]
    return pair(raw, "", chosen[:end], *sides)


def _after(response: str, column: str) -> str:
    """What follows the last mark, without the one space that the tokenizer gives back."""
    return text(response.removeprefix(" "), f"column {column!r} after its last shared {_TURNS[1]!r}")


def _oasst(raw: Mapping[str, Any]) -> Record:
    """As OpenRLHF writes its turns, to the letter: marks within a user's text are replaced too."""
    prompt, chosen, rejected = (text(raw[column], column) for column in ("prompt", "chosen", "rejected"))
    if not prompt.startswith("prompter:"):
        raise RecordError(
            "bad_prompt",
            f"column 'prompt' must begin with 'prompter:', as the turns of this set do; found {shown(prompt)}",
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
    prompt = text(question["full_text"], "question.full_text")
    answers = [text(raw[column], column) for column in ("answer_0", "answer_1")]
    better = int(scores[1] > scores[0])
    return pair(raw, "", prompt, answers[better], answers[1 - better])
