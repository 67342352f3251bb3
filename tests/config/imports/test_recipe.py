"""`janus config import`: what it prints, what it writes, and when it refuses."""

import json
from pathlib import Path

import pytest
import yaml
from typer.testing import CliRunner

from janus_jax.cli import config as command
from janus_jax.config.imports.recipe import import_recipe
from janus_jax.config.run import load_config
from janus_jax.errors import ConfigError
from tests.support.recipes import PUBLISHED, imported

RUN = CliRunner()


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "mine.yml"
    path.write_text(yaml.safe_dump(PUBLISHED["orpo.yml"] | {"frobnicate": [1, 2]}))
    return path


def test_refuses_and_writes_nothing_unless_forced(file: Path, tmp_path: Path) -> None:
    out = tmp_path / "ours.yaml"
    refused = RUN.invoke(command.app, ["import", str(file), "--devices", "4", "--out", str(out)])
    assert isinstance(refused.exception, ConfigError) and "frobnicate; --force" in str(refused.exception)
    assert "frobnicate: [1, 2]" in refused.output and not out.exists()
    forced = RUN.invoke(command.app, ["import", str(file), "--devices", "4", "--out", str(out), "--force"])
    assert forced.exit_code == 0 and "# Not here: frobnicate" in out.read_text()
    assert load_config(out).batch.examples == 16
    again = RUN.invoke(command.app, ["import", str(file), "--out", str(out), "--force"])
    assert isinstance(again.exception, ConfigError) and "exists" in str(again.exception)


def test_yaml_and_json_on_stdout(file: Path) -> None:
    shown = RUN.invoke(command.app, ["import", str(file), "--force", "run.dir=runs/other"])
    assert yaml.safe_load(shown.stdout)["run"]["dir"] == "runs/other" and "kept (" in shown.stderr
    report = json.loads(RUN.invoke(command.app, ["import", str(file), "--force", "--json"]).stdout)
    assert report["config"]["objective"]["name"] == "orpo" and report["refused"] == ["frobnicate"]
    assert any(one.startswith("devices:") for one in report["by_hand"])


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("a: [1\n", "x.yaml:2: no valid YAML"),
        ("- a\n", "allowed: a mapping"),
        ("!!python/object/apply:os.system ['id']\n", "no valid YAML"),
        ("colour: red\n", "of which tool is it"),
        ("base_model: a\nlist: &b [*b]\n", "5,000 keys"),
    ],
)
def test_files_that_are_no_recipe(content: str, words: str, tmp_path: Path) -> None:
    (tmp_path / "x.yaml").write_text(content)
    with pytest.raises(ConfigError, match=words):
        import_recipe(str(tmp_path / "x.yaml"))


def test_scripts_that_are_no_recipe(tmp_path: Path) -> None:
    (tmp_path / "x.sh").write_text("echo hello\n")
    with pytest.raises(ConfigError, match="neither a YAML or JSON mapping nor a training command"):
        import_recipe(str(tmp_path / "x.sh"))
    (tmp_path / "x.sh").write_text("python train_sft.py --max_len 3\npython train_rm.py --max_len 3\n")
    with pytest.raises(ConfigError, match="in lines 1 and 2"):
        import_recipe(str(tmp_path / "x.sh"))
    with pytest.raises(ConfigError, match=r"none\.sh: cannot be read"):
        import_recipe(str(tmp_path / "none.sh"))


def test_key_given_twice_is_a_defect(tmp_path: Path) -> None:
    content = "base_model: a/b\nlearning_rate: 1.0e-5\nmicro_batch_size: 1\nlearning_rate: 2.0e-5\n"
    _, report = imported(tmp_path, "x.yaml", content, devices=1)
    assert "learning_rate occurs twice: the last value counts" in report["defects"]
    assert report["config"]["schedule"]["learning_rate"] == 2e-5


def test_comment_cannot_be_left_by_a_value(tmp_path: Path) -> None:
    content = 'base_model: "a/b\\nrun: {dir: evil}"\nlearning_rate: 1.0e-5\nmicro_batch_size: 1\n'
    recipe, _ = imported(tmp_path, "x.yaml", content, devices=1)
    assert yaml.safe_load(recipe.text)["run"]["dir"] == "runs/x"
