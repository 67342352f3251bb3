"""`janus data synthesize`: its options and what it prints."""

import pytest
from typer.testing import CliRunner

from janus_jax.cli.data import app
from janus_jax.errors import ConfigError
from tests.support.endpoint_server import serving
from tests.support.synthesizing import answer, write_config

pytest.importorskip("openai")


def run(*arguments):
    return CliRunner().invoke(app, ["synthesize", *map(str, arguments)], catch_exceptions=True)


def test_a_dry_run_asks_nobody_and_writes_nothing(tmp_path):
    with serving(answer) as server:
        prices = {"prices": {"prompt": 1.0, "completion": 2.0}}
        result = run(write_config(tmp_path, server.url, endpoint=prices), "--limit", 2, "--dry-run")
        assert result.exit_code == 0 and not server.bodies and not (tmp_path / "out").exists()
    lines = {line.split()[0]: line.split()[1:] for line in result.stdout.splitlines()}
    assert lines["systems"][0] == lines["responses"][0] == "6" and "?" not in result.stdout
    *steps, total = (list(map(lambda one: float(one.replace(",", "")), values)) for values in list(lines.values())[1:])
    assert [sum(column) for column in zip(*steps, strict=True)] == pytest.approx(total, abs=0.03)


def test_one_step_is_made_and_paid_for(tmp_path):
    with serving(answer) as server:
        result = run(write_config(tmp_path, server.url), "--step", "hierarchy")
    assert result.exit_code == 0
    assert result.stdout.startswith("made: hierarchy in ") and "2,100 tokens spent in all" in result.stdout
    assert (tmp_path / "out/steps/hierarchy/rows.jsonl").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            ["--answers", "a.jsonl"],
            "--answers: allowed: only with --step, one of hierarchy, systems, responses, rubrics",
        ),
        (["--answers", "a.jsonl", "--step", "systems"], "--answers a.jsonl: no such file"),
        (["--dry-run", "--batch"], "--dry-run: not allowed with --batch or --answers"),
        (["seed=x"], "seed = x: allowed: a whole number"),
    ],
)
def test_options_that_are_not_allowed_are_named(tmp_path, arguments, message):
    result = run(write_config(tmp_path, "http://127.0.0.1:9/v1"), *arguments)
    assert isinstance(result.exception, ConfigError) and message in str(result.exception)
    assert not (tmp_path / "out").exists()
