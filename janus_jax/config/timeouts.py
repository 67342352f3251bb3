"""The section `timeouts`: how long a phase of a run may stand still."""

from typing import Annotated, Literal

from pydantic import Field

from janus_jax.config.section import Section

Seconds = Annotated[float, Field(gt=0)] | Literal["auto"] | None

DEFAULT_S = {
    "setup": 14400.0,
    "compile": 7200.0,
    "restore": 7200.0,
    "step": 1800.0,
    "evaluation_batch": 1800.0,
    "reference_batch": 1800.0,
    "samples": 7200.0,
    "save": 7200.0,
    "export": 14400.0,
}
"""What `auto` means where there are several processes."""


class TimeoutsSection(Section):
    """Seconds after which a phase without progress ends the run with exit code 13, on all processes; the message
    names the phase and the process that is behind, and stderr shows what its threads do. auto: the time that the key
    names with several processes, no bound with one. null: no bound."""

    setup: Seconds = "auto"
    """Reading the data and comparing the hosts. auto: 4 hours."""
    compile: Seconds = "auto"
    """The first step, held-out batch and reference batch, which are compiled. auto: 2 hours."""
    restore: Seconds = "auto"
    """Reading the weights or the checkpoint that the run starts from. auto: 2 hours."""
    step: Seconds = "auto"
    """One step, with the wait for its data. auto: 30 minutes."""
    evaluation_batch: Seconds = "auto"
    """One held-out batch. auto: 30 minutes."""
    reference_batch: Seconds = "auto"
    """One batch of the pass that scores the reference. auto: 30 minutes."""
    samples: Seconds = "auto"
    """A few tokens of answers to the prompts of `samples`, with what is compiled for them. auto: 2 hours."""
    save: Seconds = "auto"
    """What a checkpoint takes while training waits for it. auto: 2 hours."""
    export: Seconds = "auto"
    """The Hugging Face directory. auto: 4 hours."""

    def bounds(self, *, several: bool) -> dict[str, float]:
        """Phase -> seconds, without the phases that have no bound."""
        given = {phase: getattr(self, phase) for phase in DEFAULT_S}
        automatic = DEFAULT_S if several else {}
        seconds = {phase: automatic.get(phase) if value == "auto" else value for phase, value in given.items()}
        return {phase: value for phase, value in seconds.items() if value is not None}
