"""Rows of a bench, in the schemas of its releases."""

import json
import re
from pathlib import Path
from typing import Any

RUBRICS = 2


def bench_row(number: int, **changes: Any) -> dict[str, Any]:
    """In the schema of the current release. A column that is None is left out."""
    rubrics = [
        {
            "criteria": f"Is answer {number} of kind {rubric}?",
            "score_descriptions": {str(score): f"kind {rubric} at {score}" for score in range(1, 6)},
        }
        for rubric in range(RUBRICS)
    ]
    row = {
        "source": ("koala", "alpaca")[number % 2],
        "system": f"You are helper {number}.",
        "prompt": f"Question {number}?",
        "reference_answer": f"Reference {number}.",
        "rubrics": rubrics,
        **changes,
    }
    return {name: value for name, value in row.items() if value is not None}


def write_rows(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def answers_to(rows: list[dict[str, Any]], text: str = "Answer {number}.") -> list[dict[str, Any]]:
    """As `janus generate` writes them, without ids."""
    return [
        {
            "messages": [{"role": "system", "content": row["system"]}, {"role": "user", "content": row["prompt"]}],
            "answers": [{"text": text.format(number=number), "finish_reason": "stop", "tokens": 3}],
        }
        for number, row in enumerate(rows)
    ]


def asked_about(body: dict[str, Any]) -> tuple[int, int]:
    """(row, rubric) that a request to the judge is about."""
    match = re.search(r"Is answer (\d+) of kind (\d+)\?", body["messages"][-1]["content"])
    assert match is not None, body
    return int(match[1]), int(match[2])
