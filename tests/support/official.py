"""Questions of official tools, the schemas of their files of answers, and an engine without a model."""

import json
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import jsonschema

from janus_jax.generation.engine import Engine
from janus_jax.generation.requests import Event, Request

SCHEMAS = Path(__file__).parents[1] / "evaluation" / "official" / "schemas"


def alpaca_question(number: int, **changes: Any) -> dict[str, Any]:
    """As AlpacaEval's evaluation set has them, with the answer of the reference model."""
    reference = {"output": f"Reference {number}.", "generator": "reference-model"}
    return _row({"instruction": f"Instruction {number}?", "dataset": "koala", **reference, **changes})


def mt_question(number: int, category: str = "writing", **changes: Any) -> dict[str, Any]:
    """As fschat's question.jsonl has them."""
    turns = [f"First {number}?", f"Second {number}?"]
    return _row({"question_id": number, "category": category, "turns": turns, **changes})


def arena_question(number: int, **changes: Any) -> dict[str, Any]:
    """As Arena-Hard-Auto's question.jsonl has them, v0.1."""
    category = {"category": "arena-hard-v0.1", "cluster": "Things"}
    return _row({"uid": f"{number:032x}", **category, "prompt": f"Prompt {number}?", **changes})


QUESTIONS = {"alpaca_eval": alpaca_question, "mt_bench": mt_question, "arena_hard": arena_question}


def _row(row: dict[str, Any]) -> dict[str, Any]:
    """A column that is None is left out."""
    return {name: value for name, value in row.items() if value is not None}


def write_questions(path: Path, rows: list[Any]) -> Path:
    """A JSON list for .json, otherwise JSONL."""
    lines = "".join(json.dumps(row) + "\n" for row in rows)
    path.write_text(json.dumps(rows) if path.suffix == ".json" else lines)
    return path


def read_answers(tool: str, path: Path) -> list[dict[str, Any]]:
    """The lines of a file of answers, after a look at its schema."""
    text = path.read_text(encoding="ascii")
    rows = json.loads(text) if path.suffix == ".json" else [json.loads(line) for line in text.splitlines()]
    schema = jsonschema.Draft202012Validator(json.loads((SCHEMAS / f"{tool}.json").read_text()))
    for value in [rows] if path.suffix == ".json" else rows:
        schema.validate(value)
    return rows


class ScriptedEngine(Engine):
    """Answers at once, with what `script` says to a request.

    Args:
        config: of the model.
    """

    def __init__(self, config: Any, script: Callable[[Request], str]):  # without those of an engine
        self.config, self.steps_per_call, self.notes = config, 16, []
        self.asked: list[Request] = []
        self._script = script

    def generate(self, requests: Iterable[Request], *, length: int = 0) -> Iterator[Event]:
        for place, request in enumerate(requests):
            assert len(request.ids) < self.config.max_position_embeddings and length
            self.asked.append(request)
            yield Event(place, 0, (1, 2), (0.0, 0.0), self._script(request), "stop")


def export_scripted(
    tool: str, model: Path, questions: Path, out: Path, script: Callable[[Request], str], *, reference: bool = False
) -> None:
    """The files of `janus bench export` for a model named `mine` that says what `script` says."""
    from janus_jax.evaluation.official import TOOLS, export
    from janus_jax.evaluation.official.questions import read_questions
    from janus_jax.evaluation.official.systems import read_systems
    from janus_jax.generation.sampling import SamplingOptions
    from janus_jax.generation.stopping import StoppingOptions

    class Scripted(export.Export):
        def _open(self) -> Engine:
            return ScriptedEngine(self._model.config, script)

    def read(_: Any) -> list[Any]:
        return read_questions(questions, TOOLS[tool].read, same=TOOLS[tool].same)

    options = export.ExportOptions(SamplingOptions(), True, StoppingOptions(8), reference=reference)
    systems = read_systems(["default"])
    Scripted(TOOLS[tool], str(model), read, out, systems, options, name="mine", tell=lambda _: None).write()
