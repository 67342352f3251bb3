"""The embedded sample: instructions with three system messages and responses each, in the published SFT schema.

main_source, original_source, preference_set (one preference for each of the four dimensions), system, prompt, output.
"""

import itertools
import json
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from janus_jax.data.schema import check_kind
from janus_jax.errors import DataError

SPLITS = ("train", "validation")

_DIRECTORY = Path(__file__).parent / "assets" / "sample"


def sample_path(split: str) -> Path:
    """The JSONL file of a split. Raises DataError for a name that is not in SPLITS."""
    if split not in SPLITS:
        raise DataError(f"split {split!r}: the sample has {', '.join(SPLITS)}")
    return _DIRECTORY / f"{split}.jsonl"


def sample_records(split: str) -> list[dict[str, Any]]:
    """The rows of a split as they stand in its file."""
    with sample_path(split).open(encoding="utf-8") as lines:
        return [json.loads(line) for line in lines]


def ordered_pairs(rows: Iterable[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Preference rows from SFT rows: every ordered pair (a, b) of the responses to one prompt.

    System message and preferences are those of a, chosen is its response, rejected the response of b. Each response is
    chosen as often as it is rejected, against the same others: what sees only the response scores exactly one half, and
    more than that takes the system message. Three responses give six pairs; prompts keep their order.
    """
    by_prompt: dict[str, list[Mapping[str, Any]]] = {}
    for row in rows:
        by_prompt.setdefault(row["prompt"], []).append(row)
    return [
        {key: value for key, value in a.items() if key != "output"} | {"chosen": a["output"], "rejected": b["output"]}
        for group in by_prompt.values()
        for a, b in itertools.permutations(group, 2)
    ]


def write_sample(kind: str, directory: str | os.PathLike[str]) -> dict[str, Path]:
    """Writes train.jsonl and validation.jsonl in the columns of `kind`; returns split -> file, as `build` takes it.

    sft: the rows as they are. dpo, orpo: all ordered pairs. rm: the same, system message and prompt joined in `input`.
    """
    check_kind(kind)
    target = Path(os.path.expanduser(directory))
    target.mkdir(parents=True, exist_ok=True)
    files = {}
    for split in SPLITS:
        rows = sample_records(split)
        if kind != "sft":
            rows = ordered_pairs(rows)
        if kind == "rm":
            rows = [
                {"input": f"{row['system']}\n{row['prompt']}", "chosen": row["chosen"], "rejected": row["rejected"]}
                for row in rows
            ]
        files[split] = target / f"{split}.jsonl"
        lines = (json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
        files[split].write_text("".join(lines), encoding="utf-8")
    return files
