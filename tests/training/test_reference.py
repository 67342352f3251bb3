"""Reference log-probs: precomputed ones are the online ones, never those of something else, and outlive a kill."""

import gc
import json
import shutil
from dataclasses import fields, replace
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from janus_jax.checkpoint.convert import to_hf
from janus_jax.checkpoint.restore import stored_leaves
from janus_jax.checkpoint.run_dir import ITEMS
from janus_jax.config.run import RunConfig
from janus_jax.data.loader import Loader
from janus_jax.errors import ConfigError, ConversionError, DataError, LostLockError, NonFiniteError
from janus_jax.evaluation.pairs import pair_accuracies
from janus_jax.model.config import ModelConfig
from janus_jax.model.mistral import init_params, param_specs
from janus_jax.parallel.mesh import DEFAULT_RULES, MeshShape, build_mesh, param_shardings
from janus_jax.training import reference
from janus_jax.training.fingerprint import model_fingerprint, weights_fingerprint
from janus_jax.training.reference_store import Identity
from janus_jax.training.run import train
from tests.support.run_configs import ONE_LAYER
from tests.support.training_examples import TINY, random_examples, write_dataset

pytestmark = pytest.mark.usefixtures("programs")

STEPS_PER_EPOCH = 5


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    root = tmp_path_factory.mktemp("pairs")
    splits = {"train": random_examples(40, pairs=True, seed=1), "validation": random_examples(9, pairs=True, seed=2)}
    return write_dataset(root / "dpo", splits, kind="dpo")


def config(data, run, /, **changes):
    values = {
        "run": {"dir": str(run), "seed": 3},
        "model": ONE_LAYER,
        "data": {"dir": str(data)},
        "batch": {"examples": 8, "row_length": 64, "max_sequence_length": 32, "microbatches": 2},
        "objective": {"name": "dpo"},
        "schedule": {"name": "constant", "learning_rate": 1e-2, "warmup_steps": 1, "epochs": 2},
        "mesh": {"data": 2, "fsdp": 2, "tensor": 2},
        "precision": {"compute": "float32"},
        "eval": {"every_steps": 5, "rows": 4},
        "logging": {"tensorboard": False, "curves": False},
    }
    for key, value in changes.items():
        values[key] = {**values[key], **value} if isinstance(value, dict) and key in values else value
    return RunConfig.model_validate(values)


def logps(run, name):
    with np.load(run / "reference" / f"{name}.npz") as stored:
        return stored["logps"]


def records(run, kind="train"):
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [line for line in lines if line["kind"] == kind]


def losses(run, kind="train"):
    return [line["loss"] for line in records(run, kind)]


@pytest.fixture(scope="module")
def run(data, tmp_path_factory):
    """A finished run of two epochs on precomputed log-probs."""
    directory = tmp_path_factory.mktemp("run") / "run"
    train(config(data, directory), writers=())
    return directory


@pytest.fixture
def passes(monkeypatch):
    """Numbers of the batches that passes over the data score, and a switch to break one off."""
    scored, broken = [], {"after": None}
    original = reference._to_host

    def noting(tree):
        if broken["after"] == len(scored):
            raise KeyboardInterrupt
        scored.append(len(scored))
        return original(tree)

    monkeypatch.setattr(reference, "_to_host", noting)
    monkeypatch.setattr(reference, "_SAVE_EVERY_S", 0.0)
    return scored, broken


def test_the_first_epoch_is_bit_equal_to_online_scores_and_later_ones_are_within_rounding(data, run, tmp_path):
    train(config(data, tmp_path / "online", reference={"mode": "online"}), writers=())
    ours, theirs = losses(run), losses(tmp_path / "online")
    assert len(ours) == 2 * STEPS_PER_EPOCH
    assert ours[:STEPS_PER_EPOCH] == theirs[:STEPS_PER_EPOCH]
    np.testing.assert_allclose(ours, theirs, rtol=1e-5)
    assert ours[0] == pytest.approx(np.log(2), rel=1e-5) and abs(ours[-1] - np.log(2)) > 1e-2
    np.testing.assert_allclose(losses(run, "eval"), losses(tmp_path / "online", "eval"), rtol=1e-5)
    assert not (tmp_path / "online" / "reference").exists()


def test_accuracies_come_from_stored_log_probs_and_are_the_same_without_them(data, run, tmp_path):
    shutil.copytree(run, tmp_path / "run")
    changed, steps = config(data, tmp_path / "run"), 2 * STEPS_PER_EPOCH
    read = pair_accuracies(changed, steps)
    shutil.rmtree(tmp_path / "run" / "reference")
    assert pair_accuracies(changed, steps) == read
    assert read["training pairs"].pairs == 40 and read["training pairs"].value > 0.5
    shutil.copytree(run / "reference", tmp_path / "run" / "reference")
    for name in ("train", "eval"):
        file = tmp_path / "run" / "reference" / f"{name}.npz"
        with np.load(file) as stored:
            arrays = dict(stored)
        np.savez(file, **arrays | {"logps": arrays["logps"] + np.float32([1e3, 0])})
    assert {accuracy.value for accuracy in pair_accuracies(changed, steps).values()} == {0.0}


def test_log_probs_do_not_depend_on_the_rows_that_they_were_computed_in(data, run, tmp_path):
    other = {"examples": None, "rows": 8, "microbatches": 1, "row_length": 96}
    changes = {
        "schedule": {"epochs": None, "steps": 1, "warmup_steps": 0},
        "mesh": {"data": 1, "fsdp": 8, "tensor": 1},
        "eval": {"rows": 8},
    }
    train(config(data, tmp_path / "run", batch=other, **changes), writers=(), until_step=0)
    for name in ("train", "eval"):
        ours, theirs = (logps(place, name) for place in (tmp_path / "run", run))
        assert ours.shape == theirs.shape and ours.dtype == np.float32 and not np.isnan(ours).any()
        assert np.abs(ours - theirs).max() <= 1e-5 * np.abs(theirs).max()


def test_neither_checkpoint_nor_optimizer_holds_any_of_the_reference(run):
    step = run / "checkpoints" / str(2 * STEPS_PER_EPOCH)
    assert {path.name for path in step.iterdir() if path.is_dir()} == {*ITEMS, "checksums"}
    params, optimizer = (
        sum(int(np.prod(leaf.shape)) for leaf in stored_leaves(step / item).values())
        for item in ("params", "optimizer")
    )
    counters = optimizer - 2 * params  # the rest are two moments a weight
    assert 0 < counters < 5


def test_an_interrupted_pass_goes_on_where_it_was(data, run, tmp_path, passes):
    scored, broken = passes
    broken["after"] = 3
    with pytest.raises(KeyboardInterrupt):
        train(config(data, tmp_path / "run"), writers=())
    half = logps(tmp_path / "run", "train")
    assert 0 < np.isnan(half).any(1).sum() < len(half)
    broken["after"], before = None, len(scored)
    train(config(data, tmp_path / "run"), writers=(), until_step=1)
    evaluation_batches = 1
    assert len(scored) - before == STEPS_PER_EPOCH - before + evaluation_batches
    for name in ("train", "eval"):
        ours, whole = (logps(place, name) for place in (tmp_path / "run", run))
        np.testing.assert_array_equal(ours, whole)
    assert losses(tmp_path / "run") == losses(run)[:1]


def test_runs_share_what_was_scored_once(data, run, tmp_path, passes):
    shared = {"dir": str(run / "reference")}
    again = config(data, tmp_path / "run", reference=shared, objective={"name": "dpo", "beta": 0.4, "loss": "ipo"})
    train(again, writers=(), until_step=0)
    assert passes[0] == []


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"run": {"seed": 4}}, r"another reference model \(weights, .*\) \(\w{24}, not \w{24}\)"),
        ({"precision": {"compute": "bfloat16"}}, r"another precision.compute \(float32, not bfloat16\)"),
        ({"batch": {"max_sequence_length": 12}}, r"other examples \(batch.max_sequence_length, .*differs\)"),
        ({"data": {"split": "validation"}}, r"another split \(train, not validation\)"),
    ],
)
def test_log_probs_of_something_else_are_refused_with_the_reason(data, run, tmp_path, changes, reason):
    before = {file.name: file.read_bytes() for file in (run / "reference").iterdir()}
    mine = config(data, tmp_path / "mine", reference={"dir": str(run / "reference")}, **changes)
    with pytest.raises(ConfigError, match=rf"train\.npz: these log-probs are of {reason}.*another reference\.dir"):
        train(mine, writers=())
    assert {file.name: file.read_bytes() for file in (run / "reference").iterdir()} == before
    assert not (tmp_path / "mine" / "checkpoints").exists()


@pytest.mark.parametrize("field", ["fingerprint", "template", "tokenizer"])
def test_log_probs_of_another_data_set_template_or_tokenizer_are_refused(data, run, tmp_path, field):
    copy = shutil.copytree(data, tmp_path / "data")
    manifest = json.loads((copy / "manifest.json").read_text())
    other = {
        "fingerprint": "other",
        "template": "mistral-inst",
        "tokenizer": manifest["tokenizer"] | {"fingerprint": "x"},
    }
    (copy / "manifest.json").write_text(json.dumps(manifest | {field: other[field]}))
    name = {"fingerprint": "data set"}.get(field, field)
    with pytest.raises(ConfigError, match=f"of another {name} "):
        train(config(copy, tmp_path / "mine", reference={"dir": str(run / "reference")}), writers=())


def test_truncated_responses_are_other_examples(data, run, tmp_path):
    cut = {"overlong": "truncate", "max_sequence_length": 20}
    train(config(data, tmp_path / "cut", batch=cut), writers=(), until_step=0)
    further = config(
        data,
        tmp_path / "mine",
        batch=cut | {"max_sequence_length": 19},
        reference={"dir": str(tmp_path / "cut/reference")},
    )
    with pytest.raises(ConfigError, match="of other examples"):
        train(further, writers=())


def test_an_identity_is_compared_whole():
    """Messages shorten what they show; names and fingerprints that begin alike are different all the same."""
    like = "a" * 40
    base = Identity(like, like, like, like, like, like, like, format_version=1)
    for field in fields(Identity):
        other = replace(base, **{field.name: 2 if field.name == "format_version" else f"{like}b"})
        assert len(other.differences(base)) == len(base.differences(other)) == 1
    assert base.differences(base) == [] and base.differences(replace(base, model="")) == []


def test_a_damaged_file_of_log_probs_is_named(data, run, tmp_path):
    copy = shutil.copytree(run / "reference", tmp_path / "reference")
    whole = (copy / "train.npz").read_bytes()
    for content in (whole[:100], whole[:-30], b"", b"{}"):
        (copy / "train.npz").write_bytes(content)
        with pytest.raises(DataError, match=r"train\.npz: cannot be read.*remove it"):
            train(config(data, tmp_path / "run", reference={"dir": str(copy)}), writers=())


def test_the_reference_leaves_memory_before_the_first_step(data, tmp_path, monkeypatch):
    held = []
    original = Loader.batches

    def noting(self, *arguments, **options):
        held.append(sum(leaf.nbytes for leaf in jax.live_arrays() if leaf.dtype == jnp.bfloat16))
        return original(self, *arguments, **options)

    gc.collect()
    before = sum(leaf.nbytes for leaf in jax.live_arrays() if leaf.dtype == jnp.bfloat16)
    monkeypatch.setattr(Loader, "batches", noting)
    half = {"precision": {"compute": "bfloat16"}, "eval": {"every_steps": None}}
    train(config(data, tmp_path / "run", **half), writers=(), until_step=0)
    during, after = held  # the pass over the reference, and training
    assert during > before >= after


@pytest.fixture(scope="module")
def published(run, tmp_path_factory):
    """A Hugging Face directory to start from."""
    out = tmp_path_factory.mktemp("published") / "model"
    to_hf(run, out)
    return out


@pytest.mark.parametrize("mode", ["online", "precompute"])
def test_a_model_that_was_exchanged_under_a_run_does_not_become_its_reference(data, run, published, tmp_path, mode):
    model = shutil.copytree(published, tmp_path / "model")
    start = {"model": None, "init": {"from": str(model)}, "reference": {"mode": mode}, "eval": {"every_steps": None}}
    mine = config(data, tmp_path / "run", **start)
    train(mine, writers=(), until_step=2)
    other = init_params(ModelConfig(**json.loads(_meta(run))["model"]), jax.random.key(9))
    shutil.rmtree(model)
    from janus_jax.checkpoint.hf.read import save_hf

    save_hf(other, ModelConfig(**json.loads(_meta(run))["model"]), model)
    if mode == "precompute":
        train(mine, writers=(), until_step=3)  # the numbers are there: the weights are not asked
        shutil.rmtree(tmp_path / "run" / "reference")
    with pytest.raises(ConfigError, match=r"init\.from=.*model: is not the model that this run began with"):
        train(mine, writers=(), until_step=4)


@pytest.mark.parametrize(("key", "value"), [("sliding_window", 5), ("rope_parameters", {"rope_theta": 5e3})])
def test_a_run_does_not_go_on_under_another_config_of_its_model(data, published, tmp_path, key, value):
    model = shutil.copytree(published, tmp_path / "model")
    mine = config(data, tmp_path / "run", model=None, init={"from": str(model)})
    train(mine, writers=(), until_step=1)
    described = json.loads((model / "config.json").read_text())
    if key == "rope_parameters":
        described["rope_theta"] = value["rope_theta"]
    (model / "config.json").write_text(json.dumps(described | {key: value}))
    name = {"rope_parameters": "rope_theta"}.get(key, key)
    with pytest.raises(ConfigError, match=rf"init\.from=.*: its model differs from .*: {name} = .*, not 5"):
        train(mine, writers=(), until_step=2)


def _meta(run):
    step = max((run / "checkpoints").iterdir(), key=lambda path: int(path.name))
    return (step / "meta" / "metadata").read_text()


def test_a_reference_that_is_gone_is_needed_online_only(data, run, published, tmp_path):
    start = {"model": None, "init": {"from": str(published)}, "eval": {"every_steps": None}}
    for mode in ("online", "precompute"):
        kept = shutil.copytree(run, tmp_path / f"{mode}-reference")
        mine = config(
            data, tmp_path / mode, reference={"mode": mode, "from": str(kept)}, **start, checkpoint={"every_steps": 2}
        )
        train(mine, writers=(), until_step=2)
        step = max((kept / "checkpoints").iterdir(), key=lambda path: int(path.name))
        step.rename(step.with_name("11"))
        if mode == "precompute":
            train(mine, writers=(), until_step=3)
            continue
        with pytest.raises(ConversionError, match="no step 10; existing steps: 11"):
            train(mine, writers=(), until_step=3)


def test_a_pass_whose_run_directory_was_taken_over_writes_nothing_more(data, tmp_path, monkeypatch):
    original, written = reference._to_host, []

    def stolen(tree):
        if not written:
            (tmp_path / "run/lock.json").unlink()
            written.append((tmp_path / "run/reference/train.npz").read_bytes())
        return original(tree)

    monkeypatch.setattr(reference, "_to_host", stolen)
    monkeypatch.setattr(reference, "_SAVE_EVERY_S", 0.0)
    with pytest.raises(LostLockError):
        train(config(data, tmp_path / "run"), writers=())
    assert (tmp_path / "run/reference/train.npz").read_bytes() == written[0]


def test_a_reference_without_finite_log_probs_is_refused(data, tmp_path, monkeypatch):
    original = reference._to_host
    monkeypatch.setattr(reference, "_to_host", lambda tree: (*original(tree)[:2], original(tree)[2] * np.nan))
    with pytest.raises(NonFiniteError, match=r"reference: the log-probs of examples? \d+.* of .*dpo, split train"):
        train(config(data, tmp_path / "run"), writers=())


# --- The fingerprint of weights


def sharded(params, **shape):
    mesh = build_mesh(MeshShape(**shape))
    return jax.tree.map(jax.device_put, params, param_shardings(param_specs(TINY), mesh, DEFAULT_RULES))


def test_a_fingerprint_is_the_same_on_every_mesh_and_of_no_other_weights():
    params = init_params(TINY, jax.random.key(0))
    expected = weights_fingerprint(params)
    for shape in ({"data": 8, "fsdp": 1}, {"fsdp": 8}, {"data": 2, "fsdp": 2, "tensor": 2}):
        assert weights_fingerprint(sharded(params, **shape)) == expected
    gate = params["layers"]["mlp"]["gate"]

    def changed(array):
        return params | {"layers": params["layers"] | {"mlp": params["layers"]["mlp"] | {"gate": array}}}

    others = [
        changed(gate.at[1, 3, 5].multiply(1 + 2**-23)),
        changed(gate[::-1]),  # layers in another order
        changed(gate.at[0, 0, 0].set(gate[0, 0, 1]).at[0, 0, 1].set(gate[0, 0, 0])),
        jax.tree.map(lambda leaf: leaf.astype(jnp.bfloat16), params),
        params | {"final_norm": -params["final_norm"]},
    ]
    fingerprints = {weights_fingerprint(other) for other in others}
    assert len(fingerprints) == len(others) and expected not in fingerprints
    assert weights_fingerprint(changed(gate + 0)) == expected
    models = [TINY, replace(TINY, sliding_window=5), replace(TINY, rope_theta=1e6), replace(TINY, rms_norm_eps=1e-6)]
    assert len({model_fingerprint(model, params) for model in models}) == len(models)
    assert model_fingerprint(replace(TINY, initializer_range=0.1), params) == model_fingerprint(TINY, params)


def test_the_pairs_that_are_not_scored_are_counted_by_reason():
    counts = {"dropped": 3, "truncated": 1, "zeroed": 0, "equal_pairs": 2, "keep_together": 0}
    fitted = SimpleNamespace(counts=counts, index=np.arange(30))
    assert reference._unread(SimpleNamespace(fitted=fitted), 22) == (
        "; the run does not read the others: 3 over-long, 2 with equal responses, 8 not reached by its last step"
    )
    none = SimpleNamespace(counts=dict.fromkeys(counts, 0), index=np.arange(30))
    assert reference._unread(SimpleNamespace(fitted=none), 30) == ""
