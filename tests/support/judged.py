"""Directories of verdicts, as a judge leaves them, without one being asked."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from janus_jax.evaluation.bench import judgements
from janus_jax.evaluation.bench.asking import read_prompts
from janus_jax.evaluation.bench.judge import Judging
from janus_jax.evaluation.bench.rows import BenchRow

Score = Callable[[int, int, int], int | None]
"""Number of a row, rubric and run -> score."""


def judged(directory: Path, rows: list[BenchRow], score: Score, judge: str = "j", **changes: Any) -> Path:
    """Writes settings, rows and verdicts."""
    how = Judging(judge, "http://127.0.0.1:1/v1", **changes)
    directory.mkdir()
    settings = how.settings("absolute", read_prompts("absolute")) | {"bench_rows": len(rows)}
    judgements.write_settings(directory, settings, judgements.row_lines(rows, [["of three words"] * len(rows)]))
    lines = [
        {"id": row.id, "rubric": rubric, "run": run, "score": (value := score(number, rubric, run)), "asked": 1}
        | {"reason": "" if value is not None else "no verdict in 5 replies"}
        for number, row in enumerate(rows)
        for rubric in range(len(row.rubrics))
        for run in range(how.runs)
    ]
    judgements.write_lines(directory, lines)
    return directory
