"""THE loop: every objective trains here."""

import contextlib
import dataclasses
import math
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

from janus_jax import __version__
from janus_jax.checkpoint.hf.facts import ModelFacts
from janus_jax.checkpoint.state import Checkpoints, committed_steps
from janus_jax.config.run import RunConfig, to_yaml
from janus_jax.data.epoch import Position
from janus_jax.data.from_config import describe, overlong_lines
from janus_jax.errors import ConfigError, NonFiniteError
from janus_jax.objectives import metric_values
from janus_jax.parallel import processes
from janus_jax.storage.local import absolute, atomic_directory, no_empty_leftovers, unwritable, write_json, write_whole
from janus_jax.storage.staging import naming_urls
from janus_jax.training import metrics
from janus_jax.training.export import export_step
from janus_jax.training.reference import Filled, Reference, check_stale, open_reference
from janus_jax.training.setup import Setup, prepare
from janus_jax.training.step import TrainState

_FREE = ("base", "mesh", "sharding", "remat", "eval", "checkpoint", "export", "logging", "profile")
"""Sections of a config that may change when a run is resumed: they do not decide what is computed."""


_OF_OTHERS = ("manifest.json", "config.json", "params")
"""What data sets, Hugging Face directories and converted directories hold, and runs do not."""


@dataclasses.dataclass(frozen=True)
class Summary:
    """How a run ended; also written to RUN/summary.json."""

    run_dir: str
    step: int
    total_steps: int
    resumed_from: int | None
    train: dict[str, float]  # the last train record
    evaluation: dict[str, float]  # the last held-out record, empty without evaluation
    examples: int  # in the training split after the over-long policy
    overlong: dict[str, int]
    seconds: float
    tokens_per_s: float  # median over steps without compilation
    fill: float  # mean share of row slots that hold tokens
    export_dir: str | None


@naming_urls()
def train(
    config: RunConfig,
    options: processes.RuntimeOptions | None = None,
    *,
    until_step: int | None = None,
    writers: Sequence[metrics.Writer] | None = None,
) -> Summary:
    """Trains as the config says, from the newest checkpoint of the run directory if there is one.

    Args:
        config: the whole run.
        options: processes and simulated devices.
        until_step: save and stop after this step as if the run had been interrupted there.
        writers: extra receivers of metrics; None prints lines to the console.
    Raises:
        JanusError: bad input (2), non-finite loss (12), lost peer (13), storage (14).
    """
    processes.start(options or processes.RuntimeOptions())
    started = time.perf_counter()
    with processes.agreement("setup"):  # what follows would wait for ever for a process that found bad input
        run_dir = _local_run_dir(config)
        setup = prepare(config)
        directory = run_dir / "checkpoints"
        if not committed_steps(absolute(directory)):  # of a run that goes on, what else does not fit is said first
            check_stale(setup)
    with no_empty_leftovers(directory):  # weights are read after it is made, and may be bad
        checkpoints = Checkpoints(directory, keep=config.checkpoint.keep)
        with contextlib.closing(checkpoints), contextlib.closing(_Loop(setup, checkpoints, run_dir, writers)) as loop:
            with processes.memory_for(f"training on {len(jax.devices())} devices"):
                return loop.run(until_step, started)


def _local_run_dir(config: RunConfig) -> Path:
    if reason := unwritable(config.run.dir):
        raise ConfigError(f"run.dir={config.run.dir}: {reason}")
    path = Path(absolute(config.run.dir))
    if other := [name for name in _OF_OTHERS if (path / name).exists()]:
        raise ConfigError(f"run.dir={config.run.dir}: holds {other[0]}: a data set or a model, not a run")
    return path


def _differences(name: str, before: Any, after: Any) -> Iterator[tuple[str, Any, Any]]:
    """Dotted keys whose values differ, with both."""
    if isinstance(before, dict) and isinstance(after, dict):
        if before.get("name") != after.get("name"):  # another kind of thing: its other keys are others too
            yield f"{name}.name", before.get("name"), after.get("name")
            return
        for key in {**before, **after}:
            yield from _differences(f"{name}.{key}", before.get(key), after.get(key))
    elif before != after:
        yield name, before, after


class _Loop:
    def __init__(self, setup: Setup, checkpoints: Checkpoints, run_dir: Path, writers: Sequence[metrics.Writer] | None):
        self.setup, self.config, self.checkpoints, self.run_dir = setup, setup.config, checkpoints, run_dir
        self.resumed_from = checkpoints.latest_step()
        self._notify = self._console(writers)
        for line in overlong_lines(setup.loader.fitted):
            self._notify(line)
        self.state, self.position = self._start()
        self._notify(f"attention: {setup.program.attention}")
        self.step = self.resumed_from or 0
        self._reference: Reference = Filled(self._reference_weights)
        if self.step < setup.total_steps:  # a finished run that is started once more compares with nothing
            self._reference = open_reference(
                setup,
                setup.program.reference,
                initial=self.state.params if self.resumed_from is None else None,
                step=self._reference_step,
                known=self._reference_weights,
                notify=self._notify,
            )
        with processes.agreement("writers"):
            self.fan = metrics.Fan(self._writers(writers))
        # Of a run that was killed after its last checkpoint, what it wrote before is all there is to report.
        records = metrics.last_records(self.run_dir / "metrics.jsonl") if self.step == setup.total_steps else {}
        self.last_train: dict[str, float] = records.get("train", {})
        self.last_eval: dict[str, float] = records.get("eval", {})
        self._evaluated_at: int | None = None
        self._profiling = False

    def _start(self) -> tuple[TrainState, Position]:
        # 1. A run directory with a checkpoint is resumed, whatever init says.
        # 2. Otherwise weights come from init.from, 3. otherwise they are random; the optimizer starts at zero.
        if self.resumed_from is not None:
            meta = self.checkpoints.meta(self.resumed_from)
            self._check_same_run(meta)
            self._reference_step = meta.get("reference_step")
            self._reference_weights: str | None = meta.get("reference_weights")
            abstract = self.setup.program.abstract_state()
            params, optimizer, data, _ = self.checkpoints.restore(
                self.resumed_from, params=abstract.params, optimizer=abstract.optimizer
            )
            return TrainState(params, optimizer), Position(epoch=data["epoch"], row=data["row"])
        self._reference_step, self._reference_weights = self.setup.reference_step, None
        params = self.setup.initial_params(self.config.params_dtype)
        return self.setup.program.init(params), Position()

    def _check_same_run(self, meta: dict[str, Any]) -> None:
        saved, now = meta["config"], self.config.model_dump(mode="json", by_alias=True)
        for place in (saved, now):  # directories may move: the data is known by its fingerprint
            place["run"] = {k: v for k, v in place["run"].items() if k != "dir"}
            parts = place["data"].get("mixture")
            shares = None if parts is None else [part["weight"] for part in parts]
            place["data"] = {k: v for k, v in place["data"].items() if k != "dir"} | {"mixture": shares}
            place["reference"] = {k: v for k, v in place["reference"].items() if k != "dir"}
        differing = [
            f"{name} = {before}, not {after}"
            for section in now
            if section not in _FREE
            for name, before, after in _differences(section, saved.get(section), now[section])
        ]
        if differing:
            raise ConfigError(
                f"run.dir={self.config.run.dir}: holds a run with {'; '.join(differing)} as this config says; choose "
                "another run.dir (init.from can take the weights over)"
            )
        model = dataclasses.asdict(self.setup.model)  # of init.from's own config, which may have been edited since
        if differing := [f"{name[1:]} = {a}, not {b}" for name, a, b in _differences("", meta["model"], model)]:
            raise ConfigError(
                f"init.from={self.config.init.from_}: the run in run.dir={self.config.run.dir} has a model with "
                f"{'; '.join(differing)} as is said there now; put that back, or choose another run.dir"
            )
        dataset = self.setup.loader.dataset
        if meta["data_fingerprint"] != dataset.fingerprint:
            raise ConfigError(
                f"run.dir={self.config.run.dir}: holds a run on other data than {dataset.name} has now "
                f"(fingerprint {meta['data_fingerprint'][:16]}, not {dataset.fingerprint[:16]}); "
                "put that data back, or choose another run.dir"
            )

    def _meta(self) -> dict[str, Any]:
        return {
            "format_version": 1,
            "janus_jax": __version__,
            "jax": jax.__version__,
            "model": dataclasses.asdict(self.setup.model),
            "config": self.config.model_dump(mode="json", by_alias=True),
            "data_fingerprint": self.setup.loader.dataset.fingerprint,
            "tokenizer": self.setup.loader.dataset.parts[0].manifest.tokenizer,
            "reference_step": self._reference_step,
            "reference_weights": self._reference.weights,
            "template": self.setup.loader.dataset.template().name,
            "data": [describe(part) for part in self.setup.loader.dataset.parts],
            "facts": self._facts().to_json(),
        }

    def _facts(self) -> ModelFacts:
        """What is known of the weights of this step. Token ids are those of the tokenizer that goes along."""
        source, held_out = self.setup.source, self.setup.eval_loader
        reward = {}
        if held_out is not None and self._evaluated_at == self.step:
            reward = self.setup.objective.reward_statistics(self.last_eval, len(held_out.fitted.index))
        return ModelFacts(reward=reward, base_model=None if source is None else source.facts.base_model)

    def _writers(self, extra: Sequence[metrics.Writer] | None) -> list[metrics.Writer]:
        if not processes.is_main():
            return []
        self.run_dir.mkdir(parents=True, exist_ok=True)
        write_whole(self.run_dir / "config.yaml", to_yaml(self.config))
        if not (self.run_dir / "tokenizer").exists():  # with it the run can be exported after the data is gone
            with atomic_directory(self.run_dir / "tokenizer") as directory:
                self.setup.loader.dataset.tokenizer().save(directory)
        found: list[metrics.Writer] = [metrics.JsonLines(self.run_dir / "metrics.jsonl", self.step)]
        if self.config.logging.tensorboard:
            found.append(metrics.TensorBoard(self.run_dir / "tensorboard", self.step))
        if self.config.logging.wandb:
            found.append(metrics.Wandb(self.run_dir, self.config.model_dump(mode="json", by_alias=True)))
        return found + (list(extra) if extra is not None else [metrics.Console(self.setup.total_steps, self.step)])

    def run(self, until_step: int | None, started: float) -> Summary:
        setup, config = self.setup, self.config
        stop = setup.total_steps if until_step is None else min(setup.total_steps, until_step)
        rates: list[float] = []
        fills: list[float] = []
        batches = setup.loader.batches(self.position, max(0, stop - self.step))
        with contextlib.closing(batches):
            while self.step < stop:
                begun = time.perf_counter()
                self._profile()
                loaded = next(batches)
                waited = time.perf_counter() - begun
                first = not fills  # this step compiles: its time says nothing
                self.state, scalars, numbers = setup.program.train(self.state, self._reference.fill(loaded.batch))
                self.step += 1
                self.position = loaded.next_position
                self.fan.count(loaded.tokens, waited)
                fills.append(loaded.fill)
                evaluate = setup.eval_loader is not None and self._due(config.eval.every_steps, setup.total_steps)
                save = self._due(config.checkpoint.every_steps, stop)
                if self._due(config.logging.every_steps, stop):
                    epochs = setup.loader.epochs_before(loaded.position)
                    plan = {"epoch": epochs, "fill": loaded.fill, "tokens": loaded.tokens}
                    rates += self._log(scalars, numbers, plan, timed=not first)
                elif evaluate or save:  # weights that are not finite must not push good ones out
                    self._require_finite(scalars)
                if first:
                    jax.block_until_ready(scalars)
                    self.fan.restart()
                if evaluate:
                    self.last_eval, self._evaluated_at = self._evaluation(), self.step
                    self.fan.write("eval", self.step, self.last_eval)
                    self.fan.restart()
                if save:
                    self._save()
        self._profile()
        self.checkpoints.wait()
        export = None
        if self.step == setup.total_steps and config.export.hf:
            export = export_step(self.run_dir, setup, self.step, self.state.params, self._notify)
        summary = Summary(
            run_dir=str(self.run_dir),
            step=self.step,
            total_steps=setup.total_steps,
            resumed_from=self.resumed_from,
            train=self.last_train,
            evaluation=self.last_eval,
            examples=len(setup.loader.fitted.index),
            overlong={what: getattr(setup.loader.fitted, what) for what in ("dropped", "truncated", "zeroed")},
            seconds=time.perf_counter() - started,
            tokens_per_s=float(np.median(rates)) if rates else math.nan,
            fill=float(np.mean(fills)) if fills else math.nan,
            export_dir=None if export is None else str(export),
        )
        path = self.run_dir / "summary.json"
        if processes.is_main() and (fills or not path.exists()):  # a finished run started once more did nothing
            write_json(path, dataclasses.asdict(summary))
        return summary

    def _due(self, every: int | None, last: int) -> bool:
        return self.step == last or (every is not None and self.step % every == 0)

    @staticmethod
    def _console(writers: Sequence[metrics.Writer] | None) -> Callable[[str], None]:
        """Lines on the console, where the numbers go there too."""
        return print if writers is None and processes.is_main() else lambda text: None

    def _require_finite(self, scalars: dict[str, jax.Array]) -> dict[str, float]:
        values = {name: float(value) for name, value in scalars.items()}
        for name, value in values.items():
            if not math.isfinite(value):
                self.checkpoints.wait()
                raise NonFiniteError(
                    f"step {self.step}: {name} is {value}; the newest checkpoint is of step "
                    f"{self.checkpoints.latest_step()}; lower schedule.learning_rate or look at the data of this step"
                )
        return values

    def _log(self, scalars: dict[str, jax.Array], numbers: Any, plan: dict[str, float], *, timed: bool) -> list[float]:
        """Writes a train record; returns its tokens/s, if it has any."""
        values = {**metric_values(numbers, self.setup.objective), **self._require_finite(scalars)}
        rate = float(self.setup.schedule(self.step - 1))
        self.last_train = {**values, "learning_rate": rate, **plan}
        return self.fan.train(self.step, self.last_train, timed=timed)

    def _evaluation(self) -> dict[str, float]:
        """Every held-out example once; totals and counts add up, so batch size and hosts change nothing."""
        loader = self.setup.eval_loader
        assert loader is not None
        totals: dict[str, np.ndarray] = {}
        for number, loaded in enumerate(loader.epoch()):
            batch = self._reference.fill(loaded.batch, held_out=number)
            found = jax.device_get(self.setup.program.evaluate(self.state.params, batch))
            for name, pair in found.items():
                totals[name] = totals.get(name, np.zeros(2)) + np.asarray(pair, np.float64)
        return metric_values(totals, self.setup.objective)

    def _save(self) -> None:
        data = {"epoch": self.position.epoch, "row": self.position.row}
        self.checkpoints.save(
            self.step, params=self.state.params, optimizer=self.state.optimizer, data=data, meta=self._meta()
        )
        self.fan.restart()

    def _profile(self) -> None:
        """Starts and stops the xprof trace of `profile.steps` = [first, last], counted from 1."""
        if self.config.profile.steps is None:
            return
        first, last = self.config.profile.steps
        upcoming = self.step + 1
        if not self._profiling and first <= upcoming <= last and self.step < self.setup.total_steps:
            jax.profiler.start_trace(str(self.run_dir / "profile"))
            self._profiling = True
        elif self._profiling and (upcoming > last or self.step == self.setup.total_steps):
            jax.block_until_ready(self.state)
            jax.profiler.stop_trace()
            self._profiling = False

    def close(self) -> None:
        self.fan.close()
