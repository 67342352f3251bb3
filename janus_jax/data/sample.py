"""The embedded sample: instructions, each with three system messages and responses, in the published SFT schema.

Columns: main_source, original_source, preference_set (one preference per dimension, four in all), system, prompt,
output.
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
    """The raw records of a split."""
    with sample_path(split).open(encoding="utf-8") as lines:
        return [json.loads(line) for line in lines]


def ordered_pairs(records: Iterable[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Pairs from SFT records: every ordered pair (a, b) of the responses to one prompt.

    System message and preferences come from a, chosen is the response of a, rejected the response of b. Each response
    is chosen as often as it is rejected, against the same others: a model that sees only the response is right in
    exactly half of the pairs, and must read the system message to do better. Three responses give six pairs; prompts
    keep their order.
    """
    by_prompt: dict[str, list[Mapping[str, Any]]] = {}
    for record in records:
        by_prompt.setdefault(record["prompt"], []).append(record)
    return [
        {key: value for key, value in a.items() if key != "output"} | {"chosen": a["output"], "rejected": b["output"]}
        for group in by_prompt.values()
        for a, b in itertools.permutations(group, 2)
    ]


def write_sample(kind: str, directory: str | os.PathLike[str]) -> dict[str, Path]:
    """Writes train.jsonl and validation.jsonl in the columns of `kind`; returns split -> file, the `source` of `build`.

    sft: the records unchanged. dpo, orpo: all ordered pairs. rm: the same, system message and prompt joined in `input`.
    """
    check_kind(kind)
    target = Path(os.path.expanduser(directory))
    target.mkdir(parents=True, exist_ok=True)
    files = {}
    for split in SPLITS:
        records = sample_records(split)
        if kind != "sft":
            records = ordered_pairs(records)
        if kind == "rm":
            records = [
                {"input": f"{pair['system']}\n{pair['prompt']}", "chosen": pair["chosen"], "rejected": pair["rejected"]}
                for pair in records
            ]
        files[split] = target / f"{split}.jsonl"
        lines = (json.dumps(record, ensure_ascii=False) + "\n" for record in records)
        files[split].write_text("".join(lines), encoding="utf-8")
    return files
