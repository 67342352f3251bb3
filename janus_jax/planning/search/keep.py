"""What the backward pass can keep under the memory of a chip: of all choices that fit, the one that repeats least.

chosen = most_kept(load_config("configs/sft_65k.yaml"), "v5p-16")
print(as_text(chosen.choice.remat), chosen.plan.memory.needed)
"""

import dataclasses
import os
from collections.abc import Callable

from janus_jax.config.changes import changed
from janus_jax.config.run import RunConfig
from janus_jax.errors import ConfigError
from janus_jax.model.remat import WORDS
from janus_jax.planning.chips.slices import Slice, find_slice, load_chips
from janus_jax.planning.compile import plan
from janus_jax.planning.inputs import Inputs, find_inputs
from janus_jax.planning.result import Plan
from janus_jax.planning.search.estimate import Choice, choices_of_kept

_ROOM = 1.03
"""A device's memory over the most that a list may need by estimate: estimates have been up to 3 % too low."""


@dataclasses.dataclass(frozen=True)
class Found:
    """A choice that fits, its compiled plan, and what `full` would repeat."""

    choice: Choice
    plan: Plan
    full: Choice


def fitting_list(
    config: RunConfig, target: Slice, num_slices: int, usable: int | None, *, inputs: Inputs
) -> tuple[str, ...] | None:
    """The list of tensors that fits by estimate and repeats least of the forward pass.

    Returns:
        None if no list fits, or only `full`, or the best is what another word keeps, or `usable` is None.
    Raises:
        ConfigError, DataError, ConversionError: as `estimate`.
    """
    if usable is None:
        return None
    choices = choices_of_kept(config, target, num_slices, inputs=inputs)
    fitting = [choice.remat for choice in choices if choice.bytes * _ROOM <= usable]
    return None if not fitting or isinstance(fitting[-1], str) or fitting[-1] in WORDS.values() else fitting[-1]


def most_kept(
    config: RunConfig,
    topology: str,
    num_slices: int = 1,
    *,
    chips: str | os.PathLike[str] | None = None,
    tries: int = 4,
    planner: Callable[..., Plan] = plan,
    report: Callable[[Choice, bool], None] | None = None,
) -> Found | None:
    """Of all lists of tensors that may be kept, the one that fits and repeats least of the forward pass. None if not
    even `full` fits, or none of the choices that were compiled.

    All are estimated. Compiled is the best that fits by estimate; what the compiler says of it corrects the estimate of
    the others, until the best is compiled or `tries` programs are.

    Args:
        planner: compiles in place of `plan`.
        report: called after each compilation with the choice and whether it fits.
    Raises:
        ConfigError: unknown slice, simulated devices, or libtpu is missing.
        DataError, ConversionError: as training would.
    """
    target = find_slice(topology)
    chip = load_chips(chips).chip(target)
    if chip is None:
        raise ConfigError(f"{topology}: simulated devices have no memory of their own to search under")
    usable, inputs = chip.usable_hbm_bytes_per_device, find_inputs(config, target.devices * num_slices)
    choices = choices_of_kept(config, target, num_slices, inputs=inputs)
    fitting, too_large, error, best = -1, len(choices), 0, None
    for _ in range(tries):
        within = [place for place, choice in enumerate(choices) if choice.bytes + error <= usable]
        place = min(max(within[-1] if within else 0, fitting + 1), too_large - 1)
        if place <= fitting or (best is not None and place not in within):
            break
        compiled = planner(
            changed(config, {"remat": choices[place].remat}), topology, num_slices=num_slices, chips=chips
        )
        if report is not None:
            report(choices[place], compiled.fits)
        if compiled.fits:
            fitting, best = place, Found(choices[place], compiled, choices[0])
        else:
            too_large = place
        needed = compiled.memory.needed
        # Without a figure the compiler gave up; the next choice is halfway down.
        error = needed - choices[place].bytes if needed else usable - choices[(fitting + place) // 2].bytes
    return best
