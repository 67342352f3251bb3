"""The hook that watches for losses and gradients that are not finite."""

import dataclasses

import jax

from janus_jax.config.sections import OptimizerSection
from janus_jax.data.epoch import Position
from janus_jax.errors import NonFiniteError
from janus_jax.training.finite import batch_facts, described, not_finite
from janus_jax.training.hooks import Due, Hook, Run, Step

_UNREAD = 100
"""Steps whose scalars nobody has read. Devices have finished those of so many steps ago."""


@dataclasses.dataclass
class RequireFinite(Hook):
    """Ends the run at a loss or gradient that is not finite, before such weights push good checkpoints out; or counts
    the updates that the steps themselves have skipped.

    To read a step's scalars is to wait for the devices. So they are read after steps at which something waits anyway,
    and earlier only if the devices have gone on for long since. After a step that was skipped the next one is read at
    once: a save may wait for it.

    Raises:
        NonFiniteError: names the step, the examples of its batch and the newest checkpoint.
    """

    due: Due
    section: OptimizerSection
    unread: list[tuple[int, Position, dict[str, jax.Array]]] = dataclasses.field(default_factory=list)

    def after_step(self, run: Run, step: Step) -> None:
        self.unread.append((run.step, step.loaded.position, step.scalars))
        if self.due(run.step) or run.notices.save_due or run.skipped.in_a_row:  # a save may wait for a finite step
            self._read(run, len(self.unread))
        elif len(self.unread) == 2 * _UNREAD:
            self._read(run, _UNREAD)

    def at_stop(self, run: Run, step: Step | None) -> None:
        self._read(run, len(self.unread))

    def _read(self, run: Run, count: int) -> None:
        """Reads the scalars of the oldest `count` steps."""
        steps, self.unread = self.unread[:count], self.unread[count:]
        values = jax.device_get([scalars for _, _, scalars in steps])
        for (step, position, _), scalars in zip(steps, values, strict=True):
            bad = not_finite({name: float(value) for name, value in scalars.items()})
            run.skipped = run.skipped.after(skipped=bool(bad))
            if bad:
                self._report(run, step, position, bad)

    def _report(self, run: Run, step: int, position: Position, bad: dict[str, float]) -> None:
        facts = batch_facts(run.setup.loader, position)
        run.metrics.note("nonfinite", step, {**bad, **facts})
        what = " and ".join(f"{name} is {value}" for name, value in bad.items())
        skips, in_a_row = self.section.on_nonfinite == "skip", run.skipped.in_a_row
        if skips and in_a_row <= self.section.max_skipped:
            run.print(f"step {step}: {what}; its update is skipped; {described(facts)}")
            return
        run.checkpoints.wait()
        newest = run.checkpoints.latest_step()
        safe = "there is no checkpoint yet" if newest is None else f"the newest checkpoint is of step {newest}"
        many = f"; {in_a_row} steps in a row, and optimizer.max_skipped is {self.section.max_skipped}" if skips else ""
        raise NonFiniteError(
            f"step {step}: {what}{many}; {safe}; {described(facts)}; look at these, or lower schedule.learning_rate"
            + ("" if skips else ", or set optimizer.on_nonfinite=skip")
        )
