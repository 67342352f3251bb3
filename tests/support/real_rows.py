"""Real records: BiGGen Bench prompts and answers, from the directory that JANUS_REAL_DATA names."""

import dataclasses
import json
import os
from pathlib import Path


@dataclasses.dataclass(frozen=True)
class Rows:
    """The rows as published, and the same in files of the kinds sft and dpo."""

    raw: list[dict]
    sft: Path
    dpo: Path

    def rejected(self, index: int) -> str:
        """The reference answer to the next input of the same task: as fluent, as long and of the same form as the
        chosen one, and honestly worse, because it answers another question."""
        task = [i for i, row in enumerate(self.raw) if row["task"] == self.raw[index]["task"]]
        return self.raw[task[(task.index(index) + 1) % len(task)]]["reference_answer"]


def real_rows(root: Path) -> Rows | None:
    """Writes the rows into `root`; None where JANUS_REAL_DATA is not set."""
    if "JANUS_REAL_DATA" not in os.environ:
        return None
    file = Path(os.environ["JANUS_REAL_DATA"]) / "biggen_bench_part.jsonl"
    rows = Rows([json.loads(line) for line in file.read_text().splitlines()], root / "sft.jsonl", root / "dpo.jsonl")
    with rows.sft.open("w") as sft, rows.dpo.open("w") as dpo:
        for i, row in enumerate(rows.raw):
            given = {"system": row["system_prompt"], "prompt": row["input"]}
            sft.write(json.dumps(given | {"output": row["reference_answer"]}) + "\n")
            pair = {"chosen": row["reference_answer"], "rejected": rows.rejected(i)}
            dpo.write(json.dumps(given | pair) + "\n")
    return rows
