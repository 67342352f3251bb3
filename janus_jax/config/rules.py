"""Rules between the keys of a configuration, judged on values that may be wrong in other ways too."""

from collections.abc import Callable, Iterator, Mapping
from typing import Any

from janus_jax.config.objectives import OBJECTIVES, objectives_with
from janus_jax.parallel.axes import AXES


def conflicts(config: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """(key, sentence) for keys that contradict each other. Takes unchecked values: judges only what has its type."""

    def get(section: str, key: str, kind: type) -> Any:
        found = config.get(section)
        value = found.get(key) if isinstance(found, Mapping) else None
        return value if isinstance(value, kind) and not isinstance(value, bool) else None

    def given(section: str, *keys: str) -> list[str]:
        found = config.get(section)
        return [f"{section}.{key}" for key in keys if isinstance(found, Mapping) and found.get(key) is not None]

    start, model = get("init", "from", str), config.get("model")
    if start and model is not None:
        yield (
            "init.from",
            f"model and init.from = {start!r} are both given; allowed: one of them (model=null or init.from=null)",
        )
    if not given("init", "from") and model is None:
        yield (
            "model",
            "neither init.from nor model is given; allowed: weights to start from, or a model for random weights",
        )
    yield from _data_conflicts(config.get("data"), get("batch", "keep_together", int))
    for section, one, other in (
        ("batch", "rows", "examples"),
        ("schedule", "epochs", "steps"),
        ("data", "dir", "mixture"),
    ):
        keys = given(section, one, other)
        if len(keys) == 2:
            yield keys[1], f"{keys[0]} and {keys[1]} are both given; allowed: one of them, the other null"
        elif isinstance(config.get(section), Mapping) and not keys:
            yield (
                f"{section}.{one}",
                f"neither {section}.{one} nor {section}.{other} is given; allowed: exactly one of them",
            )
    row, sequence = get("batch", "row_length", int), get("batch", "max_sequence_length", int)
    if row and sequence and sequence > row:
        yield (
            "batch.max_sequence_length",
            f"batch.max_sequence_length = {sequence}: allowed: at most batch.row_length = {row}",
        )
    rows, microbatches = get("batch", "rows", int), get("batch", "microbatches", int)
    if rows and microbatches and microbatches > 0 and rows % microbatches:
        yield "batch.microbatches", f"batch.microbatches = {microbatches}: allowed: a divisor of batch.rows = {rows}"
    together, examples = get("batch", "keep_together", int), get("batch", "examples", int)
    if together and together > 1 and (not examples or examples % together):
        yield "batch.keep_together", f"batch.keep_together = {together}: allowed: a divisor of batch.examples"
    rest = [axis for axis in AXES if get("mesh", axis, int) == -1]
    fsdp_by_default = isinstance(config.get("mesh"), Mapping) and "fsdp" not in config["mesh"]
    rest += ["fsdp (its default)"] if fsdp_by_default and rest else []
    if len(rest) > 1:
        yield (
            f"mesh.{rest[0]}",
            f"mesh.{' and mesh.'.join(rest)} are -1; allowed: one axis at most takes all remaining devices",
        )
    yield from _objective_conflicts(config, get, given)
    steps = get("profile", "steps", list) or get("profile", "steps", tuple) or []
    if len(steps) == 2 and all(isinstance(step, int) for step in steps) and steps[0] > steps[1]:
        yield "profile.steps", f"profile.steps = {list(steps)}: allowed: [first, last] with first <= last"


def _data_conflicts(data: Any, keep_together: int | None) -> Iterator[tuple[str, str]]:
    if not isinstance(data, Mapping):
        return
    mixture = data.get("mixture")
    parts = [part for part in mixture if isinstance(part, Mapping)] if isinstance(mixture, list) else []
    weighted = [part.get("weight") is not None for part in parts]
    if any(weighted) and not all(weighted):
        bare = parts[weighted.index(False)].get("dir")
        yield "data.mixture", f"data.mixture: {bare} has no weight and others have; allowed: for all parts or for none"
    if data.get("examples") is not None and not any(weighted):
        yield (
            "data.examples",
            f"data.examples = {data['examples']!r}: allowed with the weights of data.mixture only, otherwise null",
        )
    if parts and keep_together and keep_together > 1:
        yield "batch.keep_together", f"batch.keep_together = {keep_together}: allowed with data.mixture: 1"


def _objective_conflicts(
    config: Mapping[str, Any],
    get: Callable[[str, str, type], Any],
    given: Callable[..., list[str]],
) -> Iterator[tuple[str, str]]:
    online = get("reference", "mode", str) == "online"
    if online and given("reference", "dir"):
        yield "reference.dir", "reference.dir is given, but reference.mode = 'online' stores nothing; allowed: null"
    name = get("objective", "name", str)
    if name not in OBJECTIVES:  # pydantic names the ones that exist
        return
    objective = OBJECTIVES[name]
    yield from objective.conflicts(config["objective"])
    if not objective.needs_reference:
        for key in given("reference", "from", "dir") + ["reference.mode"] * online:
            value = config["reference"][key.partition(".")[2]]
            yield key, f"{key} = {value!r}: objective {name} has no reference; allowed: null"
    if objective.head != "value" and (layout := get("export", "layout", str)) == "openrlhf":
        yield (
            "export.layout",
            f"export.layout = {layout!r}: objective {name} trains no reward model; allowed: transformers",
        )
    if get("compat", "overlong_pairs", str) == "zero_grad":
        can = objectives_with(lambda section: section.branches == 2 and section.head == "lm")
        if name not in can:
            yield (
                "compat.overlong_pairs",
                f"compat.overlong_pairs = 'zero_grad': objective {name} cannot do without responses; it is for "
                f"{', '.join(can)}",
            )
        elif (policy := get("batch", "overlong", str)) not in (None, "drop"):
            yield (
                "batch.overlong",
                f"batch.overlong = {policy!r} and compat.overlong_pairs = 'zero_grad' contradict each other; allowed: "
                "one of them, the other 'drop'",
            )
