"""A whole synthesis of 10 instructions by a real small model, recorded: answers, and what came of them.

    python -m tests.data.synthesize.recording SmolLM2-135M-Instruct.Q4_1.gguf

writes `recorded/`. SmolLM2-135M-Instruct and what it wrote are under the Apache License 2.0. It needs about 20 minutes
on two CPU cores. A model of this size does not write data that is worth training on; the recording shows the pipeline.
"""

import json
import shutil
import sys
import tempfile
from pathlib import Path
from typing import Any

import yaml

from janus_jax.data.synthesize.config import SynthesisConfig, load_synthesis
from janus_jax.data.synthesize.pipeline import Synthesis
from tests.support.local_model import serving_model

RECORDED = Path(__file__).parent / "recorded"
STEPS = ("hierarchy", "systems", "responses", "rubrics")
PORT, MODEL = 8791, "SmolLM2-135M-Instruct"
"""Part of the key of each request."""
QUESTIONS = (
    "Why does the moon look larger near the horizon?",
    "How do I write a polite email that asks for a deadline extension?",
    "What are the main causes of soil erosion, and how can farmers slow it?",
    "Explain the difference between a virus and a bacterium.",
    "Plan a simple dinner for four people that takes under an hour.",
    "How does a bicycle stay upright while it moves?",
    "What should I check before I buy a used laptop?",
    "Describe how paper is recycled, from the bin to a new sheet.",
    "Give me three ways to remember the names of people I meet.",
    "Why do some countries drive on the left side of the road?",
)


def configuration(folder: Path) -> SynthesisConfig:
    """Of the recording; its output is below the folder, and nothing in it depends on the folder."""
    source = folder / "questions.jsonl"
    source.write_text("".join(json.dumps({"prompt": one}) + "\n" for one in QUESTIONS))
    endpoint = {"base_url": f"http://127.0.0.1:{PORT}/v1", "model": MODEL, "key_variable": None}
    endpoint |= {"concurrent": 4, "timeout_s": 1800, "tries": 1, "structured": "json_schema"}
    values: dict[str, Any] = {
        "out": str(folder / "out"),
        "endpoints": {"default": endpoint},
        "hierarchy": {"subdimensions": 5, "preferences": 2, "at_a_time": 2, "max_tokens": 160, "asks": 2, "rounds": 1},
        "instructions": {"sources": [{"path": str(source), "main_source": "questions"}]},
        "systems": {"max_tokens": 160, "asks": 2, "examples": 0},
        "responses": {"max_tokens": 200, "asks": 2},
        "bench": {"instructions": 1, "max_tokens": 240, "asks": 2, "examples": 0},
        "collection": {"incomplete": "keep"},
    }
    (folder / "synthesis.yaml").write_text(yaml.safe_dump(values))
    return load_synthesis(folder / "synthesis.yaml")


def counts(out: Path) -> dict[str, Any]:
    """What the gates counted in each step that asks."""
    facts = {step: json.loads((out / "steps" / step / "step.json").read_text()) for step in (*STEPS, "collection")}
    return {step: {name: one[name] for name in ("counts", "dropped", "rejected")} for step, one in facts.items()}


def rows(out: Path) -> dict[str, Any]:
    """Rows and provenance of the published files."""
    import pyarrow.parquet

    made: dict[str, Any] = {}
    for name in ("collection", "bench"):
        path = out / name / "train.parquet"
        made[name] = pyarrow.parquet.read_table(path).to_pylist() if path.exists() else []
        lines = out / "provenance" / f"{name}.jsonl"
        made[f"provenance of {name}"] = (
            [json.loads(line) for line in lines.read_text().splitlines()] if lines.exists() else []
        )
    return made


def record(gguf: Path, folder: Path) -> Path:
    """Runs all steps with the model; returns the output directory."""
    with serving_model(gguf, MODEL, PORT):
        work = Synthesis(configuration(folder), tell=lambda line: print(line, flush=True))
        assert work.run()
    return folder / "out"


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as scratch:
        out = record(Path(sys.argv[1]), Path(scratch))
        RECORDED.mkdir(exist_ok=True)
        for step in STEPS:
            if (journal := out / "steps" / step / "replies.jsonl").exists():
                shutil.copy(journal, RECORDED / f"{step}.jsonl")
        (RECORDED / "counts.json").write_text(json.dumps(counts(out), indent=1) + "\n")
        (RECORDED / "rows.json").write_text(json.dumps(rows(out), indent=1, ensure_ascii=False) + "\n")
