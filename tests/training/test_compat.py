"""The switches of `compat:`: each does what the published trainers did, and nothing else."""

import shlex

import pytest

from janus_jax import cli
from janus_jax.config import RunConfig
from janus_jax.data.sample import write_sample
from janus_jax.errors import ConfigError
from janus_jax.training.setup import prepare

MODEL = {"preset": "tiny", "hidden_size": 32, "intermediate_size": 48, "num_layers": 2, "head_dim": 8}


def config(directory, run, **changes):
    values = {
        "run": {"dir": str(run), "seed": 3},
        "model": MODEL,
        "data": {"dir": str(directory)},
        "batch": {"rows": 8, "row_length": 64, "max_sequence_length": 32, "microbatches": 2},
        "objective": {"name": "dpo"},
        "schedule": {"name": "cosine", "learning_rate": 3e-3, "warmup_steps": 2, "steps": 4},
        "mesh": {"data": 2, "fsdp": 2, "tensor": 2},
        "precision": {"compute": "float32"},
        "logging": {"tensorboard": False},
    }
    for key, value in changes.items():
        values[key] = {**values[key], **value} if isinstance(value, dict) and key in values else value
    return RunConfig.model_validate(values)


# --- token_boundary


def test_data_of_the_other_boundary_is_refused_with_the_command_that_builds_it_right(tmp_path, monkeypatch, capsys):
    """The command is run as it stands in the message."""
    monkeypatch.chdir(tmp_path)

    def janus(line: str) -> None:
        monkeypatch.setattr("sys.argv", shlex.split(line))
        with pytest.raises(SystemExit) as done:
            cli.main()
        assert not done.value.code, capsys.readouterr().err

    write_sample("dpo", "my rows")
    janus(
        "janus data build --kind dpo --template chatml --source 'my rows/train.jsonl' "
        "--validation-source 'my rows/validation.jsonl' --out data"
    )
    batch = {"row_length": 2048, "max_sequence_length": 1024}
    compat = {"token_boundary": "joint"}
    prepare(config("data", "run", batch=batch))
    with pytest.raises(ConfigError) as refusal:
        prepare(config("data", "run", batch=batch, compat=compat))
    message = str(refusal.value)
    assert message.startswith("data.dir=data: was built with token boundary separate, but compat.token_boundary=joint;")
    janus(message[message.index("janus data build") :])
    setup = prepare(config("data_joint", "run", batch=batch, compat=compat))
    manifest = setup.loader.dataset.manifest
    assert (manifest.boundary, manifest.template, list(manifest.splits)) == ("joint", "chatml", ["train", "validation"])
    held_out = {"data": {"eval_dir": "data"}, "eval": {"every_steps": 1}}
    with pytest.raises(ConfigError, match=r"data\.eval_dir=data: was built with token boundary separate"):
        prepare(config("data_joint", "run", batch=batch, compat=compat, **held_out))
