"""Learning rate, length and schedule of a recipe, as transformers names them."""

import json
from collections.abc import Mapping
from typing import Any

from janus_jax.config.imports.ledger import Ledger, shown
from janus_jax.errors import ConfigError

_SHAPES = {
    "cosine": "cosine",
    "cosine_with_restarts": "cosine",
    "cosine_with_min_lr": "cosine",
    "linear": "linear",
    "polynomial": "linear",
    "constant": "constant",
    "constant_with_warmup": "constant",
    "warmup_stable_decay": "wsd",
}


def learning(ledger: Ledger, key: str, default: float) -> float:
    """The peak learning rate."""
    rate = ledger.number(key, default, low=0)
    if not rate:
        raise ConfigError(f"{ledger.file}: {key} = {shown(ledger.get(key))}: allowed: a number above 0")
    ledger.carry(key, "schedule.learning_rate", float(rate))
    return rate


def length_of_run(ledger: Ledger, epochs_key: str, default: float, steps_key: str | None = None) -> None:
    """Epochs, or steps where they are given: those of all tools come before epochs."""
    steps = ledger.number(steps_key, low=-1) if steps_key else None
    epochs = ledger.number(epochs_key, default)
    if steps_key and steps is not None and steps > 0:
        ledger.carry(steps_key, "schedule.steps", int(steps))
        ledger.judge(epochs_key, "ignored", note=f"{steps_key} comes before it")
        return
    if steps_key:
        ledger.judge(steps_key, "not needed", note="is off")
    if epochs == int(epochs) and epochs > 0:
        ledger.carry(epochs_key, "schedule.epochs", int(epochs))
    else:
        whole = max(1, round(epochs))
        ledger.write("schedule.epochs", whole)
        reason = "epochs are whole here; give schedule.steps"
        ledger.judge(epochs_key, "not supported", f"schedule.epochs = {whole}", reason)


def schedule(
    ledger: Ledger,
    key: str,
    default: str,
    rate: float,
    *,
    kwargs_key: str = "",
    more: Mapping[str, float] | None = None,
) -> str:
    """Shape of the decay. Returns the tool's name for it.

    Args:
        kwargs_key: the key with arguments of the schedule.
        more: arguments that the tool gives itself, or in other keys.
    """
    name = str(ledger.get(key, default))
    own = _options(ledger, kwargs_key)
    options = own | dict(more or {})
    ledger.defects += [f"{key} = {name}: {one}: the tool stops" for one in _stops(name, own, options, kwargs_key)]
    try:
        used, shape, extra = _shape(name, options, rate)
    except (TypeError, ValueError) as error:
        raise ConfigError(f"{ledger.file}: {kwargs_key} = {shown(options)}: allowed: numbers") from error
    if shape is None:
        ledger.judge(key, "not supported", "schedule.name = cosine", "no such schedule here")
        ledger.write("schedule.name", "cosine")
    else:
        note = "with neither, the rate falls to 0 here" if name == "cosine_with_min_lr" and not extra else ""
        ledger.carry(key, "schedule.name", shape, note=note, verdict="approximated" if note else "kept")
        for ours, value in extra.items():
            ledger.write(f"schedule.{ours}", value)
    for one in ledger.under(kwargs_key) if kwargs_key else ():
        option = one.removeprefix(kwargs_key).lstrip(".")
        known = not option or option in used
        ledger.judge(one, "kept" if known and shape else "not supported", "schedule", "" if known else "not here")
    return name


def _stops(name: str, own: Mapping[str, Any], options: Mapping[str, Any], kwargs_key: str) -> list[str]:
    """What `get_scheduler` of transformers refuses about the lowest rate of a schedule."""
    lows = {"min_lr", "min_lr_rate"} & options.keys()
    if name == "cosine_with_min_lr":
        return [] if len(lows) == 1 else [f"needs either min_lr or min_lr_rate in {kwargs_key}"]
    wrong = sorted({"min_lr", "min_lr_rate", "min_lr_ratio"} & own.keys()) if name in ("cosine", "linear") else []
    return [f"this schedule has no {one}" for one in wrong]


def _options(ledger: Ledger, kwargs_key: str) -> dict[str, Any]:
    prefix = f"{kwargs_key}."
    options = {key.removeprefix(prefix): ledger.get(key) for key in ledger.values if key.startswith(prefix)}
    text = ledger.get(kwargs_key) if kwargs_key else None
    if isinstance(text, str):
        try:
            options |= dict(json.loads(text))
        except (ValueError, TypeError) as error:
            raise ConfigError(f"{ledger.file}: {kwargs_key} = {shown(text)}: allowed: a JSON object") from error
    return options


def _shape(name: str, options: Mapping[str, Any], rate: float) -> tuple[set[str], str | None, dict[str, Any]]:
    """(options that are used, our name, our other keys) of a schedule of transformers."""
    shape, extra, used = _SHAPES.get(name), {}, set()
    low = options.get("min_lr_rate", options.get("min_lr_ratio"))
    if "min_lr" in options and name == "cosine_with_min_lr":
        low = float(options["min_lr"]) / rate
    if name == "polynomial":
        low = float(options.get("lr_end", 1e-7)) / rate
        used |= {"lr_end", "power"}
        shape = shape if float(options.get("power", 1)) == 1 else None
    if name == "cosine_with_restarts":
        used.add("num_cycles")
        shape = shape if float(options.get("num_cycles", 1)) == 1 else None
    if shape == "wsd":
        used |= {"num_decay_steps", "num_stable_steps", "decay_type"}
        shape = shape if options.get("num_decay_steps") and options.get("warmup_type", "linear") == "linear" else None
        extra |= {"decay_steps": options.get("num_decay_steps"), "decay_shape": options.get("decay_type", "cosine")}
    if low is not None and shape not in ("constant", None):
        extra["min_rate_ratio"] = float(f"{float(low):.12g}")
        used |= {"min_lr", "min_lr_rate", "min_lr_ratio"}
    return used, shape, extra


def warmup(
    ledger: Ledger, name: str, steps_key: str, ratio_key: str, *, steps: int | None, ratio: float | None, note: str = ""
) -> None:
    """Warm-up of a schedule: steps, or a share of them. A schedule `constant` of transformers has none."""
    if name == "constant":
        for key in (key for key in (steps_key, ratio_key) if ledger.on(key)):
            ledger.judge(key, "ignored", note="the schedule `constant` of transformers has no warm-up")
            ledger.defects.append(f"{key}: the schedule `constant` ignores it; `constant_with_warmup` would use it")
        ledger.carry(steps_key, "schedule.warmup_steps", 0)
        ledger.judge(ratio_key, "not needed", note="is off")
    elif steps is not None or ratio is None:
        ledger.carry(steps_key, "schedule.warmup_steps", steps or 0, note=note)
        ledger.judge(ratio_key, "not needed", note=f"{steps_key} comes before it")
    else:
        ledger.write("schedule.warmup_steps", None)
        ledger.carry(ratio_key, "schedule.warmup_ratio", ratio, note=note, verdict="approximated" if note else "kept")
        ledger.judge(steps_key, "not needed", note="is off")
