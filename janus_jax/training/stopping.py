"""Early stopping: whether a held-out metric still improves."""

import dataclasses
import math
from collections.abc import Mapping
from typing import Any

from janus_jax.checkpoint.retention import HIGHER_IS_BETTER
from janus_jax.config.sections import EvalSection


@dataclasses.dataclass(frozen=True)
class Stopping:
    """How the metric went so far. A checkpoint's meta holds it, so that a resumed run stops at the same step.

    The rules are those of transformers' EarlyStoppingCallback: an improvement of at most `eval.stop_min_change` does
    not count as one, but is what the next evaluation is compared with.
    """

    metric: str
    data: str  # fingerprint of the held-out data
    best: float | None = None
    best_step: int | None = None
    stale: int = 0  # evaluations since the metric last improved
    stopped: bool = False

    @classmethod
    def resumed(cls, section: EvalSection, data: str, saved: Mapping[str, Any] | None) -> "Stopping":
        """As a checkpoint's meta says. It starts anew where that is of another metric or of other held-out data.

        Args:
            data: fingerprint of the held-out data.
            saved: None without a checkpoint, or where it was saved without `eval.stop_after`.
        """
        fresh = cls(section.stop_metric, data)
        if saved is None or (saved["metric"], saved["data"]) != (fresh.metric, fresh.data):
            return fresh
        before = cls(**saved)
        return dataclasses.replace(before, stopped=before.stopped and before.stale >= (section.stop_after or math.inf))

    def evaluated(self, section: EvalSection, step: int, value: float) -> "Stopping":
        """After an evaluation; a value that is not finite is no improvement."""
        sign = 1 if self.metric in HIGHER_IS_BETTER else -1
        change = math.inf if self.best is None else sign * (value - self.best)
        better = math.isfinite(value) and change > 0
        stale = 0 if better and change > section.stop_min_change else self.stale + 1
        best = {"best": value, "best_step": step} if better else {}
        return dataclasses.replace(self, **best, stale=stale, stopped=stale >= (section.stop_after or math.inf))

    def __str__(self) -> str:
        best = "it was never finite" if self.best is None else f"best {self.best:.6g} at step {self.best_step}"
        count = f"{self.stale} evaluation{'s' if self.stale > 1 else ''} in a row"
        return f"eval.stop_after: {count} did not improve {self.metric} enough; {best}"
