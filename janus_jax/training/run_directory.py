"""The run directory of a start: checked, and held against other starts."""

import contextlib
import functools
import sys
from collections.abc import Iterator

from janus_jax.checkpoint.run_dir import AnyRunDir, RunDir
from janus_jax.config.run import RunConfig
from janus_jax.errors import ConfigError, named
from janus_jax.parallel import processes
from janus_jax.storage.bucket import Prefix, is_url
from janus_jax.storage.local import fixed, unusable
from janus_jax.storage.lock import Lock, held
from janus_jax.storage.writable import unwritable
from janus_jax.training import metrics
from janus_jax.training.same_inputs import require_same_config_everywhere

_NOT_A_RUN = ("manifest.json", "config.json", "params")
"""What data sets, Hugging Face directories and converted directories hold, and runs do not."""


@contextlib.contextmanager
def held_run_dir(config: RunConfig, *, quiet: bool) -> Iterator[tuple[AnyRunDir, Lock | None]]:
    """The run directory, and in process 0 its lock. Nobody else's start changes anything in it meanwhile."""
    with processes.agreement("run directory"):  # what follows would wait for ever for a process that found bad input
        run_dir = _open_run_dir(config)
        if config.logging.wandb and processes.is_main():
            metrics.require_wandb()
    require_same_config_everywhere(config)
    with contextlib.ExitStack() as stack:
        lock = None
        with processes.agreement("lock"):
            if processes.is_main():
                show = functools.partial(print, file=sys.stderr, flush=True)
                notify = (lambda line: None) if quiet else show
                lock = stack.enter_context(held(run_dir.lock, config.run.dir, notify))
        yield run_dir, lock


def _open_run_dir(config: RunConfig) -> AnyRunDir:
    with named("run.dir"):
        reason = unwritable(config.run.dir)
    if reason:
        raise ConfigError(f"run.dir={config.run.dir}: {reason}")
    if config.reference.dir is not None:
        with named("reference.dir"):
            usable = unwritable if is_url(config.reference.dir) else unusable
            reason = usable(config.reference.dir)
            if reason and is_url(config.reference.dir) and Prefix(config.reference.dir).find("train.npz"):
                reason = None  # to read it is enough, unless some are missing
        if reason:
            raise ConfigError(f"reference.dir={config.reference.dir}: {reason}")
    path = fixed(config.run.dir)
    if others := [name for name in _NOT_A_RUN if (path / name).exists()]:
        raise ConfigError(f"run.dir={config.run.dir}: holds {others[0]}: a data set or a model, not a run")
    run_dir = RunDir(path)
    data, inputs = config.data, {"init.from": config.init.from_, "reference.from": config.reference.from_}
    inputs |= {f"data.mixture.{number}.dir": part.dir for number, part in enumerate(data.mixture or ())}
    inputs["samples.prompts"] = None if config.samples is None else config.samples.prompts
    if reason := run_dir.clash({"data.dir": data.dir, "data.eval_dir": data.eval_dir, **inputs}):
        raise ConfigError(f"run.dir={config.run.dir}: {reason}")
    return run_dir
