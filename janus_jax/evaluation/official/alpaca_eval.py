"""AlpacaEval: one instruction, one answer; the judge compares it with that of a reference model."""

import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from janus_jax.data.columns import Columns, RecordError, text
from janus_jax.evaluation.official.questions import Question, required_text
from janus_jax.evaluation.official.tool import Answered, Tool


def _read(columns: Columns, place: str) -> Question:
    instruction = required_text(columns, "instruction")
    if columns.has("input"):
        raise RecordError("extra_field", "has column 'input', which AlpacaEval 2 does not show; move it to instruction")
    kept = {"dataset": text(columns["dataset"], "dataset")} if columns.has("dataset") else {}
    reference = None
    if columns.has("output"):
        model = text(columns["generator"], "generator") if columns.has("generator") else "reference"
        output = text(columns["output"], "output")
        reference = {"instruction": instruction, "output": output, "generator": model, **kept}
    return Question(instruction, (instruction,), kept=kept, reference=reference, place=place)


def _write(name: str, answered: Sequence[Answered]) -> str:
    return _list(
        {"instruction": one.question.turns[0], "output": one.answers[0], "generator": name, **one.question.kept}
        for one in answered
    )


def _list(records: Iterable[Any]) -> str:
    return json.dumps(list(records), indent=1) + "\n"


ALPACA_EVAL = Tool(
    "alpaca_eval",
    "alpaca_eval 0.6.6",
    _read,
    # The tool writes what it finds beside the answers, so each model has a directory of its own.
    lambda out, name: out / name / "model_outputs.json",
    _write,
    references=(Path("reference_outputs.json"), _list),
    same=("dataset",),
    turns=1,
    # As the tool's own entry of Mistral 7B Instruct v0.2.
    temperature=0.7,
    max_new_tokens=4096,
)
