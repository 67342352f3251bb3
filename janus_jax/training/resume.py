"""Where a run begins, and what a checkpoint says of its run, so that only the same run goes on from it."""

import contextlib
import dataclasses
import functools
import hashlib
import json
from collections.abc import Callable, Iterator, Mapping
from typing import Any, ParamSpec, TypeVar

import jax
import numpy as np
from pydantic import ValidationError

from janus_jax import __version__
from janus_jax.checkpoint.damage import newer_metas, newest_good
from janus_jax.checkpoint.hf.facts import ModelFacts
from janus_jax.checkpoint.run_dir import AnyRunDir
from janus_jax.checkpoint.state import Checkpoints, note
from janus_jax.config.run import RunConfig
from janus_jax.data.epoch import PackedEpochs, Position
from janus_jax.data.from_config import describe
from janus_jax.errors import ConfigError, DamagedError
from janus_jax.parallel import processes
from janus_jax.storage.local import place
from janus_jax.training.course import Course, Extension, Past
from janus_jax.training.finite import NONE_SKIPPED, Skipped
from janus_jax.training.reference import Reference
from janus_jax.training.setup import Setup
from janus_jax.training.step import TrainState
from janus_jax.training.stopping import Stopping

_MAY_CHANGE = ("mesh", "sharding", "remat", "eval", "samples", "checkpoint", "export", "logging", "profile", "timeouts")
"""Sections that may change when a run is resumed: they do not decide what is computed."""


_P = ParamSpec("_P")
_T = TypeVar("_T")


@dataclasses.dataclass(frozen=True)
class Beginning:
    """The state that a process starts from."""

    state: TrainState
    position: Position
    resumed_from: int | None  # the checkpoint's step; None at the beginning of a run
    reference_step: int | None  # the step of the run that the reference comes from, when this run began
    reference_weights: str | None  # fingerprint of the reference, when this run began; None at the beginning
    unevaluated: bool = False  # a notice cut the evaluation of this step
    skipped: Skipped = NONE_SKIPPED

    @property
    def step(self) -> int:
        """Finished optimizer steps."""
        return self.resumed_from or 0


class SetAside(Exception):
    """The checkpoint to go on from was damaged and is set aside: the run begins again, from an older one."""


def from_a_good_step(train: Callable[_P, _T]) -> Callable[_P, _T]:
    """Calls `train` again each time that the checkpoint it would go on from turns out to be damaged.

    An older step may have other extensions, and so another schedule: all that is built from a checkpoint is built anew.
    """

    @functools.wraps(train)
    def tried(*args: _P.args, **kwargs: _P.kwargs) -> _T:
        while True:
            with contextlib.suppress(SetAside):
                return train(*args, **kwargs)

    return tried


def newest_checkpoint(run_dir: AnyRunDir) -> Past | None:
    """The checkpoint that the run goes on from, as process 0 sees it; None if it begins. Call it on every process.

    Raises:
        ConversionError: the run has checkpoints, and none is good.
    """
    newest: tuple[int, dict[str, Any], list[dict[str, Any]]] | None = None
    with processes.agreement("newest checkpoint"):
        if processes.is_main():
            checkpoints = place(run_dir.checkpoints)
            good = newest_good(checkpoints, note)
            newest = None if good is None else (*good, newer_metas(checkpoints, good[0]))
    if jax.distributed.is_initialized():  # otherwise no device is asked for yet
        newest = processes.broadcast("newest checkpoint", newest)
    return None if newest is None else Past.of_steps(*newest)


def begin(setup: Setup, checkpoints: Checkpoints) -> Beginning:
    """The state to train from. Collective: call it on every process.

    1. The newest checkpoint of the run directory, whatever `init` says. 2. Else the weights of `init.from`. 3. Else
    random weights. The optimizer of a new run starts at zero.

    Raises:
        ConfigError: the checkpoint is of a run with another configuration, model or data.
        ConversionError: checkpoint or weights cannot be read.
        SetAside: the arrays of the checkpoint are not what was written.
    """
    if setup.past is None:
        with processes.agreement("initial weights"):
            params = setup.initial_params(setup.config.params_dtype)
        return Beginning(setup.program.init(params), Position(), None, setup.reference_step, None)
    step, meta = setup.past.step, setup.past.meta
    require_same_run(setup, meta)
    abstract = setup.program.abstract_state()
    try:
        params, optimizer, data, _ = checkpoints.restore(step, params=abstract.params, optimizer=abstract.optimizer)
    except DamagedError as error:
        checkpoints.set_aside(step, error)
        raise SetAside(step) from error
    return Beginning(
        TrainState(params, optimizer),
        Position(epoch=data["epoch"], row=data["row"]),
        step,
        meta.get("reference_step"),
        meta.get("reference_weights"),
        bool(meta.get("unevaluated")) and setup.eval_loader is not None,
        Skipped(**meta.get("skipped", {})),
    )


def new_extension(setup: Setup) -> Extension | None:
    """The extension that this start makes; None if the newest checkpoint has them all."""
    if setup.past is None:
        return None
    recorded = Course.of_meta(setup.past.meta)
    known = 0 if recorded is None else len(recorded.extensions)
    return setup.course.extensions[-1] if len(setup.course.extensions) > known else None


def stopping_state(setup: Setup) -> Stopping | None:
    """How far the run is from stopping early; None without `eval.stop_after`. A run that stopped and is extended has
    all its evaluations again."""
    section, held_out, past = setup.config.eval, setup.eval_loader, setup.past
    if section.stop_after is None or held_out is None:
        return None
    state = Stopping.resumed(section, held_out.dataset.fingerprint, None if past is None else past.meta.get("stopping"))
    return dataclasses.replace(state, stale=0, stopped=False) if state.stopped and new_extension(setup) else state


def other_held_out(setup: Setup) -> str | None:
    """A sentence if the run had other held-out data so far, or may have had; None if not.

    Checkpoints of older versions have no `held_out`, but a configuration.
    """
    if setup.past is None or setup.eval_loader is None:
        return None
    if "held_out" not in setup.past.meta:
        return _other_held_out_keys(setup, setup.past)
    if setup.past.meta["held_out"] in (None, _held_out_splits(setup)):
        return None
    dataset = setup.eval_loader.dataset
    return (
        f"the held-out data {dataset.name}, split {dataset.split}, are others than up to step {setup.past.step}: "
        "losses from before do not compare with those from now on"
    )


def _other_held_out_keys(setup: Setup, past: Past) -> str | None:
    before, now = _with_defaults(past.meta["config"]), _stored_config(setup.config)
    if before["eval"].get("every_steps") is None:  # nothing was evaluated
        return None
    changes = [
        f"data.{key} was {_shown(before['data'].get(key))} and is {_shown(now['data'][key])}"
        for key in ("eval_dir", "eval_split")
        if before["data"].get(key) != now["data"][key]
    ]
    if not changes:
        return None
    return (
        f"{' and '.join(changes)}, and the checkpoint of step {past.step} does not record which held-out data it was "
        "evaluated on: if they are others, losses from before do not compare with those from now on"
    )


def _held_out_splits(setup: Setup) -> list[str] | None:
    if setup.eval_loader is None:
        return None
    return [part.split_fingerprint for part in setup.eval_loader.dataset.parts]


def step_meta(
    setup: Setup, reference: Reference, evaluation: dict[str, float] | None, stopping: Stopping | None
) -> dict[str, Any]:
    """What a step's item `meta` says of its run and its weights.

    Args:
        stopping: after this step.
        evaluation: the held-out means of these very weights, if there are any.
    """
    source, dataset, held_out = setup.source, setup.loader.dataset, setup.eval_loader
    reward = {}
    if evaluation is not None and held_out is not None:
        reward = setup.objective.reward_statistics(evaluation, len(held_out.fitted.index))
    facts = ModelFacts() if source is None else source.facts
    return {
        "format_version": 1,
        "janus_jax": __version__,
        "jax": jax.__version__,
        "model": dataclasses.asdict(setup.model),
        "config": _stored_config(setup.config),
        "data_fingerprint": dataset.fingerprint,
        "read": examples_read(setup.loader),
        "tokenizer": dataset.parts[0].manifest.tokenizer,
        "reference_step": reference.step,
        "reference_weights": reference.weights,
        "template": dataset.parts[0].manifest.template,
        "data": [describe(part) for part in dataset.parts],
        "facts": dataclasses.asdict(facts.after_training(reward)),
        "course": dataclasses.asdict(setup.course),
        "stopping": None if stopping is None else dataclasses.asdict(stopping),
        "held_out": _held_out_splits(setup),
        "evaluation": evaluation,
    }


@functools.lru_cache(maxsize=1)  # every save asks, and the first epoch may have to be packed anew
def examples_read(epochs: PackedEpochs) -> dict[str, Any]:
    """Which examples of the data a run reads, and in which batches.

    The data's own fingerprint cannot tell: lengths, settings and rules of this package decide which of its examples are
    read and where. It is the same on every mesh.

    Returns:
        `examples`, their number; the counts of `Outcome`; `fingerprint`, a sha256 over the numbers and lengths of the
        examples and over those in each batch of the first epoch.
    """
    digest = hashlib.sha256()
    for array in (epochs.fitted.index, epochs.fitted.lengths):
        digest.update(np.ascontiguousarray(array, np.int64).tobytes())
    for step in range(epochs.steps(0)):
        digest.update(np.sort(epochs.example_ids(Position(0, step * epochs.unit))).astype(np.int64).tobytes() + b"|")
    return {"examples": len(epochs.fitted.index), **epochs.fitted.counts, "fingerprint": digest.hexdigest()}


def require_same_config(config: RunConfig, meta: Mapping[str, Any]) -> None:
    """Refuses to go on from a checkpoint of another configuration. Directories may have moved, and `course_of` decides
    about another length.

    Raises:
        ConfigError: names each key that differs, with both values.
    """
    saved, now = (_comparable(values) for values in (_with_defaults(meta["config"]), _stored_config(config)))
    differences = [
        f"{key} = {_shown(before)}, not {_shown(after)}"
        for section in now
        if section not in _MAY_CHANGE
        for key, before, after in _differences(section, saved.get(section), now[section])
    ]
    if differences:
        advice = "to train its weights on with other settings, choose another run.dir and set model=null "
        advice += f"init.from={config.run.dir}"
        if saved["model"] and now["model"] and saved["model"] != now["model"]:  # init.from would bring the old model
            advice = "its weights are of that model; put model back as it was, or choose another run.dir to begin anew"
        raise ConfigError(
            f"run.dir={config.run.dir}: holds a run with {'; '.join(differences)} as this config says; {advice}"
        )


def require_same_run(setup: Setup, meta: Mapping[str, Any]) -> None:
    """Refuses to go on from a checkpoint of another model or other data, which are known by their contents, or that
    read other rows of the data.

    Raises:
        ConfigError: names what differs.
    """
    config = setup.config
    model = dataclasses.asdict(setup.model)  # of init.from's own config, which may have been edited since
    if differences := [f"{key[1:]} = {a}, not {b}" for key, a, b in _differences("", meta["model"], model)]:
        raise ConfigError(
            f"init.from={config.init.from_}: its model differs from the one that the run in run.dir={config.run.dir} "
            f"began with: {'; '.join(differences)}; put that model back, or choose another run.dir"
        )
    dataset = setup.loader.dataset
    if meta["data_fingerprint"] != dataset.fingerprint:
        raise ConfigError(
            f"run.dir={config.run.dir}: holds a run on other data than {dataset.name} has now "
            f"(fingerprint {meta['data_fingerprint'][:16]}, not {dataset.fingerprint[:16]}); "
            "put that data back, or choose another run.dir"
        )
    _require_same_examples(setup, meta)


def _require_same_examples(setup: Setup, meta: Mapping[str, Any]) -> None:
    """Refuses to go on with other examples or batches than those that the run has read so far.

    Checkpoints of older versions have no `read`. Those that have no `course` either did not leave out equal pairs.
    """
    config, name, now = setup.config, setup.loader.dataset.name, examples_read(setup.loader)
    before = meta.get("read")
    if before is None:
        if "course" in meta or not now["equal_pairs"]:
            return
        change = (
            "read pairs in which chosen and rejected have the same tokens, as older versions did; "
            f"{now['equal_pairs']:,} of {name} are left out now"
        )
    elif before["fingerprint"] == now["fingerprint"]:
        return
    else:
        counts = [
            f"{key} {before.get(key)}, not {count}"
            for key, count in now.items()
            if key != "fingerprint" and before.get(key) != count
        ]
        change = f"read other examples of {name}, or in other batches, than this version does"
        change += f" ({'; '.join(counts)})" if counts else ""
    raise ConfigError(
        f"run.dir={config.run.dir}: holds a run that {change}; to train its weights on, choose another run.dir and set "
        f"model=null init.from={config.run.dir}"
    )


def _shown(value: Any) -> str:
    """A value as a configuration file writes it; a section without its unset keys."""
    if isinstance(value, dict):
        return "{" + ", ".join(f"{key}: {_shown(part)}" for key, part in value.items() if part is not None) + "}"
    return json.dumps(value) if value is None or isinstance(value, bool) else str(value)


def _stored_config(config: RunConfig) -> dict[str, Any]:
    return config.model_dump(mode="json", by_alias=True)


def _with_defaults(stored: dict[str, Any]) -> dict[str, Any]:
    """A stored configuration with the keys that an older version did not have yet, which did what the defaults do."""
    try:
        return _stored_config(RunConfig.model_validate(stored))
    except ValidationError:  # it has keys that are no more: they will differ
        return stored


def _comparable(config: dict[str, Any]) -> dict[str, Any]:
    """A stored configuration without its directories, held-out data and length; of a mixture the weights stay."""
    length = ("steps", "epochs", "extend")
    config = config | {"schedule": {k: v for k, v in config["schedule"].items() if k not in length}}
    faults = ("on_nonfinite", "max_skipped")  # a run that ended at such a step may go on without it
    config = config | {"optimizer": {k: v for k, v in config["optimizer"].items() if k not in faults}}
    config = config | {name: {k: v for k, v in config[name].items() if k != "dir"} for name in ("run", "reference")}
    mixture = config["data"].get("mixture")
    weights = None if mixture is None else [part["weight"] for part in mixture]
    data = {k: v for k, v in config["data"].items() if k not in ("dir", "eval_dir", "eval_split")}
    return config | {"data": data | {"mixture": weights}}


def _differences(name: str, before: Any, after: Any) -> Iterator[tuple[str, Any, Any]]:
    """Dotted keys whose values differ, with both values."""
    if isinstance(before, dict) and isinstance(after, dict):
        if before.get("name") != after.get("name"):  # another kind of thing: its other keys are others too
            yield f"{name}.name", before.get("name"), after.get("name")
            return
        for key in {**before, **after}:
            yield from _differences(f"{name}.{key}", before.get(key), after.get(key))
    elif before != after:
        yield name, before, after
