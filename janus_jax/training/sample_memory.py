"""Memory that samples take beside a run: a copy of the weights, a cache, and what is computed with them."""

from collections.abc import Sequence
from typing import Any

from janus_jax.generation import memory, placement
from janus_jax.generation.sizes import slots
from janus_jax.model.config import ModelConfig
from janus_jax.training.program import Program, local_bytes
from janus_jax.training.sample_prompts import SamplePrompts

STEPS_PER_CALL = 16
"""Tokens of an answer between two looks for a notice."""


def sample_memory(model: ModelConfig, devices: Sequence[Any], *, rows: int, prompt: int, new: int) -> memory.Memory:
    """What it takes on each device.

    Args:
        devices: of training, in the order of its mesh; they need not exist here.
        rows: answers that grow at the same time.
        prompt: tokens of the longest prompt.
        new: most tokens of an answer.
    """
    place, _ = placement.generation_place(model, devices)
    return memory.needed(
        model,
        place,
        rows=rows,
        length=slots(prompt, new, STEPS_PER_CALL, model.max_position_embeddings),
        dtype=placement.compute_at(place).dtype,
        live=True,
        prompt=prompt,
        steps=STEPS_PER_CALL,
    )


def require_room(prompts: SamplePrompts, model: ModelConfig, program: Program, *, online_reference: bool) -> None:
    """Raises ConfigError if samples do not fit beside what a run keeps on its devices, which is not there yet.

    Args:
        online_reference: whether the weights of a reference stay on the devices.
    """
    needed = sample_memory(
        model,
        list(program.mesh.devices.flat),
        rows=prompts.rows,
        prompt=prompts.longest_prompt,
        new=prompts.section.max_new_tokens,
    )
    kept = local_bytes(program.abstract_state())
    kept += local_bytes(program.abstract_params(program.functions.compute.dtype)) if online_reference else 0
    free = memory.free_bytes(program.mesh.local_devices)
    if free is None or kept > free:  # the run itself does not fit, and says so
        return
    memory.require(needed, needed.place, f"samples.rows = {prompts.section.rows}", held=-kept)
