"""A build holds exactly the ids of its records, whole or not at all."""

import contextlib
import dataclasses
import itertools
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from janus_jax.data.build import token_files
from janus_jax.data.build.pipeline import build
from janus_jax.data.dataset import TokenizedDataset
from janus_jax.errors import DataError, JanusError, StorageError
from janus_jax.text.tokenizer import load_tokenizer
from tests.support.records import TEXTS, pair_records, sft_records, write_records
from tests.support.repository import ROOT


def expected_ids(system: str, prompt: str, *responses: str) -> list[list[int]]:
    """The documented form, spelled out with raw sentencepiece: BOS, [INST] text, response, EOS."""
    encode = load_tokenizer().encode
    text = f"[INST] {system}\n{prompt} [/INST]" if system else f"[INST] {prompt} [/INST]"
    return [[1, *encode(text)], *([*encode(response), 2] for response in responses)]


def test_sft_build_holds_the_ids_of_its_records_in_order(sft_build):
    data = TokenizedDataset(sft_build.directory, "train")
    for example, (system, prompt, output, _) in zip(data.read(range(5)), sft_build.texts, strict=True):
        assert [example.prompt.tolist(), example.chosen.tolist()] == expected_ids(system, prompt, output)
        assert example.rejected is None
    held = TokenizedDataset(sft_build.directory, "validation")
    assert [e.chosen.tolist() for e in held.read([1, 0])] == [expected_ids(*TEXTS[i][:3])[1] for i in (2, 1)]


def test_dpo_build_holds_prompt_chosen_and_rejected(dpo_build):
    data = TokenizedDataset(dpo_build.directory)
    for example, texts in zip(data.read(range(5)), dpo_build.texts, strict=True):
        got = [example.prompt.tolist(), example.chosen.tolist(), example.rejected.tolist()]
        assert got == expected_ids(*texts)


def test_rm_build_takes_the_joined_input_as_prompt(tmp_path):
    records = [{"input": f"{s}\n{p}", "chosen": c, "rejected": r} for s, p, c, r in TEXTS]
    build(write_records(tmp_path / "rm.jsonl", records), tmp_path / "out", kind="rm")
    examples = TokenizedDataset(tmp_path / "out").read([0, 2])
    for example, index in zip(examples, (0, 2), strict=True):
        assert example.prompt.tolist() == expected_ids(*TEXTS[index])[0]
        assert example.rejected.tolist() == expected_ids(*TEXTS[index])[2]


def test_manifest_says_what_was_built(sft_build):
    manifest = json.loads((sft_build.directory / "manifest.json").read_text())
    assert manifest == dataclasses.asdict(sft_build.manifest)
    assert (manifest["kind"], manifest["template"], manifest["format_version"]) == ("sft", "mistral-inst", 1)
    fingerprint = load_tokenizer().fingerprint
    assert manifest["tokenizer"] == {"fingerprint": fingerprint, "vocab_size": 32000, "bos": 1, "eos": 2}
    tokens = sum(len(part) for texts in TEXTS for part in expected_ids(*texts[:3]))
    train = manifest["splits"]["train"]
    assert (train["examples"], train["tokens"], train["dropped"]) == (5, tokens, {"empty_field": 1})
    folder = sft_build.directory / "train"
    assert train["files"] == {path.name: path.stat().st_size for path in folder.iterdir()}
    assert manifest["splits"]["validation"]["examples"] == 2
    assert manifest["source"].startswith("train=") and "validation=" in manifest["source"]


def test_stored_files_are_as_documented(dpo_build):
    from array_record.python.array_record_module import ArrayRecordReader

    folder = dpo_build.directory / "train"
    lengths = np.load(folder / "lengths.npy")
    assert lengths.dtype == np.int32
    assert lengths.tolist() == [[len(part) for part in expected_ids(*texts)] for texts in TEXTS]
    records = ArrayRecordReader(str(folder / "tokens-00000-of-00001.array_record")).read_all()
    assert (dpo_build.manifest.ids, len(records)) == ("<u2", 5)
    assert np.frombuffer(records[3], "<u2").tolist() == [i for part in expected_ids(*TEXTS[3]) for i in part]


def test_text_is_kept_as_a_tfds_data_set(sft_build):
    from janus_jax.data.build.tfds_builder import read_builder

    records = read_builder(sft_build.directory / "tfds").as_data_source("train")
    assert [record["prompt"].decode() for record in records] == [texts[1] for texts in TEXTS]


def test_fingerprint_follows_the_ids_alone(dpo_build, tmp_path):
    (tmp_path / "elsewhere").mkdir()
    again = build(write_records(tmp_path / "elsewhere" / "x.jsonl", pair_records()), tmp_path / "same", kind="orpo")
    assert again.fingerprint == dpo_build.manifest.fingerprint
    other = build(write_records(tmp_path / "y.jsonl", pair_records()[::-1]), tmp_path / "reversed", kind="dpo")
    assert other.fingerprint != dpo_build.manifest.fingerprint


def test_many_files_of_tokens_read_like_one(dpo_build, tmp_path, monkeypatch):
    monkeypatch.setattr(token_files, "EXAMPLES_PER_FILE", 2)
    manifest = build(write_records(tmp_path / "rows.jsonl", pair_records()), tmp_path / "out", kind="dpo")
    names = sorted(path.name for path in (tmp_path / "out" / "train").glob("tokens*"))
    assert names == [f"tokens-0000{i}-of-00003.array_record" for i in range(3)]
    assert manifest.fingerprint == dpo_build.manifest.fingerprint
    order = [4, 0, 3, 1, 2, 4]
    one, many = (TokenizedDataset(d).read(order) for d in (dpo_build.directory, tmp_path / "out"))
    for a, b in zip(one, many, strict=True):
        assert a.example_id == b.example_id
        np.testing.assert_array_equal(a.rejected, b.rejected)


def test_another_tokenizer_and_template_are_used_and_kept(tmp_path):
    from tests.support.tokenizers import byte_level_directory

    directory = byte_level_directory(tmp_path / "tokenizer")
    (directory / "tokenizer_config.json").write_text('{"bos_token": "<|im_start|>", "eos_token": "<|im_end|>"}')
    source = write_records(tmp_path / "rows.jsonl", sft_records())
    manifest = build(source, tmp_path / "out", kind="sft", tokenizer=directory, template="chatml")
    assert (manifest.template, manifest.tokenizer["bos"], manifest.tokenizer["eos"]) == ("chatml", 1, 2)
    data = TokenizedDataset(tmp_path / "out")
    assert data.tokenizer().fingerprint == load_tokenizer(directory).fingerprint
    assert data.tokenizer().decode(data.read([4])[0].chosen) == "So."  # <|im_end|> is EOS, and stands once


def test_splits_of_a_directory_and_a_choice_of_them(tmp_path):
    source = tmp_path / "source"
    source.mkdir()
    for number, name in enumerate(("train-00000-of-00002.jsonl", "train-00001-of-00002.jsonl", "test.jsonl")):
        write_records(source / name, sft_records()[number : number + 2])
    assert {name: s.examples for name, s in build(source, tmp_path / "a", kind="sft").splits.items()} == {
        "test": 2,
        "train": 4,
    }
    assert list(build(source, tmp_path / "b", kind="sft", splits=["test"]).splits) == ["test"]
    with pytest.raises(DataError, match=r"split 'validation': .* has test, train"):
        build(source, tmp_path / "c", kind="sft", splits=["validation"])


def test_progress_ends_at_the_number_of_records(tmp_path):
    calls = []
    source = write_records(tmp_path / "rows.jsonl", sft_records())
    build(source, tmp_path / "out", kind="sft", progress=lambda *args: calls.append(args))
    assert calls == [("train", "read", 5, 5), ("train", "tokenize", 5, 5)]


def test_a_joint_build_holds_joint_ids_and_says_so(dpo_build, tmp_path):
    records = [record | {"chosen": ")" + record["chosen"]} for record in pair_records()]
    manifest = build(write_records(tmp_path / "rows.jsonl", records), tmp_path / "out", kind="dpo", boundary="joint")
    assert json.loads((tmp_path / "out" / "manifest.json").read_text())["boundary"] == manifest.boundary == "joint"
    assert dpo_build.manifest.boundary == "separate"
    tokenizer = load_tokenizer()
    for example, record in zip(TokenizedDataset(tmp_path / "out").read(range(5)), records, strict=True):
        prompt, *_ = expected_ids(record["system"], record["prompt"])
        text = tokenizer.decode(prompt)
        assert example.prompt.tolist() == prompt[:-1]  # "]" has merged with ")"
        for part, column in ((example.chosen, "chosen"), (example.rejected, "rejected")):
            assert [*example.prompt, *part] == [1, *tokenizer.encode(text + record[column]), 2]


def test_lengths_are_counted_in_the_manifest(dpo_build):
    lengths = np.array([[len(part) for part in expected_ids(*texts)] for texts in TEXTS])
    counted = dict(dpo_build.manifest.splits["train"].lengths)
    edges = [*counted.pop("edges"), np.inf]
    columns = {"prompt": lengths[:, 0], "chosen": lengths[:, 1], "rejected": lengths[:, 2]}
    columns["longest"] = lengths[:, 0] + lengths[:, 1:].max(1)
    assert set(counted) == set(columns)
    for name, values in columns.items():
        between = [int(((values >= low) & (values < high)).sum()) for low, high in itertools.pairwise(edges)]
        assert counted[name] == between and sum(between) == len(TEXTS)


def test_several_processes_build_the_very_same(tmp_path):
    records = [pair | {"prompt": f"{number}. {pair['prompt']}"} for number in range(60) for pair in pair_records()]
    source = write_records(tmp_path / "rows.jsonl", records)
    for name, processes in (("one", 1), ("three", 3)):
        build(source, tmp_path / name, kind="dpo", boundary="joint", processes=processes)
    files = sorted(path.relative_to(tmp_path / "one") for path in (tmp_path / "one").rglob("*") if path.is_file())
    assert len(files) > 5
    for file in files:
        assert (tmp_path / "one" / file).read_bytes() == (tmp_path / "three" / file).read_bytes(), file


@pytest.mark.parametrize("processes", [1, 2])
def test_what_a_worker_refuses_is_said_as_it_is(tmp_path, processes):
    """A vocabulary of one whole prompt: with a response behind it, nothing of the prompt is left."""
    import tokenizers

    system, prompt = TEXTS[0][:2]
    words = {"<unk>": 0, "</s>": 1, f"[INST] {system}\n{prompt} [/INST]": 2}
    (tmp_path / "tokenizer").mkdir()
    model = tokenizers.models.WordLevel(words, unk_token="<unk>")
    tokenizers.Tokenizer(model).save(str(tmp_path / "tokenizer" / "tokenizer.json"))
    (tmp_path / "tokenizer" / "tokenizer_config.json").write_text('{"eos_token": "</s>"}')
    source = write_records(tmp_path / "rows.jsonl", pair_records())
    options = {"kind": "dpo", "boundary": "joint", "tokenizer": tmp_path / "tokenizer"}
    with pytest.raises(
        DataError, match=r"rows.jsonl:1: the tokenizer leaves no token of the prompt, or merges all of it"
    ):
        build(source, tmp_path / "out", processes=processes, **options)
    assert not (tmp_path / "out").exists()


def many_long_records(directory: Path, times: int) -> Path:
    records = [record | {"output": record["output"] * 40} for record in sft_records()]
    return write_records(directory / "rows.jsonl", records * times)


@pytest.mark.parametrize("phase", [pytest.param("read", marks=pytest.mark.slow), "tokenize"])
def test_a_killed_build_leaves_nothing_that_looks_like_one(tmp_path, phase):
    """SIGKILL in either phase, workers running: the place stays free, no process stays behind, the next build works."""
    source = many_long_records(tmp_path, 300)
    code = f"""
import os, signal
from janus_jax.data.build.pipeline import build

def kill(split, phase, done, total):
    if phase == {phase!r} and done >= 500:
        os.kill(os.getpid(), signal.SIGKILL)

if __name__ == "__main__":
    build({str(source)!r}, {str(tmp_path / "out")!r}, kind="sft", processes=2, progress=kill)
"""
    (tmp_path / "main.py").write_text(code)
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.Popen([sys.executable, tmp_path / "main.py"], env=environment, start_new_session=True)
    assert done.wait(timeout=600) == -signal.SIGKILL
    assert not (tmp_path / "out").exists()
    deadline = time.monotonic() + 120
    while list(group_members(done.pid)) and time.monotonic() < deadline:
        time.sleep(0.2)
    assert list(group_members(done.pid)) == []
    with pytest.raises(DataError, match="no such directory"):
        TokenizedDataset(tmp_path / "out")
    left = [path for path in tmp_path.iterdir() if path.name.startswith(".out.")]
    assert len(left) == 1 and not (left[0] / "manifest.json").exists()
    build(write_records(tmp_path / "few.jsonl", sft_records()), tmp_path / "out", kind="sft")


def test_a_worker_that_is_killed_ends_the_build_with_its_reason(tmp_path):
    source = many_long_records(tmp_path, 300)
    here, killed = os.getpid(), []

    def kill(split, phase, done, total):
        if phase == "tokenize" and not killed:
            killed.append(next(child for child in children(here) if b"spawn_main" in command(child)))
            os.kill(killed[0], signal.SIGKILL)

    with pytest.raises(JanusError, match="a tokenizing process ended on its own"):
        build(source, tmp_path / "out", kind="sft", processes=2, progress=kill)
    assert [path.name for path in tmp_path.iterdir()] == ["rows.jsonl"]


def children(pid: int) -> list[int]:
    """Processes that this one's threads started; a thread may end while it is asked."""
    found = []
    for task in Path(f"/proc/{pid}/task").iterdir():
        with contextlib.suppress(FileNotFoundError, ProcessLookupError):
            found += map(int, (task / "children").read_text().split())
    return found


def command(pid: int) -> bytes:
    return Path(f"/proc/{pid}/cmdline").read_bytes()


@pytest.mark.parametrize("number", [pytest.param(signal.SIGINT, marks=pytest.mark.slow), signal.SIGTERM])
def test_a_command_that_is_stopped_cleans_up_and_leaves_no_process(tmp_path, number):
    source = many_long_records(tmp_path, 2000)
    words = f"data build --kind sft --source {source} --out {tmp_path / 'out'} --processes 2".split()
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    started = subprocess.Popen([sys.executable, "-m", "janus_jax.cli", *words], env=environment, start_new_session=True)
    deadline = time.monotonic() + 120
    while len(list(group_members(started.pid))) < 3:  # the workers are there
        assert time.monotonic() < deadline and started.poll() is None
        time.sleep(0.05)
    time.sleep(1)  # reading or tokenizing, of what takes several seconds
    os.killpg(started.pid, number)
    assert started.wait(timeout=300) == 128 + number
    deadline = time.monotonic() + 120
    while list(group_members(started.pid)) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert list(group_members(started.pid)) == []
    assert [path.name for path in tmp_path.iterdir()] == ["rows.jsonl"]


def group_members(group: int):
    """Living processes of a process group."""
    for status in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            state, _, found = status.read_text().rpartition(")")[2].split()[:3]
            if int(found) == group and state != "Z":
                yield int(status.parent.name)


# --- Margins

MARGINS = [0.5, None, 3, -2.25, None]


def test_margins_are_stored_with_zero_where_a_record_has_none(tmp_path):
    records = [record | ({} if m is None else {"margin": m}) for record, m in zip(pair_records(), MARGINS, strict=True)]
    sources = {
        "train": write_records(tmp_path / "a.jsonl", records),
        "validation": write_records(tmp_path / "b.jsonl", records[1:2]),
    }
    manifest = build(sources, tmp_path / "out", kind="dpo")
    data = TokenizedDataset(tmp_path / "out")
    assert data.margins.tolist() == [0.5, 0, 3, -2.25, 0] and data.margins.dtype == np.float32
    assert [example.margin for example in data.read([3, 0])] == [-2.25, 0.5]
    assert not (tmp_path / "out" / "validation" / "margins.npy").exists()
    records[0]["margin"] = 0.75
    other = build(sources | {"train": write_records(tmp_path / "c.jsonl", records)}, tmp_path / "other", kind="dpo")
    assert other.fingerprint != manifest.fingerprint


def test_without_margins_there_is_no_file_of_them(dpo_build):
    assert {path.name for path in (dpo_build.directory / "train").iterdir()} == {
        "lengths.npy",
        "tokens-00000-of-00001.array_record",
    }


def test_a_margin_of_parquet_is_read(tmp_path):
    import pyarrow
    import pyarrow.parquet

    records = [record | {"margin": m} for record, m in zip(pair_records(), MARGINS, strict=True)]
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(records), tmp_path / "rows.parquet")
    build(tmp_path / "rows.parquet", tmp_path / "out", kind="orpo")
    assert TokenizedDataset(tmp_path / "out").margins.tolist() == [0.5, 0, 3, -2.25, 0]


def bad_builds(root: Path):
    good = write_records(root / "good.jsonl", sft_records())
    cut = root / "cut.jsonl"
    cut.write_text(good.read_text()[:-20])
    yield {"source": cut, "kind": "sft"}, "cut.jsonl:5: not valid JSON"
    yield {"source": good, "kind": "dpo"}, "good.jsonl:1: column 'chosen' (or chosen_response) is missing"
    (root / "empty.jsonl").touch()
    yield {"source": root / "empty.jsonl", "kind": "sft"}, "empty.jsonl: is empty"
    yield {"source": {"train": good, "validation": root / "empty.jsonl"}, "kind": "sft"}, "empty.jsonl: is empty"
    yield {"source": root / "absent.jsonl", "kind": "sft"}, "absent.jsonl: no such file or directory"
    yield {"source": good, "kind": "ppo"}, "'ppo': unknown"
    pairs = write_records(root / "pairs.jsonl", [pair_records()[0], pair_records()[1] | {"margin": "big"}])
    yield {"source": pairs, "kind": "dpo"}, "pairs.jsonl:2: column 'margin' must be a finite number (float32), found"
    yield {"source": good, "kind": "sft", "boundary": "joined"}, "boundary 'joined': unknown; allowed: separate, joint"
    yield {"source": good, "kind": "sft", "template": "llama"}, "'llama': unknown"
    yield {"source": good, "kind": "sft", "tokenizer": root / "absent"}, "no such directory"
    yield {"source": {"tokenizer": good}, "kind": "sft"}, "split name 'tokenizer'"
    yield {"source": {"a/b": good}, "kind": "sft"}, "split name 'a/b'"
    yield {"source": {}, "kind": "sft"}, "no source was given"


def test_bad_input_gives_one_line_and_leaves_nothing(tmp_path):
    for options, message in bad_builds(tmp_path):
        before = sorted(tmp_path.rglob("*"))
        with pytest.raises(DataError) as caught:
            build(out=tmp_path / "deep" / "out", **options)
        assert message in str(caught.value)
        assert "\n" not in str(caught.value)
        assert sorted(tmp_path.rglob("*")) == before


def test_a_directory_that_holds_something_is_refused(tmp_path):
    source = write_records(tmp_path / "rows.jsonl", sft_records())
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine.txt").write_text("mine")
    with pytest.raises(StorageError, match="exists and is not empty"):
        build(source, tmp_path / "out", kind="sft")
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["mine.txt"]


def test_a_build_is_silent_and_leaves_records_nowhere_else(tmp_path):
    source = write_records(tmp_path / "rows.jsonl", sft_records())
    (tmp_path / "home").mkdir()
    code = "import sys; from janus_jax.data.build.pipeline import build; build(sys.argv[1], sys.argv[2], kind='sft')"
    environment = {"HOME": str(tmp_path / "home"), "TMPDIR": str(tmp_path / "home"), "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, "-c", code, str(source), str(tmp_path / "out")],
        capture_output=True,
        text=True,
        check=True,
        cwd=tmp_path,
        env=environment,
    )
    assert (done.stdout, done.stderr) == ("", "")
    assert {path.name for path in tmp_path.iterdir()} == {"rows.jsonl", "home", "out"}
    # TensorFlow's family leaves files of its own where it is imported (keras.json, autograph); none holds a record
    left = [path for path in (tmp_path / "home").rglob("*") if path.is_file() and b"bread" in path.read_bytes()]
    assert left == []
    assert not list((tmp_path / "home").rglob("*tensorflow_datasets*"))


def test_the_tfds_metadata_names_no_place_of_its_building(sft_build):
    root = str(sft_build.directory.parent)
    for path in (sft_build.directory / "tfds").rglob("*.json"):
        assert root not in path.read_text()
