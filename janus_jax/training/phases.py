"""The phase that a run is in: it has an account of its time, and a bound (`timeouts`) past which a still run ends."""

import contextlib
from collections.abc import Iterator

from janus_jax.parallel.progress import Progress
from janus_jax.training.goodput import Goodput

_BOUNDED = {
    "setup": "restore",
    "restore": "restore",
    "step": "step",
    "evaluation": "evaluation_batch",
    "reference": "reference_batch",
    "samples": "samples",
    "checkpoint": "save",
    "export": "export",
}
"""Phase of the account -> the key of `timeouts` that bounds it. Others have the bound of the phase around them."""


class Phases:
    """Called with the name of a phase of `goodput.PHASES`: what happens inside the context belongs to it."""

    def __init__(self, goodput: Goodput, progress: Progress):
        self.goodput, self._progress = goodput, progress

    @contextlib.contextmanager
    def __call__(self, name: str) -> Iterator[None]:
        bound = _BOUNDED.get(name)
        with self.goodput.phase(name), self._progress.phase(bound) if bound else contextlib.nullcontext():
            yield
