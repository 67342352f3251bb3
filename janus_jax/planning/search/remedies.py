"""What to change when a run has met the end of memory, on the devices that it ran on. Nothing is compiled."""

import contextlib
import dataclasses
from collections.abc import Sequence
from typing import Any

from janus_jax.config.changes import changed, overrides
from janus_jax.config.run import RunConfig
from janus_jax.errors import ConfigError
from janus_jax.planning.chips.slices import CPU, Slice, detect_slice, load_chips
from janus_jax.planning.search.candidates import InputsCache
from janus_jax.planning.search.estimate import estimate
from janus_jax.planning.search.suggest import single_changes, suggestions

_LESS = 0.85
"""The run needs more than its devices have, whatever its estimate says: a change counts that saves this much of it."""

_SHOWN = 3


@dataclasses.dataclass(frozen=True)
class _Estimated:
    """In place of a compiled plan."""

    fits: bool


def remedies(config: RunConfig, devices: Sequence[Any]) -> list[str]:
    """Lines that say which changes need less memory, by estimate; none if no change is known to help.

    Of known chips: changes that should fit, cheapest first. Of others: single changes, largest effect first.

    Args:
        devices: all that the run has, of JAX.
    Raises:
        JanusError: as `estimate`.
    """
    target, num_slices = detect_slice(devices)
    chip = load_chips().chip(target)
    if chip is None:
        lines = _by_effect(config, target)
        return [f"less memory, by estimate: {'; '.join(lines)}"] if lines else []
    inputs = InputsCache(target.devices * num_slices)
    before = estimate(config, target, num_slices, chip=chip, inputs=inputs(config)).bytes
    most = min(chip.usable_hbm_bytes_per_device, _LESS * before)

    def by_estimate(changes: RunConfig, *unused: Any, **ignored: Any) -> Any:
        after = estimate(changes, target, num_slices, chip=chip, inputs=inputs(changes))
        return _Estimated(after.bytes <= most)

    options: dict[str, Any] = {"enough": _SHOWN, "tries": 200, "usable": round(most), "planner": by_estimate}
    fitting = suggestions(config, target.name, num_slices, **options)
    lines = [f"  {' '.join(suggestion.changes)}: {suggestion.cost}" for suggestion in fitting]
    return [f"should fit on {target.name}, by estimate, cheapest first:", *lines] if lines else []


def _by_effect(config: RunConfig, target: Slice) -> list[str]:
    inputs = InputsCache(target.devices)
    before = estimate(config, target, inputs=inputs(config)).bytes
    saved: dict[str, tuple[float, str]] = {}
    for change in single_changes(config, target, 1, inputs):
        if change.second_kind == "microbatches" or (change.kind == "offload" and target.family == CPU):
            continue
        if change.kind == "microbatches" and change.kind in saved:
            continue  # the next number of them; whoever needs less memory still can go on
        with contextlib.suppress(ConfigError):
            made = changed(config, change.values)
            less = 1 - estimate(made, target, inputs=inputs(made)).bytes / before
            words = f"{' '.join(overrides(change.values))} ({less:.0%} less)"
            saved[change.kind] = max(saved.get(change.kind, (0.0, "")), (less, words))
    return [words for less, words in sorted(saved.values(), reverse=True) if less >= 0.02][: _SHOWN + 1]
