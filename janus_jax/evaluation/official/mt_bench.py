"""MT-Bench: two turns, of which the second follows the answer to the first; the judge scores both from 1 to 10."""

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from janus_jax.data.columns import Columns, RecordError, shown
from janus_jax.evaluation.official.questions import Question, required, required_text, texts
from janus_jax.evaluation.official.tool import Answered, Tool, answer_id, lines

_JUDGE = "gpt-4"
"""The judge whose references these are: fschat reads reference_answer/JUDGE.jsonl."""


def _read(columns: Columns, place: str) -> Question:
    number = required(columns, "question_id")
    if isinstance(number, bool) or not isinstance(number, int):
        raise RecordError("wrong_type", f"column 'question_id' must be a whole number, found {shown(number)}")
    turns = texts(required(columns, "turns"), "turns", 2)
    category, reference = required_text(columns, "category"), None
    if columns.has("reference"):
        answers = texts(columns["reference"], "reference", 2, may_be_empty=True)  # one of the official ones is
        reference = _record(number, f"{_JUDGE}-{number}", _JUDGE, answers, 0.0)
    return Question(number, turns, category, reference=reference, place=place)


def _record(number: Any, name: str, model: str, turns: Sequence[str], time: float) -> Mapping[str, Any]:
    choices = [{"index": 0, "turns": list(turns)}]
    return {"question_id": number, "answer_id": name, "model_id": model, "choices": choices, "tstamp": time}


def _write(name: str, answered: Iterable[Answered]) -> str:
    return lines(
        _record(one.question.id, answer_id(name, one), name, [text.strip() for text in one.answers], one.time)
        for one in sorted(answered, key=lambda one: one.question.id)
    )


MT_BENCH = Tool(
    "mt_bench",
    "fschat 0.2.36",
    _read,
    lambda out, name: out / "model_answer" / f"{name}.jsonl",
    _write,
    references=(Path("reference_answer", f"{_JUDGE}.jsonl"), lines),
    same=(),
    turns=2,
    # Those of fastchat.llm_judge; other categories have 0.7.
    temperature=0.7,
    max_new_tokens=1024,
    temperatures={
        "writing": 0.7,
        "roleplay": 0.7,
        "extraction": 0.0,
        "math": 0.0,
        "coding": 0.0,
        "reasoning": 0.0,
        "stem": 0.1,
        "humanities": 0.1,
        "arena-hard-200": 0.0,
    },
)
