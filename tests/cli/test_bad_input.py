"""A tour of bad input through the command: one clear line on stderr, exit 2, not a file more or less than before."""

import gzip
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from safetensors.numpy import load_file, save_file

from janus_jax.checkpoint.hf.read import save_hf
from janus_jax.cli.main import main
from janus_jax.parallel import mesh as meshes
from tests.support.models import random_params
from tests.support.repository import ROOT
from tests.support.tokenizers import byte_level_directory
from tests.support.training_examples import TINY, random_examples, write_dataset

SFT_ROWS = [{"system": f"Be {how}.", "prompt": f"Why {how}?", "output": f"So {how}."} for how in ("brief", "kind")]
PAIR_ROWS = [{"system": "", "prompt": "Why?", "chosen": f"Because {i}.", "rejected": "No idea."} for i in range(3)]
ANSWERS, SCORES = ("answer_0", "answer_1"), ("score_0", "score_1")
CONFIG = """\
run: {dir: run}
init: {from: model}
data: {dir: data}
batch:
  rows: 8
  row_length: 64
  max_sequence_length: 32
objective: {name: sft}
schedule: {name: cosine, learning_rate: 5e-6, warmup_steps: 0, steps: 2}
mesh: {data: 2, fsdp: 2, tensor: 2}
precision: {compute: float32}
"""


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A directory with sound rows, data, model and configuration, and a damaged variant of each. No test changes it."""
    root = tmp_path_factory.mktemp("place")
    good = lines(SFT_ROWS)
    files = {
        "rows.jsonl": good,
        "cut.jsonl": good[:-12],
        "cut_pairs.jsonl": lines(PAIR_ROWS)[:-12],
        "column.jsonl": good + lines([{"system": "", "prompt": "Why?", "reply": "So."}]),
        "empty.jsonl": "",
        "blank.jsonl": lines([SFT_ROWS[0] | {"output": "  "}]),
        "number.jsonl": lines([SFT_ROWS[0] | {"prompt": 7}]),
        "same.jsonl": lines([PAIR_ROWS[0] | {"rejected": "Because 0."}]),
        "nul.jsonl": lines([SFT_ROWS[0] | {"output": "\0\0"}]),
        "parted.jsonl": lines([{name: f"\n\nHuman: {name}?\n\nAssistant: So." for name in ("chosen", "rejected")}]),
        "tie.jsonl": lines(
            [{"question": {"full_text": "Why?"}} | dict.fromkeys(ANSWERS, "So.") | dict.fromkeys(SCORES, 0)]
        ),
        "run.yaml": CONFIG,
        "key.yaml": CONFIG.replace("batch:", "batch:\n  microbatchs: 2"),
        "section.yaml": CONFIG + "optimiser: {b2: 0.9}\n",
        "twice.yaml": CONFIG + "mesh: {fsdp: 8}\n",
        "broken.yaml": CONFIG + "remat: [full\n",
    }
    for name, text in files.items():
        (root / name).write_text(text)
    (root / "latin.jsonl").write_bytes('{"system": "", "prompt": "Où?", "output": "Là."}\n'.encode("latin-1"))
    (root / "cut.jsonl.gz").write_bytes(gzip.compress(good.encode())[:-9])
    pq.write_table(pa.Table.from_pylist(SFT_ROWS), root / "rows.parquet")
    (root / "cut.parquet").write_bytes((root / "rows.parquet").read_bytes()[:-9])
    pq.write_table(pa.Table.from_pylist([SFT_ROWS[0] | {"output": ["So.", "So."]}]), root / "list.parquet")
    (root / "no_rows").mkdir()
    write_dataset(root / "data", {"train": random_examples(20, pairs=False)}, kind="sft")
    write_dataset(root / "pairs", {"train": random_examples(20, pairs=True)}, kind="dpo")
    write_dataset(root / "half_data", {"train": random_examples(20, pairs=False)}, kind="sft")
    (token_file,) = (root / "half_data" / "train").glob("tokens-*")
    token_file.write_bytes(token_file.read_bytes()[:100])

    params = random_params(TINY)
    save_hf(params, TINY, root / "model")
    for name in ("no_shard", "cut_shard", "no_weights", "nan", "no_config", "other_words"):
        save_hf(params, TINY, root / name, max_shard_size="20KB")
    shards = sorted((root / "no_shard").glob("model-*.safetensors"))
    assert len(shards) == 5
    shards[1].unlink()
    cut = root / "cut_shard" / shards[1].name
    cut.write_bytes(cut.read_bytes()[:-9])
    for file in (root / "no_weights").glob("model*"):
        file.unlink()
    (root / "no_config" / "config.json").unlink()
    byte_level_directory(root / "other_words")
    special = {"bos_token": "<|im_start|>", "eos_token": "<|im_end|>"}
    (root / "other_words" / "tokenizer_config.json").write_text(json.dumps(special))
    last = root / "nan" / shards[-1].name
    tensors = {name: tensor.copy() for name, tensor in load_file(last).items()}
    tensors["lm_head.weight"].flat[3] = np.nan
    save_file(tensors, last, metadata={"format": "pt"})
    return root


def lines(rows: list[dict]) -> str:
    return "".join(json.dumps(row) + "\n" for row in rows)


def contents(directory: Path) -> dict[str, bytes | None]:
    """Every path below, hidden ones too, with what is in it."""
    return {str(path): path.read_bytes() if path.is_file() else None for path in sorted(directory.rglob("*"))}


def check(code: int, out: str, err: str, message: str) -> None:
    assert (code, out) == (2, ""), (code, out, err)
    assert err.startswith(f"error: {message}"), err
    assert err.count("\n") == 1 and err.endswith("\n") and len(err) < 500, err
    assert "Traceback" not in err


# fmt: off
BUILDS = [  # kind and source; what the line says
    ("sft", "cut.jsonl", "cut.jsonl:2: not valid JSON"),
    ("dpo", "cut_pairs.jsonl", "cut_pairs.jsonl:3: not valid JSON"),
    ("sft", "cut.jsonl.gz", "cut.jsonl.gz: not a whole gzip file, read up to record 2: Compressed file ended"),
    ("sft", "cut.parquet", "cut.parquet: not a whole Parquet file: Parquet magic bytes not found in footer"),
    ("sft", "list.parquet", "list.parquet:1: column 'output' must be a string, found list ['So.', 'So.']"),
    ("sft", "nul.jsonl", "nul.jsonl:1: column 'output' is empty ('\\x00\\x00'); text is needed"),
    ("rm", "parted.jsonl", "parted.jsonl:1: columns 'chosen' (str '\\n\\nHuman: chosen?"),
    ("dpo", "tie.jsonl", "tie.jsonl: no usable record; dropped: 1 tie (tie.jsonl:1)"),
    ("sft", "column.jsonl", "column.jsonl:3: column 'output' (or reference_answer, response, answer, completion) "
     "is missing; kind sft needs prompt, output; found: system, prompt, reply"),
    ("dpo", "rows.jsonl", "rows.jsonl:1: column 'chosen' (or chosen_response) is missing"),
    ("sft", "empty.jsonl", "empty.jsonl: is empty"),
    ("sft", "no_rows", "no_rows: holds no file of records; allowed: .jsonl, .ndjson or .json (also with .gz "
     "or .zst), .parquet"),
    ("sft", "blank.jsonl", "blank.jsonl:1: column 'output' is empty ('  '); text is needed"),
    ("sft", "number.jsonl", "number.jsonl:1: column 'prompt' must be a string, found int 7"),
    ("dpo", "same.jsonl", "same.jsonl:1: chosen and rejected are equal"),
    ("sft", "latin.jsonl", "latin.jsonl:1: not UTF-8: byte 0xf9 at position 28"),
    ("sft", "run.yaml", "run.yaml: unknown file type '.yaml'; allowed: .jsonl, .ndjson or .json (also with .gz "
     "or .zst), .parquet"),
    ("sft", "absent.jsonl", "absent.jsonl: no such file or directory"),
    ("sft", "rows.jsonl --validation-source cut.jsonl", "cut.jsonl:2: not valid JSON"),
    ("sft", "rows.jsonl --template llama", "template 'llama': unknown; allowed: mistral-inst, chatml, plain"),
    ("sft", "rows.jsonl --tokenizer no_rows", "tokenizer no_rows: holds neither tokenizer.json nor tokenizer.model"),
]
TRAINS = [  # configuration and overrides; what the line says
    ("key.yaml", "key.yaml:5: batch.microbatchs: unknown key; did you mean 'batch.microbatches'?"),
    ("section.yaml", "section.yaml:12: optimiser: unknown key; did you mean 'optimizer'?"),
    ("twice.yaml", "twice.yaml:12: mesh: duplicate key, given before at twice.yaml:10"),
    ("broken.yaml", "broken.yaml:13: not YAML: "),
    ("run.yaml batch.rowz=4", "override 'batch.rowz=4': batch.rowz: unknown key; did you mean 'batch.rows'?"),
    ("run.yaml objective.beta=0.1", "override 'objective.beta=0.1': objective.beta: unknown key; allowed: name"),
    ("run.yaml mesh.tensor=3", "mesh: data=2 x fsdp=2 x tensor=3 x context=1 needs 12 devices, but there are 8"),
    ("run.yaml mesh.data=1 mesh.fsdp=1 mesh.tensor=8", "mesh: tensor=8 does not divide kv_heads=2"),
    ("run.yaml batch.rows=6", "batch.rows: 6 rows in a microbatch do not divide over 4 row shards (data=2 x fsdp=2)"),
    ("run.yaml run.dir=data/run", "run.dir=data/run: lies in data.dir=data, which the run reads"),
    ("run.yaml run.dir=model/run", "run.dir=model/run: lies in init.from=model, which the run reads"),
    (f"run.yaml run.dir={'x' * 256}", f"run.dir {'x' * 256}: a name of 256 bytes is too long; allowed: at most 255"),
    ("run.yaml run.dir=a\\\\b", "run.dir a\\\\b: holds a backslash"),
    (f"run.yaml objective.name=dpo reference.dir={'x' * 256}", f"reference.dir={'x' * 256}: a name of 256 bytes is"),
    (f"run.yaml data.dir={'x' * 256}", f"{'x' * 256}"),
    (f"run.yaml init.from={'x' * 256}", f"init.from: {'x' * 256}: cannot be read: File"),
    (f"run.yaml data.eval_dir={'x' * 256} eval.every_steps=1", f"{'x' * 256}"),
    (f"{'x' * 256}.yaml", f"{'x' * 256}.yaml: cannot be read: File name too long"),
    ("run.yaml data.dir=janus-demo/data/sft", "janus-demo/data/sft: no such directory; `janus demo` makes it"),
    ("run.yaml data.dir=janus-demo/data/rm", "janus-demo/data/rm: no such directory; `janus demo --objective rm` "),
    ("run.yaml schedule.steps=1 schedule.warmup_steps=1", "override 'schedule.steps=1': schedule.warmup_steps = 1:"),
    ("run.yaml batch.row_length=10000000000", "batch.rows = 8, batch.microbatches = 1, batch.row_length = 100"),
    ("run.yaml data.dir=no_rows", "no_rows: is not a built data set"),
    ("run.yaml data.dir=absent", "absent: no such directory"),
    ("run.yaml data.dir=half_data", "half_data/train: manifest, lengths.npy, margins and token files disagree"),
    ("run.yaml objective.name=dpo", "data: holds single responses (kind sft), but the objective reads pairs"),
    ("run.yaml eval.every_steps=1", "data: has no split 'validation'; there are: train"),
    ("run.yaml init.from=absent", "init.from: absent: no such directory"),
    ("run.yaml init.from=no_rows", "init.from: no_rows: holds no model; looked for config.json"),
    ("run.yaml init.from=no_config", "init.from: no_config: holds no model; looked for config.json"),
    ("run.yaml init.from=no_weights",
     "init.from: no_weights: neither model.safetensors nor model.safetensors.index.json is"),
    ("run.yaml init.from=no_shard", "init.from: no_shard/model-00002-of-00005.safetensors: missing"),
    ("run.yaml init.from=cut_shard",
     "init.from: cut_shard/model-00002-of-00005.safetensors: not a whole safetensors file"),
    ("run.yaml init.from=nan", "nan/model-00005-of-00005.safetensors: tensor lm_head.weight holds NaN"),
    ("run.yaml run.dir=/proc/janus/run", "run.dir /proc/janus/run: cannot be written: /proc: No such file"),
    ("run.yaml run.dir=s3://bucket/run", "run.dir s3://bucket/run: allowed: a local or mounted directory, or gs://BUCKET/PATH"),
]
CONVERSIONS = [
    ("from-hf no_shard new", "no_shard/model-00002-of-00005.safetensors: missing"),
    ("from-hf nan new", "nan/model-00005-of-00005.safetensors: tensor lm_head.weight holds NaN"),
    ("from-hf no_weights new/deep", "no_weights: neither model.safetensors nor"),
    ("from-hf model rows.jsonl/new", "DST rows.jsonl/new: cannot be written: {place}/rows.jsonl is a file"),
    ("from-hf model /proc/janus/new", "DST /proc/janus/new: cannot be written: /proc: No such file"),
    ("from-hf model s3://b/new", "DST s3://b/new: allowed: a local or mounted directory, or gs://BUCKET/PATH"),
    ("to-hf data new", "data: holds no model"),
    ("to-hf model new --step 3", "model: step=3 can only be chosen for a run directory"),
]
OTHERS = [
    ("demo --out run.yaml/demo", "--out run.yaml/demo: cannot be written: {place}/run.yaml is a file"),
    ("demo --out gs://bucket/demo", "--out gs://bucket/demo: allowed: a local or mounted directory, not a URL"),
    ("demo --out new --model model", "tokenizer model: holds neither tokenizer.json nor tokenizer.model"),
    ("demo --out data", "--out data: contains files that are not from a demo"),
    ("demo --out new --model no_weights", "no_weights: neither model.safetensors nor"),
    ("data build --kind sft --source rows.jsonl --out data", "--out data: exists and is not empty"),
    ("data build --kind sft --source rows.jsonl --out s3://b/x", "--out s3://b/x: allowed: a local or mounted "
     "directory, or gs://BUCKET/PATH"),
    ("data build --derive dpo --source rows.jsonl --out new/data", "no pair can be derived: "
     "2 instruction_with_one_response (rows.jsonl:1, rows.jsonl:2); an instruction needs responses to two system"),
    ("config show key.yaml", "key.yaml:5: batch.microbatchs: unknown key; did you mean"),
]
# fmt: on
TOUR = [
    *((f"data build --kind {kind} --out new/data --source {source}", message) for kind, source, message in BUILDS),
    *((f"train {rest}", message) for rest, message in TRAINS),
    *((f"convert {rest}", message) for rest, message in CONVERSIONS),
    *OTHERS,
]


@pytest.mark.parametrize(("arguments", "message"), TOUR, ids=[arguments for arguments, _ in TOUR])
def test_bad_input_is_one_line_and_leaves_nothing_behind(place, monkeypatch, capfd, arguments, message):
    monkeypatch.chdir(place)
    monkeypatch.setattr(sys, "argv", ["janus", *arguments.split()])
    before = contents(place)
    with pytest.raises(SystemExit) as done:
        main()
    check(done.value.code, *capfd.readouterr(), message.format(place=place))
    assert contents(place) == before


@pytest.mark.parametrize("key", ["init.from", "reference.from"])
def test_weights_of_another_tokenizer_are_refused_before_a_device_is_used(place, monkeypatch, capfd, key):
    monkeypatch.chdir(place)
    monkeypatch.setattr(meshes, "build_mesh", lambda shape: pytest.fail("devices were touched"))
    pairs = [] if key == "init.from" else ["objective.name=dpo", "data.dir=pairs"]
    monkeypatch.setattr(sys, "argv", ["janus", "train", "run.yaml", f"{key}=other_words", *pairs])
    before, data = contents(place), "pairs" if pairs else "data"
    with pytest.raises(SystemExit) as done:
        main()
    message = f"{key}=other_words: its weights know another tokenizer than {data} was built with: id 1 is '<s>' in "
    message += "the data and '<|im_start|>' in the model; build the data with --tokenizer other_words, or"
    check(done.value.code, *capfd.readouterr(), message)
    assert contents(place) == before


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("data build --kind sft --source cut.jsonl --out new/data", "cut.jsonl:2: not valid JSON"),
        ("train run.yaml --devices 6", "mesh: data=2 x fsdp=2 x tensor=2 x context=1 needs 8 devices, but there are 6"),
    ],
)
def test_a_real_process_adds_no_noise_of_its_libraries(place, arguments, message):
    environment = {name: os.environ[name] for name in ("PATH", "HOME") if name in os.environ}
    before = contents(place)
    done = subprocess.run(
        [sys.executable, "-m", "janus_jax.cli", *arguments.split()],
        capture_output=True,
        text=True,
        cwd=place,
        env=environment | {"PYTHONPATH": str(ROOT), "PYTHONDONTWRITEBYTECODE": "1"},
        timeout=300,
    )
    check(done.returncode, done.stdout, done.stderr, message)
    assert contents(place) == before


def test_the_sound_variant_of_all_this_is_accepted(place, tmp_path, monkeypatch, capfd):
    """Otherwise the tour could pass because the scene itself is broken."""
    monkeypatch.chdir(place)
    for arguments in (
        f"data build --kind sft --source rows.jsonl --out {tmp_path}/data",
        f"train run.yaml run.dir={tmp_path}/run",
        f"convert from-hf model {tmp_path}/converted",
    ):
        monkeypatch.setattr(sys, "argv", ["janus", *arguments.split()])
        with pytest.raises(SystemExit) as done:
            main()
        assert not done.value.code, capfd.readouterr()
