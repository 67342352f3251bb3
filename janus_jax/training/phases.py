"""Hooks that say which phase they are: past its bound (`timeouts`), a phase that stands still ends the run."""

import dataclasses

from janus_jax.training.hooks import Hook, Run, Step


@dataclasses.dataclass(frozen=True)
class InPhase(Hook):
    """Another hook, as a phase."""

    phase: str
    hook: Hook

    def at_start(self, run: Run) -> None:
        with run.notices.phase(self.phase):
            self.hook.at_start(run)

    def before_step(self, run: Run) -> None:
        with run.notices.phase(self.phase):
            self.hook.before_step(run)

    def after_step(self, run: Run, step: Step) -> None:
        with run.notices.phase(self.phase):
            self.hook.after_step(run, step)

    def at_end(self, run: Run) -> None:
        with run.notices.phase(self.phase):
            self.hook.at_end(run)

    def at_stop(self, run: Run, step: Step | None) -> None:
        with run.notices.phase(self.phase):
            self.hook.at_stop(run, step)
