"""Configurations: how YAML is read, and how mistakes are reported."""

import re
import subprocess
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from janus_jax.config.objectives import OBJECTIVES
from janus_jax.config.run import RunConfig, load_config, to_yaml
from janus_jax.errors import ConfigError
from tests.support.run_configs import SMALLEST_YAML, complaint

NAMES = " | ".join(sorted(OBJECTIVES))


def test_a_small_file_gets_the_documented_defaults(small):
    config = load_config(small)
    assert config.schedule.learning_rate == 0.000005 and config.schedule.warmup_steps == 10
    assert (config.mesh.data, config.mesh.fsdp, config.mesh.tensor, config.mesh.context) == (1, -1, 1, 1)
    assert (config.optimizer.b1, config.optimizer.b2, config.optimizer.eps) == (0.9, 0.999, 1e-8)
    assert config.optimizer.clip_norm == 1.0 and config.init.from_ is None and config.reference.from_ is None
    assert config.batch.microbatches == 1 and config.batch.overlong == "drop" and config.checkpoint.keep == 2


def test_top_level_keys_are_the_agreed_ones():
    agreed = (
        "run init model data batch objective reference optimizer schedule mesh sharding precision remat eval "
        "samples checkpoint export logging profile timeouts compat"
    )
    assert list(RunConfig.model_fields) == agreed.split()


@pytest.mark.parametrize(
    ("text", "value"),
    [("5e-6", 5e-6), ("1E2", 100.0), ("5.e-1", 0.5), (".5", 0.5), ("2", 2), ("010", 10), ("0x10", 16), ("0o17", 15)],
)
def test_numbers_are_read_by_yaml_1_2(small, text, value):
    assert load_config(small, [f"optimizer.clip_norm={text}"]).optimizer.clip_norm == value


@pytest.mark.parametrize("text", ["no", "on", "2024-05-01", "12:30:00", "1_000", "yes"])
def test_words_that_yaml_1_1_converts_stay_text(small, text):
    assert load_config(small, [f"data.split={text}"]).data.split == text


def test_a_config_is_frozen(small):
    with pytest.raises(ValueError, match="frozen"):
        load_config(small).batch.rows = 3


# Bases


def test_bases_merge_deeply_and_are_relative_to_the_file(tmp_path, monkeypatch):
    (tmp_path / "shared").mkdir()
    (tmp_path / "shared" / "root.yaml").write_text(SMALLEST_YAML)
    (tmp_path / "shared" / "middle.yaml").write_text("base: root.yaml\nbatch: {rows: 2, microbatches: 2}\n")
    (tmp_path / "top.yaml").write_text("base: shared/middle.yaml\nbatch: {rows: 4}\nmodel: {num_layers: 7}\n")
    monkeypatch.chdir(tmp_path / "shared")
    config = load_config("../top.yaml")
    assert (config.batch.rows, config.batch.microbatches, config.batch.row_length) == (4, 2, 256)
    assert config.model is not None and config.model.build().num_layers == 7
    assert config.model.build().hidden_size == 128


def test_a_mistake_in_a_base_is_reported_with_its_file(tmp_path):
    (tmp_path / "root.yaml").write_text(SMALLEST_YAML.replace("rows: 8", "rows: 0"))
    (tmp_path / "top.yaml").write_text("base: root.yaml\n")
    assert complaint(tmp_path / "top.yaml").startswith(f"{tmp_path / 'root.yaml'}:5: batch.rows = 0: allowed")


def test_bases_in_a_circle_are_refused(tmp_path):
    (tmp_path / "a.yaml").write_text("base: b.yaml\n")
    (tmp_path / "b.yaml").write_text("base: a.yaml\n")
    assert "circle" in complaint(tmp_path / "a.yaml")
    (tmp_path / "self.yaml").write_text("base: ./self.yaml\n")
    assert "circle" in complaint(tmp_path / "self.yaml")


def test_a_missing_base_is_named_with_the_line_that_asks_for_it(tmp_path):
    (tmp_path / "a.yaml").write_text("run: {dir: x}\nbase: gone.yaml\n")
    message = complaint(tmp_path / "a.yaml")
    assert message.startswith(f"{tmp_path / 'a.yaml'}:2: base") and str(tmp_path / "gone.yaml") in message


# Mistakes


@pytest.mark.parametrize(
    ("override", "expected"),
    [
        ("batch.row_lenght=8", "batch.row_lenght: unknown key; did you mean 'batch.row_length'?"),
        ("learning_rate=1", "learning_rate: unknown key; did you mean 'schedule.learning_rate'?"),
        ("compat.old=1", "compat.old: unknown key; allowed: token_boundary, bos, overlong_pairs, "),
        ("objective.beta=1", "objective.beta: unknown key; allowed: name"),
        (
            "sharding=null",
            "sharding = null: allowed: a section with the keys batch, length, embed, q_heads, kv_heads, ",
        ),
        ("sharding=[1]", "sharding = [1]: allowed: a section with the keys batch, length, embed, q_heads, kv_heads, "),
        ("objective.name=ppo", f"objective.name = ppo: allowed: {NAMES}"),
        ("objective={}", f"objective.name: missing; allowed: {NAMES}"),
        ("objective={name: dpo, beta: 0}", "objective.beta = 0: allowed: a number > 0"),
        ("batch.rows=yes", "batch.rows = 'yes': allowed: a whole number >= 1 or null"),
        ("batch.rows=true", "batch.rows = true: allowed: a whole number >= 1 or null"),
        ("batch.rows=2.5", "batch.rows = 2.5: allowed: a whole number >= 1 or null"),
        ("schedule.learning_rate=.nan", "schedule.learning_rate = .nan: allowed: a number > 0"),
        ("schedule.learning_rate=1e4", "schedule.learning_rate = 10000.0: allowed: < 1; a step of AdamW"),
        ("schedule.learning_rate=1", "schedule.learning_rate = 1: allowed: < 1; a step of AdamW"),
        ("schedule.learning_rate=0", "schedule.learning_rate = 0: allowed: a number > 0"),
        ("schedule.learning_rate=1e-40", "schedule.learning_rate = 1e-40: allowed: >= 1.1754944e-38; in float32 it is"),
        ("optimizer.eps=1e-40", "optimizer.eps = 1e-40: allowed: >= 1.1754944e-38; in float32 it is 0"),
        ("optimizer.weight_decay=300000", "optimizer.weight_decay = 300000: allowed: < 200000; times schedule.lea"),
        ("schedule={name: linear, learning_rate: 1e-5, steps: 1}", "schedule.warmup_steps = 10: the run has one step"),
        ("optimizer.b2=1", "optimizer.b2 = 1: allowed: a number >= 0 and < 1"),
        ("run={dir: 7}", 'run.dir = 7: allowed: non-empty text (write it in quotes: "...")'),
        ("run=null", "run = null: allowed: a section with the keys dir, seed"),
        ("mesh.fsdp=0", "mesh.fsdp = 0: allowed: a whole number >= 1, or -1 for all devices that the other axes leave"),
        (
            "sharding.embed=fdsp",
            "sharding.embed = fdsp: not a mesh axis; allowed: a mesh axis (data, fsdp, tensor, conte",
        ),
        ("sharding.embed=[fsdp, fsdp]", "sharding.embed = [fsdp, fsdp]: an axis occurs twice"),
        ("sharding.heads=fsdp", "sharding.heads: unknown key; did you mean"),
        ("profile.steps=[1]", "profile.steps.1: missing; allowed: [first, last] with 1 <= first <= last, or null"),
        ("profile.steps=[3, 2]", "profile.steps = [3, 2]: allowed: [first, last] with first <= last"),
        ("export.max_shard_size=0GB", "export.max_shard_size = 0GB: allowed: a size like 5GB or 500MB"),
        ("export.max_shard_size=5 GB", "export.max_shard_size = 5 GB: allowed: a size like 5GB or 500MB"),
        ("export.layout=openrlhf", "export.layout = 'openrlhf': objective sft trains no reward model; allowed: transf"),
        ("model.preset=8b", "model.preset = 8b: allowed: mistral-7b | tiny"),
        ("model={preset: tiny, num_heads: 3}", "model: num_heads=3 is not a multiple of num_kv_heads=2"),
        ("remat=some", "remat = some: allowed: none | dots | full | offload, or a list of query, key, value,"),
        ("remat=[gate, gate@host]", "remat = [gate, gate@host]: gate occurs twice; allowed: none"),
        ("remat=[input]", "remat = [input]: input is no tensor; allowed: none"),
        ("batch.rows.x=1", "batch.rows = 8 is not a section with a key 'x'"),
        (
            "data.mixture[0].weight=2",
            "allowed: key=value with a dotted key, like batch.rows=4; an item of a list has a number, from 0: data.m",
        ),
        ("base=other.yaml", "base is allowed in files only"),
        ("rows", "allowed: key=value with a dotted key, like batch.rows=4"),
        ("batch.rows=[1", "not YAML"),
        ("run={dir: a, dir: b}", "run.dir: duplicate key"),
        (
            "init.from=x",
            "model and init.from = 'x' are both given; allowed: one of them (model=null or init.from=null)",
        ),
        ("model=null", "neither init.from nor model is given"),
        ("batch.examples=16", "batch.rows and batch.examples are both given; allowed: one of them, the other null"),
        ("batch.rows=null", "neither batch.rows nor batch.examples is given; allowed: exactly one of them"),
        (
            "schedule.steps=5",
            "schedule.epochs and schedule.steps are both given; allowed: one of them, the other null "
            "(schedule.epochs=null or schedule.steps=null)",
        ),
        ("eval.stop_after=3", "eval.stop_after = 3: allowed with eval.every_steps = null: null"),
        ("eval.stop_min_change=0.1", "eval.stop_min_change = 0.1: allowed without eval.stop_after: 0"),
        (
            "eval={every_steps: 1, stop_after: 3, stop_metric: rewards/margins}",
            "eval.stop_metric = 'rewards/margins': objective sft has no pairs; allowed: loss",
        ),
        ("schedule.extend=longer", "schedule.extend = longer: allowed: restart | stretch | constant | null"),
        (
            "schedule={warmup_steps: 3, warmup_ratio: 0.1, name: cosine, learning_rate: 0.1, steps: 9}",
            "schedule.warmup_steps and schedule.warmup_ratio are both given; allowed: one of them, the other null",
        ),
        ("schedule.warmup_steps=null", "schedule.warmup_steps = null: allowed only with schedule.warmup_ratio"),
        ("schedule.warmup_ratio=2", "schedule.warmup_ratio = 2: allowed: a number >= 0 and <= 1 or null"),
        (
            "schedule.name=wsd",
            "schedule.name = 'wsd' needs a length of its decay; allowed: exactly one of schedule.dec",
        ),
        ("schedule.decay_steps=4", "schedule.decay_steps = 4: allowed with schedule.name = 'cosine': null"),
        (
            "schedule={min_rate_ratio: 0.1, name: constant, learning_rate: 0.1, steps: 9}",
            "schedule.min_rate_ratio = 0.1: a constant rate does not fall; allowed: null",
        ),
        ("batch.max_sequence_length=300", "batch.max_sequence_length = 300: allowed: at most batch.row_length = 256"),
        ("batch.microbatches=3", "batch.microbatches = 3: allowed: a divisor of batch.rows = 8"),
        ("mesh={data: -1, fsdp: 1, tensor: -1}", "mesh.data and mesh.tensor are -1; allowed: -1 on one axis at most"),
        ("mesh={data: -1}", "mesh.data and mesh.fsdp (its default) are -1; allowed: -1 on one axis at most"),
        ("reference.from=x", "reference.from = 'x': objective sft has no reference; allowed: null"),
        ("reference.mode=online", "reference.mode = 'online': objective sft has no reference; allowed: precompute"),
        (
            "objective={name: dpo, loss: ipo, label_smoothing: 0.1}",
            "objective.label_smoothing = 0.1: loss ipo has no label smoothing; allowed: 0",
        ),
        (
            "objective={name: dpo, label_smoothing: 0.5}",
            "objective.label_smoothing = 0.5: allowed: a number >= 0 and < 0.5",
        ),
        (
            "compat={overlong_pairs: zero_grad}",
            "compat.overlong_pairs = 'zero_grad': objective sft needs responses; allowed with: dpo, simpo, orpo",
        ),
    ],
)
def test_each_mistake_is_one_line_that_names_override_value_and_rule(small, override, expected):
    message = complaint(small, override)
    assert "\n" not in message and message.startswith(f"override '{override}': {expected}")


@pytest.mark.parametrize("value", ["null", "3", "[1]", "text", "{a: 1}", "{}"])
@pytest.mark.parametrize("section", RunConfig.model_fields)
def test_a_section_of_any_form_is_read_or_refused_by_its_name(small, section, value):
    try:
        assert isinstance(load_config(small, [f"{section}={value}"]), RunConfig)
    except ConfigError as error:
        assert section in str(error) and any(word in str(error) for word in ("allowed:", "unknown key"))


def test_all_mistakes_of_a_file_come_in_one_report_with_their_lines(tmp_path):
    path = tmp_path / "bad.yaml"
    path.write_text(
        "run: {dir: out, sed: 1}\n"
        "model: {preset: tiny}\n"
        "data: {}\n"
        "batch:\n"
        "  rows: 8\n"
        "  row_length: many\n"
        "  rows: 4\n"
        "  examples: 3\n"
        "objective: {name: sft}\n"
        "schedule: {name: cosine, learning_rate: -1}\n"
    )
    lines = complaint(path, "optimizer.b1=2").splitlines()
    assert lines[0] == f"{path}: 9 errors"
    reported = sorted(re.sub(r"^\s*\S*bad\.yaml:(\d+): ([\w.]+).*", r"\1 \2", line) for line in lines[1:])
    assert reported == sorted(
        [
            "1 run.sed",
            "3 neither",
            "4 batch.max_sequence_length",
            "6 batch.row_length",
            "7 batch.rows",  # duplicate
            "8 batch.rows",  # and examples
            "10 schedule.learning_rate",
            "10 neither",  # schedule.epochs nor schedule.steps
            "  override 'optimizer.b1=2': optimizer.b1 = 2: allowed: a number >= 0 and < 1",
        ]
    )


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (b"run: {dir: out\nbatch: 3\n", ":2: not YAML"),
        (b"- a\n- b\n", ":1: [a, b]: allowed: `key: value` lines"),
        (b"\xff\xfe\x00", "is not UTF-8 text"),
        (b"run: *other\n", ":1: not YAML: aliases (*name) are not supported; share values through base:"),
        (b"a: 1\n---\nb: 2\n", "not YAML"),
        (b"run: \x00\n", "not YAML"),
        (b"[" * 5000, "nested too deeply"),
    ],
)
def test_a_file_that_is_not_a_configuration_gets_one_line(tmp_path, content, expected):
    path = tmp_path / "broken.yaml"
    path.write_bytes(content)
    message = complaint(path)
    assert message.startswith(str(path)) and expected in message and "\n" not in message


@pytest.mark.parametrize("value", ["!!python/name:os.system", "!!int one", "!!set {a}", "!mine [1]"])
def test_tags_are_refused_and_nothing_is_constructed(small, value):
    assert re.search(r"run\.dir.*: the tag \S+ is not supported; write", complaint(small, f"run.dir={value}"))


def test_a_missing_file_and_an_empty_file(tmp_path):
    assert complaint(tmp_path / "none.yaml") == f"{tmp_path / 'none.yaml'}: cannot be read: No such file or directory"
    (tmp_path / "empty.yaml").write_text("# nothing\n")
    report = complaint(tmp_path / "empty.yaml")
    assert all(f"{key}: missing" in report for key in ("run", "data", "batch", "objective", "schedule"))


def test_contradictions_are_refused_without_a_file_too(small):
    values = load_config(small).model_dump(by_alias=True)
    values["batch"]["examples"] = 4
    with pytest.raises(ValueError, match=r"batch\.rows and batch\.examples are both given"):
        RunConfig.model_validate(values)


def test_short_rows_for_pairs_are_advised_against_not_refused(small):
    config = load_config(small, ["objective={name: dpo}", "batch.max_sequence_length=200"])
    assert len(config.advice()) == 1 and "256 is less than twice batch.max_sequence_length = 200" in config.advice()[0]
    assert load_config(small, ["objective={name: dpo}"]).advice() == []
    assert load_config(small, ["batch.max_sequence_length=200"]).advice() == []


# Writing


def test_resolved_yaml_names_every_key_and_no_base(small, tmp_path):
    text = to_yaml(load_config(small, ["sharding={embed: [data, fsdp], vocab: null}", "profile.steps=[3, 5]"]))
    assert not re.search(r"^base", text, re.MULTILINE) and re.search(r"^  bfloat16_weights: false", text, re.MULTILINE)
    (tmp_path / "again.yaml").write_text(text)
    again = load_config(tmp_path / "again.yaml")
    assert again.sharding == {"embed": ("data", "fsdp"), "vocab": None} and again.profile.steps == (3, 5)


@given(text=st.text(st.characters(exclude_categories=["Cs"]), min_size=1), rate=st.floats(1e-12, 1e6))
def test_any_text_and_number_survives_a_round_trip(tmp_path_factory, text, rate):
    directory = tmp_path_factory.mktemp("trip")
    (directory / "small.yaml").write_text(SMALLEST_YAML)
    config = load_config(directory / "small.yaml")
    values = config.model_dump(by_alias=True)
    values["run"]["dir"], values["optimizer"]["clip_norm"] = text, rate
    config = RunConfig.model_validate(values)
    (directory / "again.yaml").write_text(to_yaml(config), encoding="utf-8", newline="")
    assert load_config(directory / "again.yaml") == config


# Against the code that the configuration drives


def test_objectives_are_built_with_the_configured_values(small):
    from janus_jax.objectives import build_objective
    from janus_jax.objectives.dpo import DPO
    from janus_jax.objectives.orpo import ORPO
    from janus_jax.objectives.reward import RewardModel
    from janus_jax.objectives.sft import SFT
    from janus_jax.objectives.simpo import SimPO

    assert build_objective(load_config(small)) == SFT()
    for text, expected in {
        "{name: dpo, beta: 0.3, loss: robust, label_smoothing: 0.1, sft_weight: 1}": DPO(
            beta=0.3, loss="robust", label_smoothing=0.1, sft_weight=1.0
        ),
        "{name: simpo, gamma: 0.5}": SimPO(gamma=0.5),
        "{name: orpo, nll: prompt_and_response}": ORPO(nll="prompt_and_response"),
        "{name: rm, center_weight: 0.01}": RewardModel(center_weight=0.01),
    }.items():
        assert build_objective(load_config(small, [f"objective={text}"])) == expected
    averaged = load_config(small, ["objective={name: dpo}", "compat.token_mean=per_microbatch"])
    assert build_objective(averaged) == DPO(normaliser="per_microbatch")


def test_reading_a_config_imports_no_jax(small):
    code = (
        "import sys; from janus_jax.config.run import load_config; load_config(sys.argv[1]); "
        "assert not {'jax', 'flax', 'tensorflow', 'torch', 'transformers'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code, small], check=True)
