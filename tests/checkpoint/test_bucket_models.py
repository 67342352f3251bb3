"""Models on gs://: conversions from there and to there give what local ones give, or nothing."""

import dataclasses
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from etils import epath

from janus_jax.checkpoint import item
from janus_jax.checkpoint.convert import check, from_hf, to_hf
from janus_jax.checkpoint.hf.keys import leaves, nest
from janus_jax.checkpoint.hf.read import save_hf
from janus_jax.checkpoint.restore import restore_item
from janus_jax.checkpoint.state import Checkpoints
from janus_jax.checkpoint.stored_model import open_model
from janus_jax.cli.main import main
from janus_jax.errors import ConversionError, StorageError
from janus_jax.model.mistral import param_specs
from janus_jax.parallel.mesh import MeshShape, build_mesh, merge_rules, param_shardings
from janus_jax.storage import bucket as buckets
from janus_jax.storage import staging
from janus_jax.storage.bucket import BucketPath, Prefix
from janus_jax.text.tokenizer import load_tokenizer
from tests.support.models import SMALL, assert_same_bits, random_params
from tests.support.repository import ROOT

REPORT = "conversion_report.json"  # its clocks and its source differ


def upload(directory, url):
    names = [path.relative_to(directory).as_posix() for path in directory.rglob("*") if path.is_file()]
    Prefix(url).upload(directory, names)
    return url


def tree(url):
    prefix = Prefix(url)
    return {result.name: prefix.read(result) for result in prefix.list() if result.name != REPORT}


def local_tree(root):
    files = (path for path in root.rglob("*") if path.is_file() and path.name != REPORT)
    return {path.relative_to(root).as_posix(): path.read_bytes() for path in files}


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """Directories `hf` and `run`, to be copied."""
    root = tmp_path_factory.mktemp("made")
    save_hf(random_params(SMALL), SMALL, root / "hf", max_shard_size="6KB")
    load_tokenizer().save(root / "hf")
    (root / "hf" / "consolidated.safetensors").write_text("the same weights once more")
    (root / "hf" / "training.log").write_text("no part of a model")
    checkpoints = Checkpoints(root / "run" / "checkpoints", keep=2)
    for step in (2, 4):
        meta = {"model": dataclasses.asdict(SMALL)}
        checkpoints.save(step, params=times(step), optimizer={"count": jnp.int32(step)}, data={}, meta=meta)
    checkpoints.close()
    load_tokenizer().save(root / "run" / "tokenizer")
    return root


@pytest.fixture
def hf(made, tmp_path):
    """A Hugging Face directory with a tokenizer, and files that are no part of the model."""
    return shutil.copytree(made / "hf", tmp_path / "hf")


@pytest.fixture
def run(made, tmp_path, bucket):
    """URL of a run with steps 2 and 4, step s holding s times the weights, and its tokenizer."""
    return upload(shutil.copytree(made / "run", tmp_path / "run"), f"{bucket}/runs/mine")


def times(step):
    return jax.tree.map(lambda leaf: leaf * step, random_params(SMALL))


def janus(monkeypatch, capfd, *arguments):
    """(exit code, stdout, stderr) of the command."""
    monkeypatch.setattr(sys, "argv", ["janus", *map(str, arguments)])
    with pytest.raises(SystemExit) as done:
        main()
    out, error = capfd.readouterr()
    return done.value.code or 0, out, re.sub(r"[IE]\d{4} .*google_auth_provider.*\n", "", error)  # tensorstore's log


# ---- there and back


def test_from_a_bucket_to_a_bucket_and_back_is_what_local_conversions_give(
    hf, bucket, tmp_path, proxy, monkeypatch, capfd
):
    upload(hf, f"{bucket}/hf")
    from_hf(hf, tmp_path / "converted", verify="none")
    to_hf(tmp_path / "converted", tmp_path / "back", verify="none")

    code, out, error = janus(monkeypatch, capfd, "convert", "from-hf", f"{bucket}/hf", f"{bucket}/converted")
    assert (
        code == 0 and error == "" and out.startswith(f"{bucket}/converted: written in float32; every tensor compared")
    )
    asked = " ".join(path for _, path in proxy.requests)
    assert "consolidated" not in asked.replace("uploadType", "") and "training.log" not in asked
    bodies = [path for method, path in proxy.requests if method in ("POST", "DELETE")]
    assert ".janus-upload.json" in bodies[-1] and "uploadType" in bodies[-2]
    assert open_model(f"{bucket}/converted").config == SMALL
    assert check(f"{bucket}/converted", hf) == check(f"{bucket}/converted", tmp_path / "converted") == []
    report = json.loads(Prefix(f"{bucket}/converted").read(Prefix(f"{bucket}/converted").find(REPORT)))
    assert report["source"] == f"{bucket}/hf" and report["largest_logit_difference"] == 0

    code, out, error = janus(
        monkeypatch, capfd, "convert", "to-hf", f"{bucket}/converted", f"{bucket}/back", "--verify=digest"
    )
    assert (code, error) == (0, "") and tree(f"{bucket}/back") == local_tree(tmp_path / "back")
    assert {"tokenizer.model", "config.json", "model.safetensors"} <= set(tree(f"{bucket}/back"))
    code, out, _ = janus(monkeypatch, capfd, "convert", "check", f"{bucket}/back", hf)
    assert (code, out) == (0, f"{bucket}/back and {hf}: the same model, bit for bit\n")


def test_a_directory_is_fetched_once_and_anew_when_it_changed(hf, bucket, proxy):
    url = upload(hf, f"{bucket}/hf")
    first = open_model(url)
    asked = len(proxy.requests)
    assert open_model(url).tokenizer_directory == first.tokenizer_directory
    assert not [path for _, path in proxy.requests[asked:] if "alt=media" in path]
    prefix = Prefix(url)
    config = prefix.find("config.json")
    prefix.write(
        "config.json",
        prefix.read(config).replace(b'"rms_norm_eps": 1e-05', b'"rms_norm_eps": 1e-06'),
        config.generation,
    )
    assert open_model(url).config == dataclasses.replace(SMALL, rms_norm_eps=1e-6) != first.config


@pytest.mark.parametrize("place, step", [("", 4), ("/checkpoints", 4), ("/checkpoints/2", 2), ("/checkpoints/4", 4)])
def test_a_run_and_its_steps_are_read_where_they_lie(place, step, run, tmp_path):
    source = open_model(f"{run}{place}")
    assert (source.path, source.step, source.config) == (f"{run}/checkpoints/{step}", step, SMALL)
    assert_same_bits(source.load(), times(step))
    assert (
        Path(source.tokenizer_directory, "tokenizer.model").read_bytes()
        == (tmp_path / "run" / "tokenizer" / "tokenizer.model").read_bytes()
    )
    copied = {path.name for path in (tmp_path / "cache").rglob("*") if path.is_file() and path.name[0] != "."}
    assert copied == {"tokenizer.model"}  # no weights


def test_of_a_run_a_step_can_be_chosen(run, tmp_path):
    to_hf(run, tmp_path / "out", step=2)
    assert_same_bits(open_model(tmp_path / "out").load(), times(2))
    with pytest.raises(ConversionError, match=f"^{run}/checkpoints: no step 3; existing steps: 2, 4$"):
        open_model(run, 3)
    with pytest.raises(ConversionError, match=f"^{run}/checkpoints/2: step=4 can only be chosen for a run"):
        open_model(f"{run}/checkpoints/2", 4)


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_weights_are_placed_on_a_mesh_and_come_over_the_network_once(dtype, run, proxy):
    source = open_model(run)
    arrived = []

    def note(method, path, answer):
        arrived.append(len(answer[1]) if "%2Fd%2F" in path else 0)
        return answer

    proxy.rule = note
    shardings = param_shardings(param_specs(SMALL), build_mesh(MeshShape(2, 2, 2)), merge_rules({}))
    loaded = source.load(dtype=dtype, shardings=shardings)
    size = sum(leaf.nbytes for leaf in jax.tree.leaves(times(4)))
    assert 0.8 * size < sum(arrived) < 2 * size  # Orbax compresses; what says where chunks lie comes on top
    assert_same_bits(loaded, jax.tree.map(lambda leaf: leaf.astype(dtype), times(4)))
    for leaf, sharding in zip(jax.tree.leaves(loaded), jax.tree.leaves(shardings), strict=True):
        assert leaf.sharding.is_equivalent_to(sharding, leaf.ndim)
    host = source.load_host()
    assert_same_bits(host, times(4))
    assert all(isinstance(leaf, np.ndarray) for leaf in jax.tree.leaves(host))


@pytest.mark.parametrize("chunk", [200, 64 << 20])
@pytest.mark.parametrize("mesh", [MeshShape(2, 2, 2)], ids=["222"])
def test_what_is_restored_by_blocks_is_what_orbax_restores(chunk, mesh, tmp_path, monkeypatch):
    monkeypatch.setattr(item, "CHUNK_BYTES", chunk)  # down to a few rows of a layer
    params = random_params(SMALL)
    save_hf(params, SMALL, tmp_path / "hf")
    from_hf(tmp_path / "hf", tmp_path / "converted", verify="none")
    specs = param_specs(SMALL, jnp.bfloat16)
    shardings = param_shardings(specs, build_mesh(mesh), merge_rules({}))
    flat = leaves(shardings)
    abstract = nest(
        {
            path: jax.ShapeDtypeStruct(spec.shape, spec.dtype, sharding=flat[path])
            for path, spec in leaves(specs).items()
        }
    )
    ours = item.restore_blocks(epath.Path(tmp_path / "converted" / "params"), abstract)
    theirs = restore_item(epath.Path(tmp_path / "converted" / "params"), abstract)
    assert_same_bits(ours, theirs)
    for a, b in zip(jax.tree.leaves(ours), jax.tree.leaves(theirs), strict=True):
        assert a.sharding == b.sharding


# ---- what is not there, refuses or is damaged


def test_what_is_not_there_is_said_before_anything_is_written(hf, bucket, tmp_path, monkeypatch, capfd):
    Prefix(f"{bucket}/other").write("README.md", b"")
    for source, code, message in (
        ("gs://absent-bucket/x", 14, "gs://absent-bucket/x: cannot be listed: no such bucket: absent-bucket"),
        (f"{bucket}/none", 14, f"{bucket}/none: cannot be read: no such object, and nothing below it"),
        (f"{bucket}/other", 2, f"{bucket}/other: holds no model; looked for config.json (a Hugging Face directory)"),
        ("s3://b/x", 2, "s3://b/x: allowed: a local path, or gs://BUCKET/PATH"),
    ):
        result = janus(monkeypatch, capfd, "convert", "to-hf", source, f"{bucket}/out")
        assert result[0] == code and result[2].startswith(f"error: {message}") and result[2].count("\n") == 1, result
    assert tree(f"{bucket}/out") == {}


def test_a_damaged_directory_is_named_by_its_url_and_leaves_nothing(hf, bucket, tmp_path, monkeypatch, capfd):
    file = hf / "model-00002-of-00008.safetensors"
    file.write_bytes(file.read_bytes()[:-10])
    url = upload(hf, f"{bucket}/hf")
    for out in (tmp_path / "out", f"{bucket}/out"):
        code, _, error = janus(monkeypatch, capfd, "convert", "from-hf", url, out)
        assert code == 2 and error.startswith(f"error: {url}/{file.name}: not a whole safetensors file"), error
        assert error.count("\n") == 1 and re.search(rf"read from the copy {tmp_path}/cache/models/\w{{32}};", error)
    assert not (tmp_path / "out").exists() and tree(f"{bucket}/out") == {}


def test_weights_that_are_cut_or_gone_are_damage_and_a_refusal_is_not(run, tmp_path, proxy, monkeypatch):
    monkeypatch.setattr(buckets, "RETRY_S", 1.2)
    source = open_model(run)

    def refuse(status):
        body = b'{"error": {"message": "not today"}}'
        return lambda method, path, answer: (status, body) if "%2Fd%2F" in path else answer

    for rule, reason in (
        (refuse(403), "not today$"),
        (refuse(503), "not today$"),
        (lambda method, path, answer: None if "%2Fd%2F" in path else answer, "CURL error"),
    ):
        proxy.rule = rule
        for attempt in (source.load_host, lambda: open_model(run), lambda: to_hf(run, tmp_path / "out")):
            with pytest.raises(
                StorageError, match=rf"^{run}/checkpoints/4/params: \S+ cannot be read: .*{reason}"
            ) as told:
                attempt()
            assert "\n" not in str(told.value)
    proxy.rule = lambda method, path, answer: answer
    monkeypatch.setattr(buckets, "RETRY_S", 60.0)  # nothing is asked twice from here on
    prefix = Prefix(f"{run}/checkpoints/4/params")
    data = [result for result in prefix.list() if "/d/" in f"/{result.name}"]
    contents = {result.name: prefix.read(result) for result in data}
    for damage in (lambda content: content[: len(content) // 2], lambda content: None):
        for name, content in contents.items():
            remote = prefix.find(name)
            if (left := damage(content)) is None:
                prefix.delete([remote])
            else:
                prefix.write(name, left, remote.generation)
        with pytest.raises(ConversionError, match=rf"^{run}/checkpoints/4/params: \S+ is damaged and cannot be read: "):
            to_hf(run, f"{run}_out", verify="none")
    assert tree(f"{run}_out") == {} and not (tmp_path / "out").exists()


def test_a_service_that_does_not_answer_is_not_waited_for_without_end(run, proxy, monkeypatch):
    source = open_model(run)
    monkeypatch.setattr(buckets, "RETRY_S", 0.1)
    silent = threading.Event()
    proxy.rule = lambda method, path, answer: (silent.wait(20), answer)[1] if "%2Fd%2F" in path else answer
    with pytest.raises(
        StorageError, match=f"^{run}/checkpoints/4/params: .* cannot be read: the service does not answ"
    ):
        source.load_host()
    silent.set()


def test_a_step_that_is_not_whole_is_no_model(run):
    prefix = Prefix(f"{run}/checkpoints/4")
    prefix.delete([prefix.find("commit_success.txt")])
    assert open_model(run).step == 2
    with pytest.raises(
        ConversionError,
        match=f"^{run}/checkpoints/4: this step is incomplete: its write, copy or deletion was interrupted$",
    ):
        open_model(f"{run}/checkpoints/4")


# ---- writing


KILLED = """
import os, signal, sys
from janus_jax.storage.bucket import Prefix
from janus_jax.checkpoint.convert import from_hf, to_hf
upload = Prefix.upload
def kill(prefix, directory, names, done):
    names = list(names)
    if names == [sys.argv[4]]:
        os.kill(os.getpid(), signal.SIGKILL)
    upload(prefix, directory, names, done)
Prefix.upload = kill
{"to": to_hf, "from": from_hf}[sys.argv[1]](sys.argv[2], sys.argv[3], verify="none")
"""


@pytest.mark.parametrize("which, last", [("to", "config.json"), ("from", "meta/metadata")])
def test_an_upload_that_was_killed_is_no_model_and_the_next_one_succeeds(which, last, hf, bucket, tmp_path):
    place, convert = f"{bucket}/new", {"to": to_hf, "from": from_hf}[which]
    environment = {**os.environ, "TMPDIR": str(tmp_path)}  # what the killed one leaves is removed with it
    command = [sys.executable, "-c", KILLED, which, str(hf), place, last]
    assert subprocess.run(command, cwd=ROOT, timeout=300, env=environment).returncode == -signal.SIGKILL
    left = tree(place)
    assert staging.MARKER in left and last not in left and len(left) > 3  # all but the last file
    with pytest.raises(ConversionError, match=f"^{place}: holds no model: an upload to it is incomplete$"):
        open_model(place)
    convert(hf, place, verify="none")
    assert last in tree(place) and staging.MARKER not in tree(place)
    assert check(place, hf) == []


def test_a_place_that_holds_something_is_refused_before_anything_is_read(hf, bucket, proxy, monkeypatch, capfd):
    url = upload(hf, f"{bucket}/hf")
    Prefix(f"{bucket}/data").write(staging.MARKER, b'{"files": ["manifest.json", "x"]}')  # whole, but for its marker
    Prefix(f"{bucket}/data").write("manifest.json", b"{}")
    before = tree(url), tree(f"{bucket}/data")
    asked = len(proxy.requests)
    for place, holds in ((url, "config.json"), (f"{bucket}/data", "manifest.json")):
        for convert in (from_hf, to_hf):
            with pytest.raises(StorageError, match=rf"^{place}: exists and is not empty \(it holds {holds}\)"):
                convert(url, place)
        code, _, error = janus(monkeypatch, capfd, "convert", "to-hf", url, place)
        assert code == 2 and error.startswith(f"error: DST {place}: exists and is not empty (it holds {holds})")
    bodies = [path for method, path in proxy.requests[asked:] if method != "GET" or "alt=media" in path]
    assert all(staging.MARKER in path for path in bodies)  # only looked into
    assert before == (tree(url), tree(f"{bucket}/data"))


def test_without_room_for_it_an_upload_is_not_begun(hf, bucket, monkeypatch, capfd):
    monkeypatch.setattr(staging.shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(10**9, 10**9, 1000))
    with pytest.raises(StorageError, match=rf"^{bucket}/new: 0\.0 GB are made in .* set TMPDIR to a directory"):
        to_hf(hf, f"{bucket}/new")
    assert tree(f"{bucket}/new") == {}
    monkeypatch.undo()


def test_a_place_in_a_bucket_answers_as_a_path_does(bucket, tmp_path):
    names = ("a/b/c.txt", "a/b.txt", "d")
    for name in names:
        (tmp_path / "tree" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "tree" / name).write_text(f"content of {name}")
    upload(tmp_path / "tree", f"{bucket}/tree")

    def told(place):
        return place.exists(), place.is_dir(), sorted(child.name for child in place.iterdir()) if place.is_dir() else []

    for name in ("", *names, "a", "a/b", "a/x", "x"):
        local, parts = tmp_path / "tree", name.split("/") if name else []
        far, alone = BucketPath(f"{bucket}/tree"), BucketPath(f"{bucket}/tree/{name}")
        for part in parts:
            local, far = local / part, far / part
        assert told(local) == told(far) == told(alone) and (far.name, str(far)) == (alone.name, str(alone)), name
        if parts:
            assert told(local.parent) == told(alone.parent) == told(far.parent), name
    assert (BucketPath(bucket) / "tree" / "d").read_text() == "content of d"
    assert BucketPath(bucket).parent.url == bucket
    with pytest.raises(FileNotFoundError):
        (BucketPath(bucket) / "x").read_text()
