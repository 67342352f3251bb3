"""`janus config import`: what it prints, what it writes, and when it refuses."""

import json
import shlex
from pathlib import Path
from typing import Any

import pytest
import yaml
from typer.testing import CliRunner

from janus_jax.cli import config as command
from janus_jax.config.imports.recipe import import_recipe
from janus_jax.config.run import load_config
from janus_jax.errors import ConfigError
from tests.support.recipes import PUBLISHED, imported, verdicts

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


def test_head_of_a_forced_file_names_what_stands_for_a_value(tmp_path: Path) -> None:
    keys = {"num_epochs": 1.5, "lr_scheduler": "rex"}
    recipe, _ = imported(tmp_path, "x.yml", PUBLISHED["orpo.yml"] | keys, devices=1)
    head = (
        "# Not here: lr_scheduler (rex; instead schedule.name = cosine), num_epochs (1.5; instead schedule.epochs = 2)"
    )
    assert head in recipe.text.splitlines() and "epochs: 2" in recipe.text


def test_yaml_and_json_on_stdout(file: Path) -> None:
    shown = RUN.invoke(command.app, ["import", str(file), "--force", "run.dir=runs/other"])
    assert yaml.safe_load(shown.stdout)["run"]["dir"] == "runs/other" and "kept (" in shown.stderr
    report = json.loads(RUN.invoke(command.app, ["import", str(file), "--force", "--json"]).stdout)
    assert report["config"]["objective"]["name"] == "orpo" and report["refused"] == ["frobnicate"]
    assert any(one.startswith("devices:") for one in report["by_hand"])


def _import(folder: Path, model: str, *more: str) -> tuple[str, dict[str, Any]]:
    """Error and report of a recipe that starts from a model."""
    recipe = {
        "base_model": model,
        "learning_rate": 1e-5,
        "micro_batch_size": 1,
        "datasets": PUBLISHED["orpo.yml"]["datasets"],
    }
    (folder / "x.yml").write_text(yaml.safe_dump(recipe))
    done = RUN.invoke(command.app, ["import", str(folder / "x.yml"), "--devices", "1", "--json", *more])
    return str(done.exception or ""), json.loads(done.stdout)


@pytest.mark.parametrize(
    ("model", "verdict", "words"),
    [
        ("mistralai/Mistral-7B-v0.1", "kept", ""),
        ("meta-llama/Llama-2-7b-hf", "kept", ""),
        ("kaist-ai/janus-7b", "kept", ""),
        ("a/b", "kept", "if `architectures`"),
        ("deepseek-ai/DeepSeek-R1-Distill-Llama-8B", "kept", "without `rope_scaling`"),
        ("llava-hf/llava-v1.6-mistral-7b-hf", "kept", "if `architectures`"),
        ("mistralai/Mistral-Small-3.1-24B-Base-2503", "kept", "if `architectures`"),
        ("tiiuae/Falcon3-7B-Base", "kept", "if `architectures`"),
        ("tiiuae/falcon-7b", "not supported", "falcon is another"),
        ("Qwen/Qwen2.5-7B", "not supported", "another architecture than Mistral and Llama"),
        ("mistralai/Mixtral-8x7B-v0.1", "not supported", "Mixtral is another"),
        ("meta-llama/Llama-4-Scout-17B-16E", "not supported", "Llama-4 is another"),
        ("meta-llama/Llama-3.1-8B", "not supported", "rope_scaling"),
    ],
)
def test_names_of_models_that_cannot_be_read_are_refused(model: str, verdict: str, words: str, tmp_path: Path) -> None:
    error, report = _import(tmp_path, model)
    row = report["keys"][0]
    assert (row["key"], row["verdict"]) == ("base_model", verdict) and words in row["note"]
    assert bool(words) == bool(row["note"])
    is_kept = verdict == "kept"
    assert is_kept == (not error) == (f"hf download {model}" in report["commands"])
    assert is_kept or ("docs/conversion.md" in row["note"] and "base_model; --force" in error)


def test_config_json_decides_about_a_local_model(tmp_path: Path) -> None:
    model = tmp_path / "Mistral-7B"
    model.mkdir()
    (model / "config.json").write_text('{"architectures": ["Qwen2ForCausalLM"], "model_type": "qwen2"}')
    error, report = _import(tmp_path, str(model))
    assert 'architectures=["Qwen2ForCausalLM"]: allowed: ["MistralForCausalLM"]' in report["keys"][0]["note"] and error
    error, report = _import(tmp_path, "a/b", f"init.from={model}")
    assert not error and any("Qwen2ForCausalLM" in one for one in report["by_hand"])
    (model / "config.json").unlink()
    error, report = _import(tmp_path, str(model))
    assert not error and report["keys"][0]["note"].startswith("the directory has no config.json; docs/conversion.md")
    (model / "checkpoints").mkdir()  # of a run of ours
    assert not _import(tmp_path, str(model))[1]["keys"][0]["note"]


def test_overrides_are_listed_and_decide_what_is_downloaded(tmp_path: Path) -> None:
    given = ["init.from=me/mistral-sft", "batch.examples=4", "batch.examples=8", "mesh.tensor=2"]
    error, report = _import(tmp_path, "Qwen/Qwen2.5-7B", *given)
    assert not error and report["overrides"] == [
        {"key": "init.from", "old": "Qwen/Qwen2.5-7B", "new": "me/mistral-sft"},
        {"key": "batch.examples", "old": 1, "new": 8},
        {"key": "mesh.tensor", "old": None, "new": 2},
    ]
    assert report["keys"][0]["verdict"] == "not needed"
    assert report["commands"][0] == "hf download me/mistral-sft"
    assert [one for one in report["by_hand"] if "init.from" in one] == [
        "init.from = me/mistral-sft: check whether it can be read: if `architectures` in its config.json is of Mistral "
        "or Llama shape, without `rope_scaling`; docs/conversion.md lists what can be read"
    ]
    _, report = _import(tmp_path, "a/b", "init.from=runs/sft")  # beside run.dir: a run, not a hub id
    assert len(report["commands"]) == 1 and "download" not in report["commands"][0]
    assert not any("init.from" in one for one in report["by_hand"])
    text = RUN.invoke(command.app, ["import", str(tmp_path / "x.yml"), "mesh.tensor=2"]).stderr
    assert "overrides of the command line (1):\n  mesh.tensor: not set -> 2\n" in text


@pytest.mark.parametrize(
    ("model", "tokenizer"),
    [
        ("mistralai/Mistral-7B-v0.1", None),
        ("mistral-community/Mistral-7B-v0.2", None),
        ("mistralai/Mistral-7B-Instruct-v0.3", "$(hf download -q mistralai/Mistral-7B-Instruct-v0.3)"),
        ("meta-llama/Llama-2-7b-hf", "$(hf download -q meta-llama/Llama-2-7b-hf)"),
        ("models/of mine/llama", "models/of mine/llama"),
        ("/mnt/models/llama", "/mnt/models/llama"),
        ("gs://bucket/llama", "gs://bucket/llama"),
        ("runs/sft", "runs/sft/tokenizer"),
        ("runs/sft/checkpoints/12", "runs/sft/tokenizer"),
        ("Qwen/Qwen2.5-7B", "SET-BY-HAND"),
    ],
)
def test_data_are_built_with_the_tokenizer_of_the_weights(model: str, tokenizer: str | None, tmp_path: Path) -> None:
    for report in (_import(tmp_path, model)[1], _import(tmp_path, "a/b", f"init.from={model}")[1]):
        words = shlex.split(report["commands"][-1])
        assert words[:3] == ["janus", "data", "build"]
        assert ("--tokenizer" in words) == (tokenizer is not None)
        assert tokenizer is None or words[words.index("--tokenizer") + 1] == tokenizer


def test_tokenizer_of_a_model_directory(tmp_path: Path) -> None:
    folder = tmp_path / "runs" / "x" / "exports" / "3"
    folder.mkdir(parents=True)
    sizes = "vocab_size hidden_size intermediate_size num_hidden_layers num_attention_heads num_key_value_heads".split()
    values = {"architectures": ["MistralForCausalLM"], "model_type": "mistral", "max_position_embeddings": 64}
    (folder / "config.json").write_text(
        json.dumps(dict.fromkeys(sizes, 64) | values | {"num_attention_heads": 8, "num_key_value_heads": 8})
    )
    assert f"--tokenizer {folder}" in _import(tmp_path, "a/b", f"init.from={folder}")[1]["commands"][-1]
    (tmp_path / "run" / "checkpoints").mkdir(parents=True)
    command = _import(tmp_path, "a/b", f"init.from={tmp_path}/run")[1]["commands"][-1]
    assert command.endswith(f"--tokenizer {tmp_path}/run/tokenizer")


def test_data_are_built_where_the_configuration_reads_them(tmp_path: Path) -> None:
    given = ["data.dir=data/mine", "compat.token_boundary=joint", "compat.bos=false"]
    _, report = _import(tmp_path, "a/b", *given)
    assert "--out data/mine --boundary joint --no-bos" in report["commands"][-1]
    assert next(row for row in report["keys"] if row["key"] == "datasets[0].path")["ours"] == "data/mine"
    script = "python train_sft.py --pretrain a/b --dataset c/d,e/f --max_len 9 --output_key output"
    mixed = "data.mixture=[{dir: one}, {dir: two}]"
    _, report = imported(tmp_path, "y.sh", script, devices=1, overrides=[mixed])
    assert ["--out one" in report["commands"][1], "--out two" in report["commands"][2]] == [True, True]
    _, report = imported(tmp_path, "y.sh", script, devices=1, overrides=["data.mixture=null", "data.dir=one"])
    assert "--out data/y_2" in report["commands"][2]
    assert "data: the overrides name 1 directories, the recipe has 2 data sets" in "\n".join(report["by_hand"])


@pytest.mark.parametrize(
    "override", ["objective.name=orpo", "objective={name: simpo, beta: 2.0}", "objective.name=sft"]
)
def test_an_import_keeps_the_objective_of_the_recipe(override: str, tmp_path: Path) -> None:
    file, out = tmp_path / "x.yml", tmp_path / "ours.yaml"
    file.write_text(yaml.safe_dump(PUBLISHED["dpo.yml"] | {"rl_beta": 0.3, "dpo_loss_type": ["apo_zero"]}))
    given = ["import", str(file), "--devices", "1", "--force", "--out", str(out), "init.from=a/b"]
    refused = RUN.invoke(command.app, [*given, override])
    assert isinstance(refused.exception, ConfigError) and not out.exists()
    assert "the recipe is for dpo" in str(refused.exception) and "allowed: dpo; import" in str(refused.exception)
    assert RUN.invoke(command.app, [*given, "objective={name: dpo, beta: 0.5}"]).exit_code == 0
    assert load_config(out).objective.model_dump()["beta"] == 0.5


@pytest.mark.parametrize("override", ["data.dir=mine", "data={dir: mine}"])
def test_an_override_is_the_answer_to_lines_about_its_keys_alone(override: str, tmp_path: Path) -> None:
    keys = {"packing": True, "model_name_or_path": "a/b", "dataset_train_split": "train_prefs"}
    _, report = imported(tmp_path, "x.yaml", keys, devices=1, overrides=[override])
    lines = "\n".join(report["by_hand"])
    assert "data: dataset_train_split = train_prefs" not in lines and "data.dir: " not in lines
    _, report = imported(tmp_path, "x.yaml", keys | {"dataset_name": "c/d"}, devices=1, overrides=[override])
    assert any(one.startswith("data: dataset_train_split = train_prefs: ") for one in report["by_hand"])


@pytest.mark.parametrize("text", ["$(python get.py a,b)", "`get.py`", "${D%%x}", "$NOWHERE"])
def test_what_only_a_shell_knows_is_done_by_hand(text: str, tmp_path: Path) -> None:
    script = f"D={text}\npython train_dpo.py --dataset $D --pretrain $D --ref_pretrain '$(other)' --save_path $D/x "
    script += '--eval_steps 5 --eval_dataset "$D" --train_split $D --max_len 77 --learning_rate 1e-6\n'
    _, report = imported(tmp_path, "y.sh", script, devices=1)
    config, lines = report["config"], "\n".join(report["by_hand"])
    assert (config["batch"]["max_sequence_length"], config["schedule"]["learning_rate"]) == (77, 1e-6)
    assert (config["init"]["from"], config["reference"]["from"]) == ("SET-BY-HAND", "SET-BY-HAND")
    assert config["run"]["dir"] == "runs/y" and "--source SET-BY-HAND" in report["commands"][-1]
    for ours in ("--source of data/y: dataset", "init.from: pretrain", "run.dir: save_path", "data.split: train_split"):
        assert f"{ours} = {text}" in lines
    keys = ("pretrain", "ref_pretrain", "save_path", "train_split")
    assert {verdicts(report)[key] for key in keys} == {"by hand"}
    _, report = imported(tmp_path, "y.sh", script, devices=1, overrides=["init.from=a/b", "data.dir=data/mine"])
    assert not any(one.startswith("init.from:") for one in report["by_hand"])
    assert any(one.startswith("--source of data/mine: ") for one in report["by_hand"])


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


def test_file_of_an_unknown_tool_names_keys_given_twice(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="colour occurs twice: the last value counts; of which tool is it"):
        imported(tmp_path, "x.yaml", "colour: 1\ncolour: 2\n")


@pytest.mark.parametrize("empty", [None, [], {}, ""])
def test_empty_keys_are_missing_keys(empty: Any, tmp_path: Path) -> None:
    trl = {"model_name_or_path": "a/b", "learning_rate": 1e-5, "packing": True}
    axolotl = {"base_model": "a/b", "learning_rate": 1e-5, "micro_batch_size": 1}
    for values, model in ((axolotl, "base_model"), (trl, "model_name_or_path")):
        missing = imported(tmp_path, "x.yaml", values, devices=1)[1]
        report = imported(tmp_path, "x.yaml", values | {"datasets": empty}, devices=1)[1]
        assert not report["refused"] and report["by_hand"] == missing["by_hand"]
        assert "data.dir: the file names no data sets" in report["by_hand"]
        report = imported(tmp_path, "x.yaml", values | {model: empty}, devices=1)[1]
        assert not report["refused"] and any(
            one.startswith(f"init.from: {model} is empty") for one in report["by_hand"]
        )


def test_help_speaks_of_the_configuration_that_is_made() -> None:
    assert "of CONFIG" not in RUN.invoke(command.app, ["import", "--help"]).output


def test_comment_cannot_be_left_by_a_value(tmp_path: Path) -> None:
    content = 'base_model: "a/b\\nrun: {dir: evil}"\nlearning_rate: 1.0e-5\nmicro_batch_size: 1\n'
    recipe, _ = imported(tmp_path, "x.yaml", content, devices=1)
    assert yaml.safe_load(recipe.text)["run"]["dir"] == "runs/x"
