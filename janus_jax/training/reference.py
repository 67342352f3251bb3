"""Where the reference's log-probs come from: a sidecar that is made before the first step, or weights that are kept."""

import dataclasses
import functools
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Protocol

import jax
import numpy as np

from janus_jax.batch import Batch
from janus_jax.data.epoch import Position
from janus_jax.data.loader import LoadedBatch, Loader
from janus_jax.errors import ConfigError, NonFiniteError, StorageError
from janus_jax.model.mistral import Params
from janus_jax.parallel import processes
from janus_jax.storage.local import absolute
from janus_jax.training.fingerprint import model_fingerprint
from janus_jax.training.reference_store import Identity, Sidecar
from janus_jax.training.setup import Setup

_SAVE_EVERY_S = 30.0

Score = Callable[[Params, Batch], jax.Array]
"""The jitted reference scores of a batch, [M, B, S, 2]."""

Notify = Callable[[str], None]


class Reference(Protocol):
    """Gives batches their reference log-probs."""

    @property
    def weights(self) -> str | None:
        """Fingerprint of the reference model; None where there is no reference."""
        ...

    def fill(self, batch: Batch, *, held_out: int | None = None) -> Batch:
        """The batch with `reference_logps`. `held_out` numbers the batches of an evaluation, which never change."""
        ...


@dataclasses.dataclass(frozen=True)
class Filled:
    """Nothing to do: there is no reference, or the loader reads its log-probs from a sidecar."""

    weights: str | None = None

    def fill(self, batch: Batch, *, held_out: int | None = None) -> Batch:
        del held_out
        return batch


class Online:
    """Frozen weights on the devices, in the compute dtype, score each batch as it comes."""

    def __init__(self, score: Score, params: Params, weights: str):
        self._score, self._params = score, params
        self.weights: str | None = weights
        self._held_out: dict[int, jax.Array] = {}

    def fill(self, batch: Batch, *, held_out: int | None = None) -> Batch:
        if held_out is None:
            return dataclasses.replace(batch, reference_logps=self._score(self._params, batch))
        if held_out not in self._held_out:
            self._held_out[held_out] = self._score(self._params, batch)
        return dataclasses.replace(batch, reference_logps=self._held_out[held_out])


def directory(setup: Setup) -> Path:
    """Where precomputed log-probs lie."""
    config = setup.config
    return Path(absolute(config.reference.dir or Path(config.run.dir) / "reference"))


def check_stale(setup: Setup) -> None:
    """Refuses a sidecar of another data set, template, tokenizer or compute dtype before any weight is read.

    Raises:
        ConfigError, DataError: as `Sidecar`.
    """
    if setup.objective.needs_reference and setup.config.reference.mode == "precompute":
        if (place := directory(setup)).exists() and not place.is_dir():
            raise ConfigError(f"reference.dir={place}: is a file; allowed: a directory, there already or not")
        for name, loader in _loaders(setup):
            _open(setup, name, loader)


def open_reference(
    setup: Setup, score: Score, *, initial: Params | None, step: int | None, known: str | None, notify: Notify
) -> Reference:
    """What the run compares with. Collective: call it on every process.

    Args:
        score: jitted reference scores.
        initial: the run's initial weights if it begins now, which need not be read again then.
        step: `Setup.reference_step` when the run began.
        known: fingerprint of the reference's weights when the run began; None if it begins now.
        notify: told about progress of a long pass.
    Raises:
        ConfigError: the reference is not what it was when the run began, or the sidecar is of something else.
        NonFiniteError: the reference's log-probs are not finite.
    """
    if not setup.objective.needs_reference:
        return Filled()
    load = functools.partial(_weights, setup, initial, step)
    if setup.config.reference.mode == "online":
        params = load(kept=True)
        fingerprint = model_fingerprint(setup.model, params)
        _check_known(setup, fingerprint, known)
        return Online(score, params, fingerprint)
    with processes.agreement("reference sidecars"):
        opened = [(_open(setup, name, loader, known), loader) for name, loader in _loaders(setup)]
    params, fingerprint = None, known
    for sidecar, _ in opened:
        sidecar.logps = _of_main(sidecar.logps)
    if known is None or any(sidecar.missing(loader.examples_read()).any() for sidecar, loader in opened):
        with processes.agreement("reference weights"):
            params = load(kept=False)
        fingerprint = model_fingerprint(setup.model, params)
        with processes.agreement("reference model"):
            _check_known(setup, fingerprint, known)
            for sidecar, _ in opened:
                sidecar.require_model(fingerprint)
    for sidecar, loader in opened:
        if sidecar.missing(loader.examples_read()).any():
            assert params is not None
            _precompute(sidecar, loader, functools.partial(score, params), notify)
        loader.reference_logps = sidecar.logps
    return Filled(fingerprint)


def _loaders(setup: Setup) -> list[tuple[str, Loader]]:
    return [("train", setup.loader)] + ([] if setup.eval_loader is None else [("eval", setup.eval_loader)])


def _open(setup: Setup, name: str, loader: Loader, model: str | None = None) -> Sidecar:
    identity = Identity.of(loader, setup.config.precision.compute, model or "")
    return Sidecar(directory(setup), name, len(loader.dataset), identity)


def _weights(setup: Setup, initial: Params | None, step: int | None, *, kept: bool) -> Params:
    """The reference in the compute dtype. The initial weights serve themselves while no step has changed them."""
    if initial is not None and setup.reference is None and not kept:
        return jax.tree.map(lambda leaf: leaf.astype(setup.program.functions.compute.dtype), initial)
    params = setup.reference_params(step)
    assert params is not None
    return params


def _check_known(setup: Setup, found: str | None, known: str | None) -> None:
    if known is not None and found != known:
        section = setup.config.reference if setup.reference is not None else setup.config.init
        key = "reference.from" if setup.reference is not None else "init.from"
        raise ConfigError(
            f"{key}={section.from_}: it is not the model that this run began with (fingerprint "
            f"{str(found)[:12]}, not {known[:12]}); put it back, or begin a run in another run.dir"
        )


def _precompute(sidecar: Sidecar, loader: Loader, score: Callable[[Batch], jax.Array], notify: Notify) -> None:
    """Scores what is missing, in the batches of the first epoch, and saves as it goes.

    The first epoch is trained on in these very rows by this very executable's numbers, so that log-probs of that epoch
    are bit for bit those that online scoring would give. Of a mixture, later epochs bring what the first left out.
    """
    wanted = loader.examples_read()
    total, began, saved = len(wanted), time.monotonic(), time.monotonic()
    failure: StorageError | None = None
    with processes.agreement(f"reference {sidecar.name} begins"):
        if processes.is_main():
            sidecar.save()  # a directory that cannot be written is found before the pass
    if there := total - int(sidecar.missing(wanted).sum()):
        notify(f"reference: {there:,} of {total:,} {sidecar.name} pairs were scored before; going on")
    for loaded in _missing_batches(sidecar, loader, wanted):
        ids, valid, logps = _to_host((loaded.batch.example_id, loaded.batch.valid, score(loaded.batch)))
        if not np.isfinite(logps[valid]).all():
            bad = ids[valid][~np.isfinite(logps[valid]).all(-1)][0]
            raise NonFiniteError(
                f"reference: log-probs of example {bad} of {loader.dataset.name}, split {loader.dataset.split}, "
                "are not finite; look at the reference's weights"
            )
        sidecar.logps[ids[valid]] = logps[valid]
        if (now := time.monotonic()) - saved >= _SAVE_EVERY_S:
            saved = now
            if processes.is_main():
                try:
                    sidecar.save()
                except StorageError as error:  # the others are on their way into the next batch: said at the end
                    failure = error
            done = total - int(sidecar.missing(wanted).sum())
            notify(f"reference: {done:,} of {total:,} {sidecar.name} pairs scored, {now - began:,.0f} s")
    with processes.agreement(f"reference {sidecar.name}"):
        if processes.is_main():
            sidecar.save()
    if failure is not None:
        notify(f"{failure} (meanwhile; the last attempt went well)")
    notify(f"reference: {total:,} {sidecar.name} pairs scored in {time.monotonic() - began:,.0f} s")


def _missing_batches(sidecar: Sidecar, loader: Loader, wanted: np.ndarray) -> Iterator[LoadedBatch]:
    """Of each epoch of the run the batches from the first to the last that holds a wanted example without log-probs."""
    is_wanted = np.zeros(len(loader.dataset), bool)
    is_wanted[wanted] = True
    for epoch in range(loader.epochs):
        missing = []
        for step in range(loader.steps(epoch)):
            ids = loader.example_ids(Position(epoch, step * loader.unit))
            if (sidecar.missing(ids) & is_wanted[ids]).any():
                missing.append(step)
        if missing:
            first = missing[0]
            yield from loader.batches(Position(epoch, first * loader.unit), missing[-1] + 1 - first)
        if not sidecar.missing(wanted).any():
            return


def _of_main(array: np.ndarray) -> np.ndarray:
    """What process 0 read: all must agree on what is missing."""
    if jax.process_count() == 1:
        return array
    from jax.experimental import multihost_utils

    return np.array(multihost_utils.broadcast_one_to_all(array))


def _to_host(tree: Any) -> Any:
    if jax.process_count() == 1:
        return jax.device_get(tree)
    from jax.experimental import multihost_utils

    return multihost_utils.process_allgather(tree, tiled=True)
