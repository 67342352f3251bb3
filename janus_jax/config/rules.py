"""Rules between the keys of a configuration, checked on values that may be wrong in other ways too."""

import os
from collections.abc import Iterator, Mapping
from typing import Any

from janus_jax.config.objectives import OBJECTIVES
from janus_jax.config.samples import SamplesSection
from janus_jax.config.sections import ScheduleSection
from janus_jax.parallel.axes import AXES
from janus_jax.storage.bucket import is_url

SMALLEST_FLOAT32 = 1.1754944e-38
"""The smallest normal number. Devices take smaller ones for 0."""

Conflict = tuple[str, str]
"""The key to blame, and a sentence."""


def conflicts(config: Mapping[str, Any]) -> Iterator[Conflict]:
    """Keys that contradict each other. Values of a wrong type are ignored here: pydantic reports them."""
    yield from _start_conflicts(config)
    yield from _alternative_conflicts(config)
    yield from _schedule_conflicts(config)
    yield from _data_conflicts(config)
    yield from _batch_conflicts(config)
    yield from _mesh_conflicts(config)
    yield from _objective_conflicts(config)
    yield from _padding_conflicts(config)
    yield from _moments_conflicts(config)
    yield from _profile_conflicts(config)
    yield from _stopping_conflicts(config)
    yield from _samples_conflicts(config)
    yield from _rate_conflicts(config)


def absent_data(config: Mapping[str, Any]) -> Iterator[tuple[tuple[str | int, ...], str]]:
    """Paths of keys of local data directories that do not exist, and a sentence for each."""
    data = config.get("data")
    data = data if isinstance(data, Mapping) else {}
    places: list[tuple[tuple[str | int, ...], Any]] = [(("data", key), data.get(key)) for key in ("dir", "eval_dir")]
    parts = data.get("mixture")
    for number, part in enumerate(parts if isinstance(parts, list) else ()):
        places.append((("data", "mixture", number, "dir"), part.get("dir") if isinstance(part, Mapping) else None))
    prompts = _get(config, "samples", "prompts", str)
    if prompts and prompts != "-" and not is_url(prompts) and not os.path.exists(os.path.expanduser(prompts)):
        yield ("samples", "prompts"), f"samples.prompts = {prompts}: no such file"
    for key, place in places:
        if isinstance(place, str) and place and not is_url(place) and not os.path.exists(os.path.expanduser(place)):
            yield key, f"{'.'.join(map(str, key))} = {place}: no such directory; `janus data build` makes one"


def _refuse(key: str, value: Any, reason: str) -> Conflict:
    return key, f"{key} = {value!r}: {reason}"


def _get(config: Mapping[str, Any], section: str, key: str, kind: type) -> Any:
    """The value of a key; None if it is missing or of another type."""
    values = config.get(section)
    value = values.get(key) if isinstance(values, Mapping) else None
    return value if isinstance(value, kind) and not isinstance(value, bool) else None


def _number(config: Mapping[str, Any], section: str, key: str) -> float | int | None:
    value = _get(config, section, key, int)
    return _get(config, section, key, float) if value is None else value


def _given(config: Mapping[str, Any], section: str, *keys: str) -> list[str]:
    """Those of the keys that are neither missing nor null, with their section's name."""
    values = config.get(section)
    return [f"{section}.{key}" for key in keys if isinstance(values, Mapping) and values.get(key) is not None]


def _start_conflicts(config: Mapping[str, Any]) -> Iterator[Conflict]:
    weights, model = _get(config, "init", "from", str), config.get("model")
    if weights and model is not None:
        sentence = f"model and init.from = {weights!r} are both given"
        yield "init.from", f"{sentence}; allowed: one of them (model=null or init.from=null)"
    if not _given(config, "init", "from") and model is None:
        sentence = "neither init.from nor model is given"
        yield "model", f"{sentence}; allowed: weights to start from, or a model for random weights"


def _alternative_conflicts(config: Mapping[str, Any]) -> Iterator[Conflict]:
    alternatives = {"batch": ("rows", "examples"), "schedule": ("epochs", "steps"), "data": ("dir", "mixture")}
    for section, (one, other) in alternatives.items():
        keys = _given(config, section, one, other)
        if len(keys) == 2:
            nulls = " or ".join(f"{key}=null" for key in keys)
            yield keys[1], f"{keys[0]} and {keys[1]} are both given; allowed: one of them, the other null ({nulls})"
        elif isinstance(config.get(section), Mapping) and not keys:
            sentence = f"neither {section}.{one} nor {section}.{other} is given; allowed: exactly one of them"
            yield f"{section}.{one}", sentence


def _schedule_conflicts(config: Mapping[str, Any]) -> Iterator[Conflict]:
    schedule = config.get("schedule")
    if not isinstance(schedule, Mapping):
        return
    name, warmup = schedule.get("name"), _given(config, "schedule", "warmup_steps", "warmup_ratio")
    if len(warmup) == 2:
        yield warmup[1], f"{warmup[0]} and {warmup[1]} are both given; allowed: one of them, the other null"
    elif not warmup and "warmup_steps" in schedule:
        yield "schedule.warmup_steps", "schedule.warmup_steps = null: allowed only with schedule.warmup_ratio"
    decay = _given(config, "schedule", "decay_steps", "decay_ratio", "decay_shape")
    if name == "wsd" and len(set(decay) - {"schedule.decay_shape"}) != 1:
        sentence = "schedule.name = 'wsd' needs a length of its decay; allowed: exactly one of"
        yield "schedule.name", f"{sentence} schedule.decay_steps and schedule.decay_ratio"
    for key in decay if name in ("cosine", "linear", "constant") else ():
        yield _refuse(key, schedule[key.partition(".")[2]], f"allowed with schedule.name = {name!r}: null")
    if name == "constant" and _given(config, "schedule", "min_rate_ratio"):
        reason = "a constant rate does not fall; allowed: null"
        yield _refuse("schedule.min_rate_ratio", schedule["min_rate_ratio"], reason)


def _data_conflicts(config: Mapping[str, Any]) -> Iterator[Conflict]:
    data, together = config.get("data"), _get(config, "batch", "keep_together", int)
    if not isinstance(data, Mapping):
        return
    mixture = data.get("mixture")
    parts = [part for part in mixture if isinstance(part, Mapping)] if isinstance(mixture, list) else []
    weighted = [part.get("weight") is not None for part in parts]
    if any(weighted) and not all(weighted):
        bare = parts[weighted.index(False)].get("dir")
        yield (
            "data.mixture",
            f"data.mixture: {bare} has no weight, but other parts have; allowed: weights for all parts or for none",
        )
    if data.get("examples") is not None and not any(weighted):
        yield _refuse("data.examples", data["examples"], "allowed only with weights in data.mixture, otherwise null")
    if parts and together and together > 1:
        yield _refuse("batch.keep_together", together, "allowed with data.mixture: 1")


def _batch_conflicts(config: Mapping[str, Any]) -> Iterator[Conflict]:
    keys = ("row_length", "max_sequence_length", "rows", "examples", "microbatches", "keep_together")
    length, sequence, rows, examples, microbatches, together = (_get(config, "batch", key, int) for key in keys)
    if length and sequence and sequence > length:
        yield _refuse("batch.max_sequence_length", sequence, f"allowed: at most batch.row_length = {length}")
    if rows and microbatches and microbatches > 0 and rows % microbatches:
        yield _refuse("batch.microbatches", microbatches, f"allowed: a divisor of batch.rows = {rows}")
    if together and together > 1 and (not examples or examples % together):
        yield _refuse("batch.keep_together", together, "allowed: a divisor of batch.examples")


def _mesh_conflicts(config: Mapping[str, Any]) -> Iterator[Conflict]:
    open_axes = [axis for axis in AXES if _get(config, "mesh", axis, int) == -1]
    if open_axes and "fsdp" not in config["mesh"]:
        open_axes.append("fsdp (its default)")
    if len(open_axes) > 1:
        yield f"mesh.{open_axes[0]}", f"mesh.{' and mesh.'.join(open_axes)} are -1; allowed: -1 on one axis at most"


def _objective_conflicts(config: Mapping[str, Any]) -> Iterator[Conflict]:
    online = _get(config, "reference", "mode", str) == "online"
    if online and _given(config, "reference", "dir"):
        yield "reference.dir", "reference.dir is given, but reference.mode = 'online' stores nothing; allowed: null"
    name = _get(config, "objective", "name", str)
    if name not in OBJECTIVES:  # pydantic names the ones that exist
        return
    objective = OBJECTIVES[name]
    yield from objective.conflicts(config["objective"])
    if not objective.needs_reference:
        for key in _given(config, "reference", "from", "dir"):
            value = config["reference"][key.partition(".")[2]]
            yield _refuse(key, value, f"objective {name} has no reference; allowed: null")
        if online:
            reason = f"objective {name} has no reference; allowed: precompute, the default"
            yield _refuse("reference.mode", "online", reason)
    if objective.head != "value" and (layout := _get(config, "export", "layout", str)) == "openrlhf":
        yield _refuse("export.layout", layout, f"objective {name} trains no reward model; allowed: transformers")
    if _get(config, "compat", "overlong_pairs", str) == "zero_grad":
        fitting = [other for other, section in OBJECTIVES.items() if section.branches == 2 and section.head == "lm"]
        if name not in fitting:
            reason = f"objective {name} needs responses; allowed with: {', '.join(fitting)}"
            yield _refuse("compat.overlong_pairs", "zero_grad", reason)
        elif (policy := _get(config, "batch", "overlong", str)) not in (None, "drop"):
            sentence = f"batch.overlong = {policy!r} and compat.overlong_pairs = 'zero_grad' contradict each other"
            yield "batch.overlong", f"{sentence}; allowed: one of them, the other 'drop'"


def _padding_conflicts(config: Mapping[str, Any]) -> Iterator[Conflict]:
    padding, name = _get(config, "compat", "orpo_padding", str), _get(config, "objective", "name", str)
    if padding is None or name not in OBJECTIVES:
        return
    if name != "orpo":
        yield _refuse("compat.orpo_padding", padding, f"objective {name} has no such mean; allowed with: orpo")
        return
    batch = config.get("batch")
    shared = batch.get("share_prompts", True) if isinstance(batch, Mapping) else True
    needed: list[tuple[str, Any, tuple[Any, ...]]] = [
        ("objective.nll", _get(config, "objective", "nll", str) or "response", ("prompt_and_response",)),
        ("compat.token_mean", _get(config, "compat", "token_mean", str), (None, "global")),
        ("compat.overlong_pairs", _get(config, "compat", "overlong_pairs", str), (None, "drop")),
        ("batch.overlong", _get(config, "batch", "overlong", str), (None, "drop", "error")),
        ("batch.share_prompts", shared, (True,)),
    ]
    if padding == "trl":
        needed.append(("precision.attention", _get(config, "precision", "attention", str), (None, "auto", "reference")))
    for key, value, allowed in needed:
        if value not in allowed:
            names = " or ".join(str(one).lower() for one in allowed if one is not None)
            yield _refuse(key, value, f"allowed with compat.orpo_padding = {padding}: {names}")


def _moments_conflicts(config: Mapping[str, Any]) -> Iterator[Conflict]:
    block, moments = _get(config, "compat", "adamw_8bit", int), _get(config, "optimizer", "moments", str)
    if block and moments not in (None, "float32"):
        reason = (
            f"compat.adamw_8bit = {block} keeps them in 8 bits; allowed: float32, the default, or adamw_8bit = null"
        )
        yield _refuse("optimizer.moments", moments, reason)
    if not block and _get(config, "compat", "embedding_moments", str) == "float32":
        yield _refuse("compat.embedding_moments", "float32", "allowed without compat.adamw_8bit: 8bit, the default")


def _stopping_conflicts(config: Mapping[str, Any]) -> Iterator[Conflict]:
    section, stop = config.get("eval"), _get(config, "eval", "stop_after", int)
    best = _get(config, "checkpoint", "keep_best", int)
    if best and not _given(config, "eval", "every_steps"):
        yield _refuse("checkpoint.keep_best", best, "allowed with eval.every_steps = null: null")
    if not isinstance(section, Mapping):
        return
    if stop and not _given(config, "eval", "every_steps"):
        yield _refuse("eval.stop_after", stop, "allowed with eval.every_steps = null: null")
    uses = {"stop_metric": ("loss", stop or best, " and checkpoint.keep_best"), "stop_min_change": (0, stop, "")}
    for key, (default, used, others) in uses.items():
        if not used and section.get(key, default) != default:
            yield _refuse(f"eval.{key}", section[key], f"allowed without eval.stop_after{others}: {default}")
    name, metric = _get(config, "objective", "name", str), section.get("stop_metric", "loss")
    if (stop or best) and metric != "loss" and name in OBJECTIVES and OBJECTIVES[name].branches == 1:
        yield _refuse("eval.stop_metric", metric, f"objective {name} has no pairs; allowed: loss")


def _samples_conflicts(config: Mapping[str, Any]) -> Iterator[Conflict]:
    if not isinstance(config.get("samples"), Mapping):
        return
    name, prompts = _get(config, "objective", "name", str), _get(config, "samples", "prompts", str)
    if name in OBJECTIVES and OBJECTIVES[name].head == "value":
        yield (
            "samples",
            f"samples: objective {name} trains a reward model, which makes no text; allowed: samples = null",
        )
    if prompts == "-":
        yield _refuse("samples.prompts", prompts, "a run reads no standard input; allowed: a file or gs:// URL")
    least, most = (_get(config, "samples", f"{end}_new_tokens", int) for end in ("min", "max"))
    most = SamplesSection.model_fields["max_new_tokens"].default if most is None else most
    if least is not None and least > most:
        yield _refuse("samples.min_new_tokens", least, f"allowed: at most samples.max_new_tokens = {most}")


def _profile_conflicts(config: Mapping[str, Any]) -> Iterator[Conflict]:
    steps = _get(config, "profile", "steps", list) or _get(config, "profile", "steps", tuple) or []
    if len(steps) == 2 and all(isinstance(step, int) for step in steps) and steps[0] > steps[1]:
        yield _refuse("profile.steps", list(steps), "allowed: [first, last] with first <= last")


def _rate_conflicts(config: Mapping[str, Any]) -> Iterator[Conflict]:
    """Rates that leave no weight as it was, or every one."""
    rate, decay = _number(config, "schedule", "learning_rate"), _number(config, "optimizer", "weight_decay")
    if rate is not None and rate >= 1:
        yield _refuse("schedule.learning_rate", rate, "allowed: < 1; a step of AdamW changes each weight by about it")
    elif rate is not None and decay is not None and rate > 0 and rate * decay >= 1:
        reason = f"allowed: < {1 / rate:g}; times schedule.learning_rate = {rate:g}, a step would remove whole weights"
        yield _refuse("optimizer.weight_decay", decay, reason)
    for section, key in (("schedule", "learning_rate"), ("optimizer", "eps")):
        value = _number(config, section, key)
        if value is not None and 0 < value < SMALLEST_FLOAT32:
            yield _refuse(f"{section}.{key}", value, f"allowed: >= {SMALLEST_FLOAT32}; in float32 it is 0")
    steps, warmup = (_get(config, "schedule", key, int) for key in ("steps", "warmup_steps"))
    given = isinstance(config.get("schedule"), Mapping) and "warmup_steps" in config["schedule"]
    warmup = warmup if given else ScheduleSection.model_fields["warmup_steps"].default
    lowest = _given(config, "schedule", "warmup_ratio", "min_rate_ratio")  # then whoever builds the schedule decides
    if steps == 1 and warmup and not lowest:
        yield "schedule.steps", no_rate(warmup)


def no_rate(warmup_steps: int) -> str:
    """What a run of one step with a warm-up is told."""
    return (
        f"schedule.warmup_steps = {warmup_steps}: the run has one step, and the first step of a warm-up has rate 0, so "
        "nothing would be learned; set schedule.warmup_steps=0"
    )
