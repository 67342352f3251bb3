"""Run directories, tables and answers for a report, written by hand."""

import dataclasses
import json
from pathlib import Path
from typing import Any

import yaml

from janus_jax.checkpoint.run_dir import COMMITTED, ITEMS
from tests.support.runs import ended

GOODPUT = {"step": 90.0, "compile": 6.0, "restart": 4.0}


def records(steps: int = 20, *, pairs: bool = False) -> list[dict[str, Any]]:
    """Lines of metrics, as a run writes them."""
    made: list[dict[str, Any]] = []
    for step in range(1, steps + 1):
        values = {"loss": 1 / step, "grad_norm": 2.0, "learning_rate": 1e-3, "epoch": step / 10, "examples": 8}
        if pairs:
            values |= {"rewards/accuracies": 0.5, "rewards/ties": 0.25, "rewards/margins": 0.1 * step}
        made.append({"kind": "train", "step": step, **values, "tokens_per_s": 1000.0 + step})
        if step % 5 == 0:
            made.append({"kind": "eval", "step": step, **values, "examples": 50})
    return made


def write_run(
    directory: Path,
    lines: list[dict[str, Any]] | None = None,
    *,
    config: dict[str, Any] | None = None,
    finished: bool = True,
    checkpoints: tuple[int, ...] = (20,),
) -> Path:
    """A run directory with everything that a report reads."""
    directory.mkdir(parents=True)
    config = {"run": {"dir": str(directory)}, "objective": {"name": "sft"}, "data": {"dir": "data/sft"}} | (
        config or {}
    )
    (directory / "config.yaml").write_text(yaml.safe_dump(config, allow_unicode=True))
    lines = records() if lines is None else lines
    (directory / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    starts = [
        {"began": 1e9, "ended": 1e9 + 50, "finished": False, "saved": {"10": 40.0}, "seconds": {"step": 40.0}},
        {"began": 1e9 + 54, "ended": 1e9 + 104, "finished": finished, "saved": {"20": 50.0}}
        | {"seconds": {"step": 50.0, "compile": 6.0, "restart": 4.0}},
    ]
    (directory / "goodput.json").write_text(json.dumps({"starts": starts}))
    if finished:
        summary = dataclasses.asdict(ended(run_dir=str(directory), step=20, total_steps=20, goodput=GOODPUT))
        (directory / "summary.json").write_text(json.dumps(summary))
    for step in checkpoints:
        for item in ITEMS:
            (directory / "checkpoints" / str(step) / item).mkdir(parents=True)
        (directory / "checkpoints" / str(step) / COMMITTED).touch()
        meta = {"template": "mistral-inst", "data": [{"source": "train.jsonl", "kind": "sft", "examples": 192}]}
        (directory / "checkpoints" / str(step) / "meta" / "metadata").write_text(json.dumps(meta))
    return directory


def answer_line(question: str, system: str, *texts: str, step: int | None = None) -> dict[str, Any]:
    """A line of samples or answers."""
    messages = [{"role": "system", "content": system}] if system else []
    return {
        **({} if step is None else {"step": step}),
        "messages": [*messages, {"role": "user", "content": question}],
        "prompt_tokens": 9,
        "answers": [{"text": text, "finish_reason": "stop", "tokens": 3} for text in texts],
    }


def write_lines(file: Path, lines: list[Any]) -> Path:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return file


def table_json(**changes: Any) -> dict[str, Any]:
    """What `Table.as_json` gives."""
    rows = [{"name": "mine", "values": [0.25, None], "low": [0.2, None], "high": [0.3, None]}]
    table = {"kind": "diversity", "title": "ROUGE-L", "columns": ["average", "maximum"], "rows": rows}
    return table | {"notes": [], "settings": {"seed": 0}, "paper": None} | changes
