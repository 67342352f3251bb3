"""Pairs that other projects published in columns of their own: one raw record in, one checked `Record` out.

| data set                               | columns that identify its records                                |
|----------------------------------------|------------------------------------------------------------------|
| Anthropic/hh-rlhf                      | chosen, rejected: whole transcripts, and no prompt               |
| tasksource/oasst1_pairwise_rlhf_reward | lang, parent_id, prompt, chosen, rejected                        |
| openai/webgpt_comparisons              | question {full_text}, answer_0, answer_1, score_0, score_1       |
| berkeley-nest/Nectar                   | prompt (a transcript), answers [{answer, rank}]                  |
| openbmb/UltraFeedback                  | instruction, completions [{response, overall_score}]             |
| nvidia/HelpSteer2, preference          | prompt, response_1, response_2, preference_strength (-3 to 3)    |
| nvidia/HelpSteer3, preference          | context (messages), response1, response2, overall_preference     |

They read the same for all kinds of pairs and have no system message, but HelpSteer3 may. Of several answers, the best
is chosen and the worst rejected. Transcripts mark their own turns, so they need the template `plain`. The space after
the last mark belongs to neither prompt nor response: a sentencepiece tokenizer adds it before the response, so
tokenizing both separately gives the ids of the whole transcript.
"""

import os
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from janus_jax.data.columns import Columns, NoPreferenceError, RecordError, number, shown, text
from janus_jax.data.messages import read_messages
from janus_jax.data.schema import Record, pair

_RATED = ("prompt", "response", "helpfulness", "correctness")
"""Columns of HelpSteer2's main files, which hold no pairs."""
_TURNS = ("\n\nHuman:", "\n\nAssistant:")


def published_record(raw: Any, kind: str) -> Record | None:
    """The checked record; None if it is from none of these data sets, or `kind` is not a kind of pairs.

    Raises:
        NoPreferenceError: all answers have the same score.
        RecordError: a column has a wrong type or is empty, the two transcripts share no prompt, or the responses are
            equal. The message names column, value and what is allowed.
    """
    if kind == "sft" or not isinstance(raw, Mapping):
        return None
    for columns, read in _SETS.items():
        if all(column in raw for column in columns) and (read is not _oasst or raw.get("system") is None):
            return read(raw if isinstance(raw, Columns) else Columns(raw))
    if all(column in raw for column in _RATED) and not any(column in raw for column in ("chosen", "chosen_response")):
        what = f"has columns {', '.join(_RATED)}: single responses with scores, as in the main files of HelpSteer2"
        raise RecordError("missing_field", f"{what}; pairs come from the preference files of that set")
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


def _webgpt(raw: Columns) -> Record:
    question = raw["question"]
    if not isinstance(question, Mapping) or "full_text" not in question:
        raise RecordError("wrong_type", f"column 'question' must be an object with full_text, found {shown(question)}")
    raw.ignore("question", question, ("full_text",))
    prompt = text(question["full_text"], "question.full_text")
    return _two(raw, prompt, ("answer_0", "answer_1"), ("score_0", "score_1"))


def _nectar(raw: Columns) -> Record:
    """Answers with ranks, of which 1 is the best. As in hh-rlhf, the prompt is a transcript."""
    answers = _list(raw, "answers", ("answer", "rank"))
    ranks = [-number(one["rank"], f"answers[{place}].rank") for place, one in enumerate(answers)]
    best, worst = _ends(ranks, "column 'answers' has the same rank everywhere")
    sides = [text(answers[place]["answer"], f"answers[{place}].answer").removeprefix(" ") for place in (best, worst)]
    prompt = text(raw["prompt"], "prompt").rstrip(" ")
    if not (prompt.startswith(_TURNS[0]) and prompt.endswith(_TURNS[1])):
        allowed = f"column 'prompt' must be a transcript from {_TURNS[0]!r} to {_TURNS[1]!r}"
        raise RecordError("bad_prompt", f"{allowed}; found {shown(prompt)}")
    return pair(raw, "", prompt, *sides)


def _ultrafeedback(raw: Columns) -> Record:
    answers = _list(raw, "completions", ("response", "overall_score"))
    scores = [number(one["overall_score"], f"completions[{place}].overall_score") for place, one in enumerate(answers)]
    best, worst = _ends(scores, "column 'completions' has the same overall_score everywhere")
    sides = [text(answers[place]["response"], f"completions[{place}].response") for place in (best, worst)]
    return pair(raw, "", text(raw["instruction"], "instruction"), *sides, gap=scores[best] - scores[worst])


def _helpsteer2(raw: Columns) -> Record:
    prompt = text(raw["prompt"], "prompt")
    if "<extra_id_1>" in prompt:  # the mark of a turn
        what = f"column 'prompt' is a conversation ({shown(prompt)}); a record is one exchange"
        raise RecordError("several_exchanges", what)
    return _stronger(raw, "", prompt, ("response_1", "response_2"), "preference_strength")


def _helpsteer3(raw: Columns) -> Record:
    asked = read_messages(raw, "context", "user")
    names = ("response1", "response2")
    return _stronger(raw, asked.get("system", ""), asked["user"], names, "overall_preference")


def _stronger(raw: Columns, system: str, prompt: str, names: Sequence[str], column: str) -> Record:
    """A pair of two answers and a preference: negative for the first one, positive for the second."""
    if not (strength := number(raw[column], column)):
        raise NoPreferenceError("tie", f"column {column!r} is 0: no answer is preferred")
    if abs(strength) > 3:
        raise RecordError("wrong_type", f"column {column!r} = {strength:g}: allowed: -3 to 3")
    answers = [text(raw[name], name) for name in names]
    better = int(strength > 0)
    return pair(raw, system, prompt, answers[better], answers[1 - better], gap=abs(strength))


def _two(raw: Columns, prompt: str, names: Sequence[str], scores: Sequence[str]) -> Record:
    values = [number(raw[name], name) for name in scores]
    tie = f"columns {' and '.join(map(repr, scores))} are both {values[0]:g}: no answer is preferred"
    best, worst = _ends(values, tie)
    answers = [text(raw[name], name) for name in names]
    return pair(raw, "", prompt, answers[best], answers[worst], gap=values[best] - values[worst])


def _ends(scores: Sequence[float], tie: str) -> tuple[int, int]:
    """Places of the best and the worst; of equal ones the first."""
    if len(set(scores)) < 2:
        raise NoPreferenceError("tie", tie)
    return scores.index(max(scores)), scores.index(min(scores))


def _list(raw: Columns, column: str, keys: Sequence[str]) -> list[Mapping[str, Any]]:
    value = raw[column]
    if not isinstance(value, list) or len(value) < 2:
        raise RecordError(
            "wrong_type", f"column {column!r} must be a list of two answers or more, found {shown(value)}"
        )
    for place, one in enumerate(value):
        if not isinstance(one, Mapping) or any(key not in one for key in keys):
            what = f"{column}[{place}] must be an object with {' and '.join(keys)}, found {shown(one)}"
            raise RecordError("wrong_type", what)
        raw.ignore(column, one, tuple(keys))
    return value


_SETS: dict[tuple[str, ...], Callable[[Columns], Record]] = {
    ("question", "answer_0", "answer_1", "score_0", "score_1"): _webgpt,
    ("lang", "parent_id", "prompt", "chosen", "rejected"): _oasst,
    ("prompt", "answers", "num_responses"): _nectar,
    ("instruction", "completions"): _ultrafeedback,
    ("prompt", "response_1", "response_2", "preference_strength"): _helpsteer2,
    ("context", "response1", "response2", "overall_preference"): _helpsteer3,
}
"""Columns that identify a data set -> what reads its records."""

PUBLISHED_COLUMNS = frozenset(column for columns in _SETS for column in columns)
"""All columns that this module reads, beside those of `schema.COLUMNS_READ`."""
