"""Where the reference's log-probs come from: a file made before the first step, or weights kept on the devices."""

import dataclasses
import time
from collections.abc import Callable, Iterator
from typing import Any, Protocol

import jax
import numpy as np

from janus_jax.batch import Batch
from janus_jax.checkpoint.run_dir import RunDir
from janus_jax.data.epoch import Position
from janus_jax.data.from_config import fit_counts
from janus_jax.data.loader import LoadedBatch, Loader
from janus_jax.errors import ConfigError, NonFiniteError, StorageError
from janus_jax.model.mistral import Params
from janus_jax.parallel import processes
from janus_jax.storage.local import fixed
from janus_jax.training.fingerprint import model_fingerprint
from janus_jax.training.finite import listed, located
from janus_jax.training.notices import Notices, Stop
from janus_jax.training.reference_store import ReferenceStore
from janus_jax.training.setup import Setup

_SAVE_EVERY_S = 30.0

Score = Callable[[Params, Batch], jax.Array]
"""The jitted reference scores of a batch, [M, B, S, 2]."""


class Reference(Protocol):
    """Gives batches their reference log-probs."""

    @property
    def step(self) -> int | None:
        """The step of the run that the reference's weights come from, if they come from a run."""
        ...

    @property
    def weights(self) -> str | None:
        """Fingerprint of the reference model; None without a reference."""
        ...

    @property
    def train_logps(self) -> np.ndarray | None:
        """[E, 2] float32 by training example, for the loader to add; None where `fill` computes them."""
        ...

    @property
    def held_out_logps(self) -> np.ndarray | None:
        """The same by held-out example."""
        ...

    def fill(self, batch: Batch, *, held_out: int | None = None) -> Batch:
        """The batch with `reference_logps`. `held_out` numbers the batches of an evaluation, which never change."""
        ...


@dataclasses.dataclass(frozen=True)
class Precomputed:
    """Log-probs that the loader adds to batches; without any, a run that needs no reference."""

    step: int | None
    weights: str | None
    train_logps: np.ndarray | None = None
    held_out_logps: np.ndarray | None = None

    def fill(self, batch: Batch, *, held_out: int | None = None) -> Batch:
        """The batch as it is: the loader has filled it."""
        del held_out
        return batch


class Online:
    """Frozen weights on the devices, in the compute dtype, score each batch as it comes."""

    train_logps = held_out_logps = None

    def __init__(self, step: int | None, weights: str, score: Score, params: Params):
        self.step: int | None = step
        self.weights: str | None = weights
        self._score, self._params = score, params
        self._held_out: dict[int, jax.Array] = {}

    def fill(self, batch: Batch, *, held_out: int | None = None) -> Batch:
        """Scores the batch; a held-out batch only once."""
        if held_out is None:
            return dataclasses.replace(batch, reference_logps=self._score(self._params, batch))
        if held_out not in self._held_out:
            self._held_out[held_out] = self._score(self._params, batch)
        return dataclasses.replace(batch, reference_logps=self._held_out[held_out])


def check_stale(setup: Setup) -> None:
    """Refuses stored log-probs of another data set, template, tokenizer or compute dtype before any weight is read.

    Raises:
        ConfigError, DataError: as `ReferenceStore.open`.
    """
    if setup.objective.needs_reference and setup.config.reference.mode == "precompute":
        open_stores(setup)


def open_reference(
    setup: Setup,
    *,
    initial: Params | None,
    step: int | None,
    known: str | None,
    notify: Callable[[str], None],
    notices: Notices,
) -> Reference:
    """What the run compares with. Collective: call it on every process.

    Args:
        initial: the run's initial weights if it begins now, which need not be read again then.
        step: `Setup.reference_step` when the run began.
        known: fingerprint of the reference when the run began; None if it begins now.
        notify: gets a line about the progress of a long pass.
        notices: may end the pass between two batches; what is scored by then is saved.
    Raises:
        ConfigError: the reference is not what it was when the run began, or the stored log-probs are of something else.
        NonFiniteError: the reference's log-probs are not finite.
    """
    if not setup.objective.needs_reference:
        return Precomputed(step, known)
    if setup.config.reference.mode == "online":
        params = _weights(setup, None, step)
        return Online(step, _check_known(setup, params, known), setup.program.reference, params)
    with processes.agreement("reference files"):
        stores = open_stores(setup, known)
    for store in stores:
        store.share()
    weights = known
    if known is None or any(store.missing() for store in stores):
        params = _weights(setup, initial, step)
        weights = _check_known(setup, params, known)
        for store in stores:
            store.require_model(weights)
        for store in stores:
            if store.missing():
                _precompute(store, lambda batch: setup.program.reference(params, batch), notify, notices)
    logps = {store.name: store.logps for store in stores}
    return Precomputed(step, weights, logps["train"], logps.get("eval"))


def open_stores(setup: Setup, model: str | None = None) -> list[ReferenceStore]:
    """The stores of the training split (`train`) and, with evaluation, of the held-out split (`eval`).

    Args:
        model: fingerprint of the reference, where it is known.
    Raises:
        ConfigError, DataError: as `ReferenceStore.open`.
    """
    config = setup.config
    shared = config.reference.dir
    directory = RunDir(fixed(config.run.dir)).reference if shared is None else fixed(shared)
    if directory.exists() and not directory.is_dir():
        raise ConfigError(f"reference.dir={directory}: is a file; allowed: a directory, existing or not")
    loaders = {"train": setup.loader, "eval": setup.eval_loader}
    return [
        ReferenceStore.open(directory, name, loader, config.precision.compute, model)
        for name, loader in loaders.items()
        if loader is not None
    ]


def _weights(setup: Setup, initial: Params | None, step: int | None) -> Params:
    """The reference in the compute dtype. The initial weights serve themselves while no step has changed them."""
    if initial is not None and setup.reference is None:
        return jax.tree.map(lambda leaf: leaf.astype(setup.program.functions.compute.dtype), initial)
    with processes.agreement("reference weights"):
        params = setup.reference_params(step)
    assert params is not None
    return params


def _check_known(setup: Setup, params: Params, known: str | None) -> str:
    """The fingerprint of the reference, the same on every process."""
    fingerprint = model_fingerprint(setup.model, params)
    if known is not None and fingerprint != known:
        key, section = ("init.from", setup.config.init)
        if setup.reference is not None:
            key, section = ("reference.from", setup.config.reference)
        raise ConfigError(
            f"{key}={section.from_}: is not the model that this run began with (fingerprint {fingerprint[:12]}, not "
            f"{known[:12]}); put it back, or begin a run in another run.dir"
        )
    return fingerprint


def _precompute(
    store: ReferenceStore, score: Callable[[Batch], jax.Array], notify: Callable[[str], None], notices: Notices
) -> None:
    """Scores what is missing, in the batches of the first epoch, and saves as it goes.

    The first epoch is trained on in these very rows by this very executable's numbers, so that log-probs of that epoch
    are bit for bit those that online scoring would give. Of a mixture, later epochs bring what the first left out.
    """
    loader, total = store.loader, len(store.loader.examples_read())
    began = saved = time.monotonic()
    failure: StorageError | None = None
    with processes.agreement(f"reference {store.name} begins"):
        store.save()  # a directory that cannot be written is found before the pass
    if done := total - store.missing():
        notify(f"reference: {done:,} of the {total:,} {store.name} pairs to read were scored before; going on")
    for loaded in _saved_at_stop(store, _missing_batches(store, notices)):
        ids, valid, logps = _to_host((loaded.batch.example_id, loaded.batch.valid, score(loaded.batch)))
        if not np.isfinite(logps[valid]).all():
            bad = ids[valid][~np.isfinite(logps[valid]).all(-1)]
            raise NonFiniteError(
                f"reference: the log-probs of {listed(located(loader.dataset, bad))} are not finite; look at the "
                "reference's weights"
            )
        store.logps[ids[valid]] = logps[valid]
        if (now := time.monotonic()) - saved >= _SAVE_EVERY_S:
            saved = now
            notices.guard()
            try:
                store.save()
            except StorageError as error:  # the others are on their way into the next batch: reported at the end
                failure = error
            notify(
                f"reference: {total - store.missing():,} of the {total:,} {store.name} pairs to read scored, "
                f"{now - began:,.0f} s"
            )
    notices.guard()
    with processes.agreement(f"reference {store.name}"):
        store.save()
    if failure is not None:
        notify(f"{failure} (for a while; the last attempt succeeded)")
    scored = f"{total:,} of {len(loader.dataset):,} {store.name} pairs scored in {time.monotonic() - began:,.0f} s"
    notify(f"reference: {scored}{_unread(loader, total)}")


def _unread(loader: Loader, read: int) -> str:
    """Why the other pairs of the data are not scored; empty if there are none."""
    counts = fit_counts(loader.fitted)
    reasons = {
        "over-long": counts["overlong"]["dropped"],
        "with equal responses": counts["left_out"]["equal_pairs"],
        "dropped by batch.keep_together": counts["left_out"]["keep_together"],
        "not reached by its last step": len(loader.fitted.index) - read,
    }
    others = ", ".join(f"{count:,} {why}" for why, count in reasons.items() if count)
    return f"; the run does not read the others: {others}" if others else ""


def _saved_at_stop(store: ReferenceStore, batches: Iterator[LoadedBatch]) -> Iterator[LoadedBatch]:
    """The batches; if a notice ends them, what is scored by then is saved."""
    try:
        yield from batches
    except Stop:
        with processes.agreement(f"reference {store.name}"):
            store.save()
        raise


def _missing_batches(store: ReferenceStore, notices: Notices) -> Iterator[LoadedBatch]:
    """Of each epoch of the run the batches from the first to the last that hold a wanted example without log-probs."""
    loader: Loader = store.loader
    is_read = np.zeros(len(loader.dataset), bool)
    is_read[loader.examples_read()] = True
    for epoch in range(loader.epochs):
        steps = []
        for step in range(loader.steps(epoch)):
            ids = loader.example_ids(Position(epoch, step * loader.unit))
            if (store.is_missing(ids) & is_read[ids]).any():
                steps.append(step)
        if steps:
            start, count = Position(epoch, steps[0] * loader.unit), steps[-1] + 1 - steps[0]
            for loaded in loader.batches(start, count, wait=notices.wait):
                notices.boundary()
                yield loaded
        if not store.missing():
            return


def _to_host(tree: Any) -> Any:
    if jax.process_count() == 1:
        return jax.device_get(tree)
    from jax.experimental import multihost_utils

    return multihost_utils.process_allgather(tree, tiled=True)
