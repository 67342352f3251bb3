"""The loop on small models and data: it learns, it resumes bit for bit, and it refuses what cannot be run."""

import contextlib
import functools
import json

import jax
import numpy as np
import pytest

from janus_jax.checkpoint.convert import to_hf
from janus_jax.checkpoint.run_dir import RunDir
from janus_jax.checkpoint.state import Checkpoints
from janus_jax.errors import ConfigError, DataError, HeldError, LostLockError, NonFiniteError, StorageError
from janus_jax.storage.lock import Lock, held
from janus_jax.text.template import CHATML
from janus_jax.training.run import train
from tests.support import run_configs
from tests.support.run_configs import ONE_LAYER, SIX_STEPS
from tests.support.runs import assert_equal_trees, final_params, losses, metric_lines
from tests.support.training_examples import random_examples, write_dataset

pytestmark = pytest.mark.usefixtures("programs")

run_config = functools.partial(run_configs.run_config, model=ONE_LAYER)


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    root = tmp_path_factory.mktemp("data")
    for kind in ("sft", "dpo"):
        splits = {
            "train": random_examples(100, pairs=kind == "dpo", seed=1),
            "validation": random_examples(9, pairs=kind == "dpo", seed=2),
        }
        write_dataset(root / kind, splits, kind=kind)
    return root


@pytest.mark.parametrize("kind", ["sft", "dpo"])
def test_a_stopped_run_resumes_bit_for_bit(data, tmp_path, kind):
    whole = train(run_config(data, tmp_path / "whole", kind, schedule=SIX_STEPS), writers=())
    assert whole.step == whole.total_steps == 6
    stopped = train(run_config(data, tmp_path / "parts", kind, schedule=SIX_STEPS), until_step=5, writers=())
    assert stopped.step == 5
    resumed = train(run_config(data, tmp_path / "parts", kind, schedule=SIX_STEPS), writers=())
    assert resumed.resumed_from == 5
    assert losses(tmp_path / "parts") == losses(tmp_path / "whole")
    assert_equal_trees(final_params(tmp_path / "parts"), final_params(tmp_path / "whole"))
    assert resumed.evaluation == whole.evaluation


def test_training_lowers_the_loss_and_dpo_starts_at_log_2_from_its_own_weights(data, tmp_path):
    sft = train(run_config(data, tmp_path / "sft", schedule={"epochs": 12, "learning_rate": 1e-2}), writers=())
    curve = losses(tmp_path / "sft")
    assert curve[sft.step] < 0.7 * curve[1]
    preferred = run_config(
        data, tmp_path / "dpo", "dpo", model=None, init={"from": str(tmp_path / "sft")}, schedule={"epochs": 10}
    )
    dpo = train(preferred, writers=())
    first = metric_lines(tmp_path / "dpo")[0]
    assert first["loss"] == pytest.approx(np.log(2), rel=1e-5)
    assert first["rewards/margins"] == pytest.approx(0, abs=1e-5)
    assert dpo.train["rewards/accuracies"] > 0.9 and dpo.train["rewards/margins"] > 0.1


def test_a_run_may_move_to_another_mesh_but_not_to_another_recipe(data, tmp_path):
    """Its curve stays that of the first mesh."""
    train(run_config(data, tmp_path / "whole", schedule=SIX_STEPS), writers=())
    train(run_config(data, tmp_path / "run", schedule=SIX_STEPS), until_step=2, writers=())
    with pytest.raises(ConfigError, match=r"holds a run with optimizer.b2 = 0.999, not 0.9 .*choose another run\.dir"):
        train(run_config(data, tmp_path / "run", schedule=SIX_STEPS, optimizer={"b2": 0.9}), writers=())
    with pytest.raises(ConfigError, match=r"holds a run with schedule.name = cosine, not linear as this config says"):
        other = {"name": "linear", "learning_rate": 0.5, **SIX_STEPS}
        train(run_config(data, tmp_path / "run", schedule=other), writers=())
    moved = run_config(
        data,
        tmp_path / "run",
        schedule=SIX_STEPS,
        mesh={"data": 4, "fsdp": 1, "tensor": 2},
        data={"eval_dir": str(data / "sft"), "eval_split": "train"},
    )
    assert train(moved, writers=()).step == 6
    curves = [[*losses(tmp_path / name).values()] for name in ("run", "whole")]
    np.testing.assert_allclose(*curves, rtol=1e-5)


def test_held_out_evaluation_does_not_depend_on_its_batch(data, tmp_path):
    a = train(run_config(data, tmp_path / "a", "dpo", schedule=SIX_STEPS, eval={"rows": 4}), writers=())
    b = train(run_config(data, tmp_path / "b", "dpo", schedule=SIX_STEPS, eval={"rows": 16}), writers=())
    assert a.evaluation["loss"] == pytest.approx(b.evaluation["loss"], rel=1e-5)
    assert a.evaluation["rewards/accuracies"] * 9 == pytest.approx(round(a.evaluation["rewards/accuracies"] * 9))


def test_a_warm_up_longer_than_the_counted_steps_is_noted_before_the_first_step(data, tmp_path, capsys):
    long = run_config(data, tmp_path / "run", schedule={"epochs": 1, "warmup_steps": 500}, eval={"every_steps": None})
    train(long, until_step=0)
    before = capsys.readouterr().out.partition("train ")[0]
    assert "note: the warm-up, 500 steps, is longer than the run, which has " in before


def test_a_run_whose_every_rate_is_0_is_refused(data, tmp_path):
    one_step = {"schedule": {"epochs": 1}, "batch": {"rows": 64}, "eval": {"every_steps": None}}
    with pytest.raises(ConfigError, match=r"schedule.warmup_steps = 2: the run has one step.*schedule.warmup_steps=0"):
        train(run_config(data, tmp_path / "run", **one_step), writers=())
    assert not (tmp_path / "run").exists()


CONSTANT = {**SIX_STEPS, "name": "constant", "warmup_steps": 0}


def exploding(config):
    """With a rate that no configuration may have."""
    return config.model_copy(update={"schedule": config.schedule.model_copy(update={"learning_rate": 1e30})})


def test_a_run_says_which_examples_it_does_not_read(data, tmp_path, capsys):
    """Of both splits, before the first step and in summary.json."""
    summary = train(run_config(data, tmp_path / "run", batch={"max_sequence_length": 14}), until_step=0)
    assert json.loads((tmp_path / "run/summary.json").read_text())["held_out"] == summary.held_out
    printed = capsys.readouterr().out.splitlines()
    for split, role, count, read, overlong in (
        ("train", "training", 100, summary.examples, summary.overlong),
        ("validation", "held-out", 9, summary.held_out["examples"], summary.held_out["overlong"]),
    ):
        lengths = np.load(data / "sft" / split / "lengths.npy")
        long = int((lengths.sum(1) > 14).sum())
        assert 0 < long < count and (read, overlong["dropped"]) == (count - long, long)
        verb = "is" if long == 1 else "are"
        line = f"batch.max_sequence_length, batch.row_length: {long} of {count} {role} examples {verb} over-long"
        assert [lines for lines in printed if lines.startswith(line)]


def test_a_resumed_run_says_that_its_held_out_data_are_others(data, tmp_path, capsys):
    for split, noted in (("validation", False), ("validation", False), ("train", True)):
        train(run_config(data, tmp_path / "run", schedule=SIX_STEPS, data={"eval_split": split}), until_step=1)
        printed = " ".join(capsys.readouterr().out.split())
        assert ("are others than up to step 1" in printed) == noted
        assert ("are training examples" in printed) == noted


def test_a_loss_that_explodes_stops_the_run_with_its_step(data, tmp_path):
    with pytest.raises(NonFiniteError, match=r"step [0-9]+: ") as caught:
        train(exploding(run_config(data, tmp_path / "run", schedule=CONSTANT)), writers=())
    assert caught.value.exit_code == 12


def test_exports_speak_the_form_of_the_data(data, tmp_path):
    """The data of these tests are chatml; what a run exports by itself and what is converted of it later agree."""
    from transformers import AutoTokenizer

    setup = run_config(data, tmp_path / "run", schedule=SIX_STEPS, export={"hf": True}, eval={"every_steps": None})
    exported = train(setup, writers=()).export_dir
    to_hf(tmp_path / "run", tmp_path / "converted")
    messages = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Why?"}]
    for directory in (exported, tmp_path / "converted"):
        tokenizer = AutoTokenizer.from_pretrained(directory)
        text = tokenizer.apply_chat_template(messages, add_generation_prompt=True, tokenize=False)
        assert text == "<s>" + CHATML.prompt_text("Be brief.", "Why?")


def test_weights_that_are_not_finite_never_push_out_good_ones(data, tmp_path):
    changes = {"schedule": CONSTANT, "checkpoint": {"every_steps": 1}, "logging": {"every_steps": 100}}
    with pytest.raises(NonFiniteError, match=r"step 2: .*newest checkpoint is of step 1"):
        train(exploding(run_config(data, tmp_path / "run", **changes)))
    assert np.isfinite(jax.tree.leaves(final_params(tmp_path / "run"))[0]).all()


def test_the_reference_stays_what_it_was_when_its_run_goes_on(data, tmp_path):
    sft = run_config(data, tmp_path / "sft", schedule=SIX_STEPS, checkpoint={"keep": 9})
    train(sft, writers=(), until_step=3)
    dpo = {
        "model": None,
        "init": {"from": str(tmp_path / "sft")},
        "schedule": SIX_STEPS,
        "reference": {"mode": "online"},
    }
    train(run_config(data, tmp_path / "whole", "dpo", **dpo), writers=())
    train(run_config(data, tmp_path / "parts", "dpo", **dpo), writers=(), until_step=3)
    train(sft, writers=())  # now its newest step is another one
    train(run_config(data, tmp_path / "parts", "dpo", **dpo), writers=())
    assert losses(tmp_path / "parts") == losses(tmp_path / "whole")


def test_the_reference_is_the_initial_policy_whatever_the_parameters_are_kept_in(data, tmp_path):
    train(run_config(data, tmp_path / "sft", schedule=SIX_STEPS), writers=())
    start = {
        "model": None,
        "init": {"from": str(tmp_path / "sft")},
        "schedule": {"epochs": None, "steps": 1, "warmup_steps": 0},
    }
    rest = {"compat": {"bfloat16_weights": True}, "eval": {"every_steps": None}}
    dpo = train(run_config(data, tmp_path / "dpo", "dpo", **start, **rest), writers=())
    assert (dpo.train["rewards/margins"], dpo.train["rewards/accuracies"]) == (0, 0)


def test_a_finished_run_started_again_changes_nothing(data, tmp_path):
    run = tmp_path / "NaNdir"
    train(run_config(data, run, schedule=SIX_STEPS, export={"hf": True}), writers=())
    before = (run / "summary.json").read_text()
    assert json.loads(before)["run_dir"].endswith("/NaNdir")
    train(run_config(data, run, schedule=SIX_STEPS, export={"hf": True}), writers=())
    assert (run / "summary.json").read_text() == before
    with pytest.raises(ConfigError, match=r"export.dtype=bfloat16: .* exists already, in float32"):
        train(run_config(data, run, schedule=SIX_STEPS, export={"hf": True, "dtype": "bfloat16"}), writers=())


def test_a_run_goes_on_from_the_last_good_checkpoint(data, tmp_path, capfd):
    """As if the damaged one had never been written: the steps after it are trained again, bit for bit."""
    config = run_config(data, tmp_path / "run", schedule=SIX_STEPS, checkpoint={"every_steps": 2})
    whole = train(config, writers=(), until_step=4)
    before = losses(tmp_path / "run")
    steps = tmp_path / "run" / "checkpoints"
    for file in (steps / "4" / "params").rglob("d/*"):
        file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])
    again = train(config, writers=(), until_step=4)
    assert (whole.step, again.step, again.resumed_from) == (4, 4, 2)
    assert losses(tmp_path / "run") == before
    assert sorted(path.name for path in steps.iterdir()) == ["2", "4", "4.damaged"]
    shown = capfd.readouterr().err
    assert f"note: {steps / '4'}: params: " in shown and "kept as 4.damaged" in shown and "Traceback" not in shown


def test_profile_steps_leave_a_trace(data, tmp_path):
    train(run_config(data, tmp_path / "run", schedule=SIX_STEPS, profile={"steps": [2, 3]}), writers=())
    assert list((tmp_path / "run" / "profile").rglob("*.xplane.pb"))


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"data": {"dir": "nowhere"}}, DataError, "nowhere: no such directory"),
        ({"data": {"split": "test"}}, DataError, "has no split 'test'"),
        ({"objective": {"name": "dpo"}}, DataError, "holds single responses"),
        ({"model": {"vocab_size": 64}}, ConfigError, "model.vocab_size = 64: .* has 96 ids .*; allowed: at least 96$"),
        ({"mesh": {"tensor": 3}}, ConfigError, "needs 12 devices, but there are 8"),
        ({"mesh": {"data": 1, "fsdp": 1, "tensor": 8}}, ConfigError, "tensor=8 does not divide"),
        ({"batch": {"rows": 12}}, ConfigError, "batch.rows: 6 rows in a microbatch do not divide over 4"),
        (
            {"batch": {"row_length": 10**10}},
            ConfigError,
            r"batch.row_length = 10000000000: 3 batches .*but this machine",
        ),
        ({"batch": {"row_length": 10**8}}, ConfigError, r"batch.row_length = 100000000: .* take at least"),
        ({"batch": {"rows": 8 * 10**9}}, ConfigError, r"batch.rows = 8000000000, .*: the lists of rows take"),
        (
            {"batch": {"microbatches": 10**9, "rows": None, "examples": 8}},
            ConfigError,
            r"batch.microbatches = 10000000",
        ),
        ({"batch": {"max_segments": 10**10}}, ConfigError, r"batch.max_segments = 10000000000: 3 batches"),
        ({"eval": {"rows": 8 * 10**9}}, ConfigError, r"eval.rows = 8000000000, .*: the lists of rows take"),
        ({"model": {"max_position_embeddings": 16}}, ConfigError, "max_position_embeddings=16"),
    ],
)
def test_what_cannot_run_is_refused_before_anything_is_written(data, tmp_path, changes, error, message):
    with pytest.raises(error, match=message):
        train(run_config(data, tmp_path / "run", **changes), writers=())
    assert not (tmp_path / "run").exists()


def test_a_run_is_refused_while_another_one_holds_its_directory_and_stops_when_it_loses_it(data, tmp_path):
    config = run_config(data, tmp_path / "run", schedule=SIX_STEPS)
    with held(tmp_path / "run" / "lock.json", "first"), pytest.raises(HeldError, match=f"^{tmp_path}/run: is held by"):
        train(config, writers=())
    assert not (tmp_path / "run" / "config.yaml").exists()

    class Thief:
        def write(self, kind, step, values):
            if step == 2:
                (tmp_path / "run" / "lock.json").unlink()

        def close(self):
            pass

    with pytest.raises(LostLockError):
        train(config, writers=[Thief()])
    assert [*losses(tmp_path / "run")] == [1, 2] and not (tmp_path / "run" / "summary.json").exists()
    train(config, writers=())
    assert [*losses(tmp_path / "run")] == [*range(1, 7)] and not (tmp_path / "run" / "lock.json").exists()


def test_a_run_that_loses_its_directory_during_a_save_commits_nothing_and_ends_with_15(
    data, tmp_path, monkeypatch, capfd
):
    """Whatever else fails while it ends."""
    confirm, close = Lock.confirm, Checkpoints.close

    def stolen(self):
        (tmp_path / "run" / "lock.json").unlink(missing_ok=True)
        confirm(self)

    def failing(self):
        with contextlib.suppress(LostLockError):
            close(self)
        raise StorageError("checkpoints", "cannot be written: refused by the test")

    monkeypatch.setattr(Lock, "confirm", stolen)
    monkeypatch.setattr(Checkpoints, "close", failing)
    with pytest.raises(LostLockError) as lost:
        train(run_config(data, tmp_path / "run", schedule=SIX_STEPS, checkpoint={"every_steps": 2}), writers=())
    assert lost.value.exit_code == 15
    assert RunDir(tmp_path / "run").committed_steps() == []
    assert "refused by the test" in capfd.readouterr().err
