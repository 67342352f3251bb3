"""The files in configs/: every run resolves, and the figures in configs/README.md and the headers follow from them."""

import dataclasses
import math
import re
import shlex
from pathlib import Path

import pytest
import yaml

from janus_jax.config.run import load_config, to_yaml
from janus_jax.data.build.sources import HUB_ALIASES
from janus_jax.errors import ConfigError
from tests.support.models import random_params
from tests.support.run_configs import BASES, CONFIGS, RUNS
from tests.support.training_examples import TINY

PAPER = [path for path in RUNS if not path.stem.startswith("demo_")]
PARAMETERS = 7.24e9

every_run = pytest.mark.parametrize("path", RUNS, ids=lambda path: path.stem)
every_run_of_the_paper = pytest.mark.parametrize("path", PAPER, ids=lambda path: path.stem)


def comments(path: Path) -> list[str]:
    return [line.lstrip("# ") for line in path.read_text().splitlines() if line.startswith("# ")]


# Files


@every_run
def test_every_run_resolves_and_survives_a_round_trip(path, tmp_path):
    config = load_config(path)
    (tmp_path / "again.yaml").write_text(to_yaml(config))
    assert load_config(tmp_path / "again.yaml") == config
    assert config.advice() == []
    assert config.run.dir == f"runs/{path.stem}"


@every_run
def test_every_run_states_its_command(path):
    assert any(line.startswith(f"command    janus train configs/{path.name}") for line in comments(path))


@pytest.mark.parametrize("path", BASES, ids=lambda path: path.stem)
def test_a_base_is_used_and_is_not_a_run(path):
    assert any(f"base: {path.name}\n" in run.read_text() for run in RUNS)
    with pytest.raises(ConfigError, match=r"data: missing"):
        load_config(path)


def test_nothing_else_lies_in_configs():
    files = {path for path in CONFIGS.rglob("*") if path.is_file()}
    assert files == {*RUNS, *BASES, CONFIGS / "README.md"}


# The recipe


PUBLISHED = {
    # objective, batch, longest, rate, epochs, warm-up steps, b2, over-long, starts from
    "sft_196k": ("sft", 32, 8192, 5e-6, 4, 10, 0.999, "drop", "models/Mistral-7B-v0.2"),
    "sft_65k": ("sft", 32, 8192, 5e-6, 4, 10, 0.999, "drop", "models/Mistral-7B-v0.2"),
    "sft_196k_epoch1": ("sft", 32, 8192, 5e-6, 1, 10, 0.999, "drop", "models/Mistral-7B-v0.2"),
    "dpo": ("dpo", 16, 2048, 5e-7, 2, 10, 0.999, "drop", "runs/sft_65k"),
    "orpo": ("orpo", 16, 4096, 5e-6, 2, 10, 0.999, "drop", "models/Mistral-7B-v0.2"),
    "rm": ("rm", 128, 2048, 9e-6, 1, 16, 0.95, "truncate", "runs/sft_196k_epoch1"),
    "rm_helpful": ("rm", 128, 2048, 9e-6, 1, 16, 0.95, "truncate", "runs/rm"),
}


@every_run_of_the_paper
def test_hyperparameters_are_the_published_ones(path):
    config = load_config(path)
    batch, schedule, optimizer = config.batch, config.schedule, config.optimizer
    recipe = (config.objective.name, batch.rows or batch.examples, batch.max_sequence_length, schedule.learning_rate)
    recipe += (schedule.epochs, schedule.warmup_steps, optimizer.b2, batch.overlong, config.init.from_)
    assert recipe == PUBLISHED[path.stem]
    assert (schedule.name, optimizer.b1, optimizer.eps) == ("cosine", 0.9, 1e-8)
    assert (optimizer.weight_decay, optimizer.clip_norm) == (0.0, 1.0)
    assert (config.precision.compute, config.remat, config.run.seed) == ("bfloat16", "full", 42)
    assert (batch.rows is not None) == (config.objective.name == "sft")
    assert batch.row_length == (1 if config.objective.name == "sft" else 2) * batch.max_sequence_length
    if config.objective.name in ("dpo", "orpo"):
        assert config.objective.beta == 0.1


def test_every_published_run_has_a_file():
    assert {path.stem for path in PAPER} == set(PUBLISHED)


@every_run_of_the_paper
def test_by_default_no_switch_of_compat_is_on(path):
    assert load_config(path).compat == type(load_config(path).compat)()


HELPFUL = {
    "Anthropic/hh-rlhf": "plain",
    "tasksource/oasst1_pairwise_rlhf_reward": "plain",
    "openai/webgpt_comparisons": "mistral-inst",
}
"""The data sets of the second reward model, and the template of each (OpenRLHF's key handling)."""


@every_run_of_the_paper
def test_a_run_reads_what_its_header_builds(path):
    """The data that the header builds, and the weights of the run that it names."""
    config, text = load_config(path), "\n".join(comments(path))
    known = {f"kaist-ai/{row['id on the hub (kaist-ai/...)']}": "mistral-inst" for row in table("rows")} | HELPFUL
    parts = [config.data.dir] if config.data.mixture is None else [part.dir for part in config.data.mixture]
    builds = dict.fromkeys(re.findall(r"janus data build --kind .*", text))
    for build, directory in zip(builds, parts, strict=True):
        options = dict(zip(*[iter(shlex.split(build)[3:])] * 2, strict=True))
        assert options["--out"] == directory and options["--kind"] == config.objective.name
        assert known[options["--source"]] == options.get("--template", "mistral-inst")
    start = config.init.from_
    if start.startswith("runs/"):
        assert f"the run of configs/{start.removeprefix('runs/')}.yaml" in text
        assert (CONFIGS / f"{start.removeprefix('runs/')}.yaml").is_file()
    else:
        assert f"--local-dir {start}" in text


def test_the_mixture_of_helpfulness_is_the_published_one():
    data = load_config(CONFIGS / "rm_helpful.yaml").data
    assert data.dir is None and data.mixture is not None
    assert [(part.weight, data.examples) for part in data.mixture] == [(0.72, 66_000), (0.14, 66_000), (0.14, 66_000)]


EXPECTED_COMPAT = {
    "sft_196k": {"token_mean": "per_microbatch", "bfloat16_weights": True},
    "sft_65k": {"token_mean": "per_microbatch", "bfloat16_weights": True},
    "sft_196k_epoch1": {"token_mean": "per_microbatch", "bfloat16_weights": True},
    "dpo": {"token_boundary": "joint", "overlong_pairs": "zero_grad", "bfloat16_weights": True},
    "orpo": {"orpo_padding": "axolotl", "bos": False, "bfloat16_weights": True, "adamw_8bit": 2048},
    "rm": None,
    "rm_helpful": None,
}


@every_run_of_the_paper
def test_the_keys_closest_to_the_published_run_load(path, tmp_path):
    last = path.read_text().split("\n\n")[-1]
    keys = "".join(f"{line.removeprefix('#   ')}\n" for line in last.splitlines() if line.startswith("#   "))
    assert (yaml.safe_load(keys) or {}).get("compat") == EXPECTED_COMPAT[path.stem]
    if not keys:
        assert "No key of compat" in last
        return
    (tmp_path / "published.yaml").write_text(f"base: {path}\n{keys}")
    config = load_config(tmp_path / "published.yaml")
    assert config.compat.model_dump(include=EXPECTED_COMPAT[path.stem].keys()) == EXPECTED_COMPAT[path.stem]
    rows = config.batch.rows or config.batch.examples
    if config.compat.token_mean == "per_microbatch":  # the published microbatch of one device
        assert rows // config.batch.microbatches == (2 if config.objective.name == "sft" else 1)
        assert (rows // config.batch.microbatches) % config.mesh.fsdp == 0


@pytest.fixture(scope="module")
def small_world(tmp_path_factory):
    """The sample built for each kind, and a small model with room for the longest rows."""
    from janus_jax.checkpoint.hf.write import save_hf
    from janus_jax.data.build.pipeline import build
    from janus_jax.data.sample import write_sample

    root = tmp_path_factory.mktemp("world")
    for kind in ("sft", "dpo", "orpo", "rm"):
        build(write_sample(kind, root / "rows" / kind), root / kind, kind=kind)
    model = dataclasses.replace(TINY, vocab_size=32000, max_position_embeddings=8192)
    save_hf(random_params(model), model, root / "model")
    return root


@every_run_of_the_paper
def test_a_run_is_ready_to_start_on_small_weights_and_data(path, small_world):
    """On eight devices, with everything but weights, data and the evaluation split as in the file."""
    from janus_jax.training.setup import prepare

    stated = load_config(path)
    data = f"dir: {small_world}/{stated.objective.name}"
    if stated.data.mixture is not None:
        parts = [f"{{{data}, weight: {part.weight}}}" for part in stated.data.mixture]
        data = f"mixture: [{', '.join(parts)}], examples: {stated.data.examples}"
    config = load_config(path, [f"init.from={small_world}/model", f"data={{{data}}}"])
    data = config.data.model_copy(update={"eval_split": "validation"})
    setup = prepare(config.model_copy(update={"data": data}))
    batch = config.batch
    assert setup.loader.rows == batch.rows or setup.loader.rows % batch.microbatches == 0
    assert setup.schedule.total_steps == setup.loader.total_steps(config.schedule.epochs)
    assert len(setup.loader.fitted.index) == len(setup.loader.dataset)  # the sample is short
    loaded = next(setup.loader.batches())
    assert loaded.examples == (batch.examples or loaded.examples)
    assert loaded.batch.tokens.shape[::2] == (batch.microbatches, batch.row_length)


# The tables


def table(column: str) -> list[dict[str, str]]:
    """Rows of the table in configs/README.md that has a column of this name."""
    for block in re.findall(r"(?:^\|.*\n)+", (CONFIGS / "README.md").read_text(), re.MULTILINE):
        head, _, *lines = [[cell.strip() for cell in line.strip("|\n").split("|")] for line in block.splitlines()]
        if column in head:
            return [dict(zip(head, cells, strict=True)) for cells in lines]
    raise AssertionError(f"no table with a column {column}")


def number(text: str) -> float:
    """`3,008`, `788.0 M`, `3.42e19`; nan for `?`."""
    return math.nan if text == "?" else float(text.replace(",", "").replace(" M", "e6"))


def test_the_table_of_runs_follows_from_rows_lengths_and_files():
    data = {row["data"]: row for row in table("rows")}
    runs = set()
    for row in table("steps"):
        name = re.fullmatch(r"\[(\w+)\.yaml\]\(\1\.yaml\)", row["config"])[1]
        config = load_config(CONFIGS / f"{name}.yaml")
        batch, epochs, source = config.batch, config.schedule.epochs, data[row["data"]]
        rows, length = number(source["rows"]), number(source["tokens a row"])
        if batch.rows:
            unit, step_tokens = f"{batch.rows} rows of {batch.row_length:,}", batch.rows * batch.row_length
            steps = epochs * math.ceil(rows * length / step_tokens)
        else:
            unit, step_tokens = f"{batch.examples} pairs", batch.examples * length
            steps = epochs * math.ceil(rows / batch.examples)
        tokens = rows * length * epochs
        known = not math.isnan(length)
        assert row["epochs"] == str(epochs) and row["batch"] == unit
        assert row["starts from"] == Path(config.init.from_).name
        assert row["steps"] == f"{steps:,}"
        assert row["tokens a step"] == (f"{step_tokens:,.0f}" if known else "?")
        assert row["tokens"] == (f"{tokens / 1e6:.1f} M" if known else "?")
        assert row["FLOPs"] == (f"{6 * PARAMETERS * tokens:.2e}".replace("e+", "e") if known else "?")
        runs.add(name)
        (expected,) = [line for line in comments(CONFIGS / f"{name}.yaml") if line.startswith("expect")]
        numbers = dict(reversed(pair) for pair in re.findall(r"([0-9]+) (in all|steps)", expected))
        assert float(numbers["steps"]) == pytest.approx(steps / epochs, rel=0.005)
        assert float(numbers.get("in all", steps)) == pytest.approx(steps, rel=0.005)
        assert ("in all" in numbers) == (epochs > 1)
        if config.objective.name == "rm":  # 3 % of the steps
            assert config.schedule.warmup_steps == math.ceil(0.03 * steps)
    assert runs == set(PUBLISHED)


def test_lengths_follow_from_published_steps_and_bytes():
    lengths = {
        row["data"]: [number(row[key]) for key in ("prompt", "response", "tokens a row")] for row in table("rows")
    }
    example = 751 * 32 * 8192 / 196_998
    bytes_a_token = 818_267_841 / 196_998 / example
    pair = 442_405_885 / 64_630 / bytes_a_token  # the columns are input, chosen and rejected
    response = pair - example
    for name in ("SFT", "SFT small"):
        assert lengths[name] == pytest.approx([example - response, response, example], rel=0.01)
    for name in ("DPO", "ORPO", "RM"):
        assert lengths[name] == pytest.approx([example - response, response, pair], rel=0.01)
        prompt, response_, whole = lengths[name]
        assert whole == prompt + 2 * response_


def test_the_tokens_saved_by_shared_prompts_follow_from_the_lengths():
    prompt, response = (number(table("rows")[-2][key]) for key in ("prompt", "response"))
    shared, copied = prompt + 2 * response, 2 * (prompt + response)
    text = " ".join((CONFIGS / "README.md").read_text().split())
    assert f"once: {shared:,.0f} tokens, where prompt and response twice over would be {copied:,.0f}" in text
    assert f"({100 * (1 - shared / copied):.1f} % saved) and two rows padded to 2,048, as published, are 4,096" in text


def test_the_switches_are_those_of_the_configuration():
    compat = load_config(PAPER[0]).compat
    named = {row["`compat.`"].strip("`").split(": ")[0]: row["`compat.`"].strip("`") for row in table("`compat.`")}
    assert set(named) == set(type(compat).model_fields)
    for override in named.values():
        key, value = override.split(": ")
        name = {"token_mean": "sft_65k", "bfloat16_weights": "sft_65k", "orpo_padding": "orpo"}.get(key, "dpo")
        needed = ["compat.adamw_8bit=256"] if key == "embedding_moments" else []
        changed = load_config(CONFIGS / f"{name}.yaml", [f"compat.{key}={value}", *needed]).compat
        assert getattr(changed, key) != getattr(compat, key)


def test_old_names_of_data_sets_lead_to_names_in_the_table():
    known = {row["id on the hub (kaist-ai/...)"] for row in table("rows")}
    assert {name.removeprefix("kaist-ai/") for name in HUB_ALIASES.values()} <= known
