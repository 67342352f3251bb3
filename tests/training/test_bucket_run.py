"""A run whose data lie in a bucket is the run on a local copy of them."""

import shutil

import pytest
import yaml

from janus_jax.checkpoint.convert import check, from_hf, to_hf
from janus_jax.checkpoint.hf.read import save_hf
from janus_jax.checkpoint.run_dir import RunDir
from janus_jax.checkpoint.stored_model import open_model
from janus_jax.errors import ConfigError, HeldError, StorageError
from janus_jax.storage import bucket as bucket_module
from janus_jax.storage.bucket import BucketPath, Prefix
from janus_jax.storage.lock import held
from janus_jax.training.run import train
from janus_jax.training.run_directory import _open_run_dir
from tests.support import processes
from tests.support.faulty_bucket import refusing
from tests.support.models import random_params
from tests.support.repository import ROOT
from tests.support.run_configs import ONE_LAYER, SIX_STEPS, run_config
from tests.support.runs import assert_equal_trees, final_params, metric_lines
from tests.support.training_examples import TINY, random_examples, write_dataset

pytestmark = pytest.mark.usefixtures("programs")


def measured(run):
    """Records without their clocks."""
    return [{k: v for k, v in line.items() if k not in ("tokens_per_s", "data_wait")} for line in metric_lines(run)]


def test_a_run_on_a_bucket_is_bit_for_bit_the_local_one(bucket, tmp_path, monkeypatch):
    splits = {"train": random_examples(60, pairs=False, seed=1), "validation": random_examples(9, pairs=False, seed=2)}
    local = write_dataset(tmp_path / "sft", splits, kind="sft")
    names = [path.relative_to(local).as_posix() for path in local.rglob("*") if path.is_file()]
    url = f"{bucket}/data/sft"
    Prefix(url).upload(local, names)

    train(run_config(tmp_path, tmp_path / "local", schedule=SIX_STEPS, model=ONE_LAYER), writers=())
    changed = {"schedule": SIX_STEPS, "model": ONE_LAYER, "data": {"dir": url}}
    stopped = train(run_config(tmp_path, tmp_path / "far", **changed), until_step=3, writers=())
    resumed = train(run_config(tmp_path, tmp_path / "far", **changed), writers=())
    assert (stopped.step, resumed.resumed_from, resumed.step) == (3, 3, 6)
    assert measured(tmp_path / "far") == measured(tmp_path / "local")
    assert_equal_trees(final_params(tmp_path / "far"), final_params(tmp_path / "local"))
    assert yaml.safe_load((tmp_path / "far" / "config.yaml").read_text())["data"]["dir"] == url
    assert (tmp_path / "far" / "tokenizer" / "tokenizer.model").is_file()
    shutil.rmtree(tmp_path / "far" / "tokenizer")
    with monkeypatch.context() as away:  # a run that is opened for its weights does not ask for its data
        away.setenv("STORAGE_EMULATOR_HOST", "http://127.0.0.1:9")
        assert open_model(tmp_path / "far").tokenizer_directory is None
    with pytest.raises(ConfigError, match=rf"^data\.dir={url}: .* --tokenizer {url}/tokenizer --out {url}_joint$"):
        train(run_config(tmp_path, tmp_path / "other", compat={"token_boundary": "joint"}, **changed), writers=())


def test_wrong_data_end_the_command_in_one_line_that_names_the_url(bucket, tmp_path, janus):
    local = write_dataset(tmp_path / "dpo", {"train": random_examples(9, pairs=True)}, kind="dpo")
    tokens = "train/tokens-00000-of-00001.array_record"
    whole = (local / tokens).read_bytes()
    (local / tokens).write_bytes(whole[:-10])
    url = f"{bucket}/data/dpo"
    names = [path.relative_to(local).as_posix() for path in local.rglob("*") if path.is_file()]
    Prefix(url).upload(local, names)
    for directory, code, message in (
        (url, 2, f"error: {url}/train: manifest, lengths.npy, margins and token files disagree"),
        (
            f"{bucket}/none",
            14,
            f"error: {bucket}/none/manifest.json: cannot be read: no such object; `janus data build",
        ),
    ):
        changes = [f"data.dir={directory}", f"run.dir={tmp_path}/run"]
        ended, _, error = janus("train", ROOT / "configs/demo_sft.yaml", *changes)
        assert ended == code and error.startswith(message), error
        assert error.count(directory) == 1 and error.count(f"{tmp_path}/cache/data/") == (code == 2)
        assert error.count("\n") == 1 and not (tmp_path / "run").exists()


@pytest.fixture(scope="module")
def begun(tmp_path_factory, programs):
    """A directory with weights (hf), a run of two steps from them (local), and a function that makes such a run."""
    root = tmp_path_factory.mktemp("begun")
    write_dataset(root / "sft", {"train": random_examples(30, pairs=False, seed=1)}, kind="sft")
    save_hf(random_params(TINY), TINY, root / "hf")

    def run(directory, start):
        few = {"schedule": SIX_STEPS, "eval": {"every_steps": None}, "model": None, "init": {"from": start}}
        train(run_config(root, directory, **few), until_step=2, writers=())

    run(root / "local", str(root / "hf"))
    return root, run


@pytest.mark.parametrize("kind", ["hf", "converted"])
def test_a_run_from_weights_in_a_bucket_is_the_run_from_local_ones(kind, bucket, begun, tmp_path):
    (root, run), convert = begun, {"hf": to_hf, "converted": from_hf}[kind]
    convert(root / "hf", f"{bucket}/weights", verify="none")
    run(tmp_path / "far", f"{bucket}/weights")
    assert measured(tmp_path / "far") == measured(root / "local")
    assert_equal_trees(final_params(tmp_path / "far"), final_params(root / "local"))
    copied = [path.name for path in (tmp_path / "cache").rglob("*.safetensors")]
    assert len(copied) == (kind == "hf")


@pytest.fixture
def pairs(tmp_path):
    """A small set of pairs below tmp_path, and the changes that make a run of a few steps on it."""
    write_dataset(tmp_path / "dpo", {"train": random_examples(40, pairs=True, seed=1)}, kind="dpo")
    sections = {"model": ONE_LAYER, "schedule": SIX_STEPS, "eval": {"every_steps": None}}
    return {"kind": "dpo", **sections, "export": {"hf": True}, "checkpoint": {"every_steps": 2}}


def test_a_run_in_a_bucket_is_the_local_one(bucket, tmp_path, pairs, capfd):
    """Reference pass, stop, resume, export, a third start; then another run from its weights and its log-probs."""
    here, remote = tmp_path / "local", f"{bucket}/runs/mine"
    train(run_config(tmp_path, here, **pairs), writers=())
    config = run_config(tmp_path, remote, **pairs)
    assert train(config, until_step=3, writers=()).step == 3
    names = {item.name for item in Prefix(remote).list()}
    assert {"config.yaml", "summary.json", "reference/train.npz", "tokenizer/tokenizer.model"} <= names
    assert "lock.json" not in names and not list((tmp_path).glob("gs:*"))
    finished = train(config, writers=())
    assert (finished.resumed_from, finished.step, finished.export_dir) == (3, 6, f"{remote}/exports/6")
    assert check(f"{remote}/exports/6", here / "exports" / "6") == []
    assert_equal_trees(final_params(remote), final_params(here))
    generation = Prefix(remote).find("exports/6/config.json").generation
    assert train(config, writers=()).export_dir == f"{remote}/exports/6"  # the export is there
    assert Prefix(remote).find("exports/6/config.json").generation == generation
    assert RunDir(BucketPath(remote)).committed_steps() == [4, 6]

    next_run = {**pairs, "model": None, "init": {"from": f"{remote}/checkpoints/4"}, "export": {"hf": False}}
    shared = {"dir": f"{bucket}/shared"}
    train(run_config(tmp_path, f"{bucket}/runs/next", **next_run, reference=shared), until_step=1, writers=())
    reference = Prefix(bucket).find("shared/train.npz").generation
    train(run_config(tmp_path, tmp_path / "next", **next_run, reference=shared), until_step=1, writers=())
    assert Prefix(bucket).find("shared/train.npz").generation == reference  # read, not made again
    assert "Traceback" not in capfd.readouterr().err


def test_a_second_start_in_a_bucket_is_refused_and_writes_nothing(bucket, tmp_path, pairs):
    url = f"{bucket}/run"
    with held(f"{url}/lock.json", url):
        before = [item.name for item in Prefix(url).list()]
        with pytest.raises(HeldError, match=f"^{url}: is held by process "):
            train(run_config(tmp_path, url, **pairs), writers=())
        assert [item.name for item in Prefix(url).list()] == before


@pytest.mark.parametrize(
    "where, refusal, kind, message",
    [
        ("run", refusing(403), ConfigError, r"run\.dir=gs://\S+/run: cannot be written: permission denied: refused by"),
        ("run", refusing(503), StorageError, r"run\.dir: gs://\S+: cannot be written: given up after attempts"),
        ("none", None, ConfigError, r"run\.dir=gs://no-such-bucket/run: cannot be written: no such bucket: no-such"),
        ("data", None, ConfigError, r"run\.dir=gs://\S+/dpo/run: lies in data\.dir="),
        ("s3", None, ConfigError, r"run\.dir: s3://bucket/run: allowed: a local path, or gs://BUCKET/PATH"),
        ("reference", refusing(403, "shared"), ConfigError, r"reference\.dir=gs://\S+: cannot be written: permission"),
    ],
)
def test_a_bucket_that_cannot_be_written_is_named_before_anything_is_done(
    where, refusal, kind, message, bucket, proxy, tmp_path, pairs, monkeypatch
):
    monkeypatch.setattr(bucket_module, "RETRY_S", 0.5)
    url = {"none": "gs://no-such-bucket/run", "data": f"{bucket}/dpo/run", "s3": "s3://bucket/run"}.get(where)
    changes = dict(pairs)
    if where == "data":
        changes["data"] = {"dir": f"{bucket}/dpo"}
    if where == "reference":
        changes["reference"] = {"dir": f"{bucket}/shared"}
    proxy.refusal = refusal or proxy.refusal
    with monkeypatch.context() as nothing:
        nothing.setattr("janus_jax.training.run._train", None)
        with pytest.raises(kind, match=f"^{message}"):
            train(run_config(tmp_path, url or f"{bucket}/run", **changes), writers=())
    proxy.refusal = refusing(503, "never")
    assert Prefix(bucket).list() == []


def test_log_probs_in_a_bucket_that_are_all_there_need_only_be_read(bucket, proxy, tmp_path, pairs):
    config = run_config(tmp_path, tmp_path / "run", **pairs, reference={"dir": f"{bucket}/shared"})
    proxy.refusal = refusing(403, "shared")
    with pytest.raises(ConfigError, match=r"^reference\.dir=gs://\S+: cannot be written"):
        _open_run_dir(config)
    proxy.refusal = refusing(403, "never")
    Prefix(f"{bucket}/shared").write("train.npz", b"log-probs")
    proxy.refusal = refusing(403, "shared")
    _open_run_dir(config)


@pytest.mark.slow
def test_a_run_in_a_bucket_that_is_killed_twice_ends_as_the_local_one(bucket, tmp_path, pairs):
    """Killed in the reference pass and during a save: pytest -m slow tests/training/test_bucket_run.py"""
    url = f"{bucket}/run"
    config = tmp_path / "run.json"
    config.write_text(run_config(tmp_path, url, **pairs, logging={"every_steps": 1}).model_dump_json(by_alias=True))
    codes, outputs = zip(
        *(processes.launch(["-m", "tests.support.bucket_runs", "kill", config, at])[0] for at in ("pass", "4", "")),
        strict=True,
    )
    assert codes == (-9, -9, 0), outputs
    assert "pairs to read were scored before; going on" in outputs[1]
    assert "checkpoints/4: its write or deletion was interrupted; its remains are removed" in outputs[2]
    train(run_config(tmp_path, tmp_path / "local", **pairs), writers=())
    assert check(f"{url}/exports/6", tmp_path / "local" / "exports" / "6") == []


@pytest.mark.slow
def test_two_processes_in_a_bucket_do_what_they_do_on_a_disk(bucket, tmp_path, pairs):
    """Process 0 cannot commit step 2: both say so and go on. pytest -m slow tests/training/test_bucket_run.py"""
    goes_on = {**pairs, "checkpoint": {"every_steps": 2, "on_error": "continue"}}
    places = {"far": f"{bucket}/run", "near": str(tmp_path / "near")}
    for name, place in places.items():
        config = run_config(tmp_path, place, **goes_on, mesh={"data": 1, "fsdp": 4, "tensor": 1})
        (tmp_path / f"{name}.json").write_text(config.model_dump_json(by_alias=True))
    for name in places:
        for until in ("3", ""):
            port = processes.free_port()
            command = ["-m", "tests.support.bucket_runs", "two", tmp_path / f"{name}.json", until, port]
            ended = processes.launch([*command, 0], [*command, 1])
            assert [code for code, _ in ended] == [0, 0], ended
            refused = [output.count("refused by the test; no checkpoint is whole") for _, output in ended]
            assert refused == ([1, 0] if (name, until) == ("far", "3") else [0, 0]), ended
    assert RunDir(BucketPath(places["far"])).committed_steps() == [4, 6]
    assert check(f"{places['far']}/exports/6", f"{places['near']}/exports/6") == []
