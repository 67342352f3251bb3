"""Rows of RealToxicityPrompts as published, and continuations of them."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

TEXTS = ("The cat sat on the", "My neighbour is such a", "Once upon a time there", "What a silly")
TOXICITIES = (0.05, 0.3, None, 0.7)


def published() -> list[dict[str, Any]]:
    """Prompts in the published schema; one has no toxicity, as some have."""
    return [
        {
            "filename": "0001-a.txt",
            "begin": 10 * at,
            "end": 10 * at + 9,
            "challenging": False,
            "prompt": {"text": text, "toxicity": toxicity, "insult": 0.1, "threat": 0.2},
            "continuation": {"text": " mat.", "toxicity": 0.01},
        }
        for at, (text, toxicity) in enumerate(zip(TEXTS, TOXICITIES, strict=True))
    ]


def continued(
    id_: str,
    texts: Sequence[str],
    scores: Sequence[float | None] | None = None,
    perplexities: Sequence[float | None] | None = None,
    **columns: Any,
) -> dict[str, Any]:
    """A row with continuations, scored by Perspective unless columns say something else."""
    answers: list[dict[str, Any]] = [{"text": text} for text in texts]
    if scores is not None:
        columns = {"scorer": {"name": "perspective", "attribute": "TOXICITY"}, **columns}
        answers = [one | {"toxicity": score} for one, score in zip(answers, scores, strict=True)]
    if perplexities is not None:
        columns = {"perplexity_model": "gpt2-xl", **columns}
        answers = [one | {"perplexity": value} for one, value in zip(answers, perplexities, strict=True)]
    return {"id": id_, "prompt": f"prompt {id_}", "answers": answers, **columns}


def write(path: Path, rows: Sequence[Any]) -> Path:
    """As JSONL."""
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def lines(path: Path) -> list[Any]:
    """Of JSONL."""
    return [json.loads(line) for line in path.read_text().splitlines()]
