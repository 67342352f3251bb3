"""`janus data synthesize`: which steps are to be made."""

import contextlib
import dataclasses
import tempfile
import time
from collections.abc import Callable, Container, Mapping, Sequence
from pathlib import Path
from typing import Any

from janus_jax.data.build.beam.runner import Runner
from janus_jax.data.synthesize import augment, instructions, prompts, report, sets
from janus_jax.data.synthesize.collection import Collection
from janus_jax.data.synthesize.config import AskSection, SynthesisConfig
from janus_jax.data.synthesize.endpoints import Endpoints
from janus_jax.data.synthesize.files import Lock, StepDirectory, changed_settings, digest_of, summary
from janus_jax.data.synthesize.stage import Planned, Stage
from janus_jax.data.synthesize.texts import Responses, Rubrics, Systems
from janus_jax.errors import ConfigError, DataError, StorageError, counted
from janus_jax.storage.endpoint import Endpoint
from janus_jax.storage.endpoint_requests import BudgetError


@dataclasses.dataclass(frozen=True)
class Step:
    name: str
    inputs: tuple[str, ...]
    settings: Callable[[Stage], dict[str, Any]]
    run: Callable[[Stage], None]
    estimate: Callable[[Stage], None] = lambda stage: None
    section: str = ""
    """Of the configuration, which says how it asks; empty: it asks nothing."""

    def asks(self, config: SynthesisConfig) -> bool:
        """Whether it may ask a model. The hierarchy of a seed that grows no further asks for missing descriptions."""
        grows = config.hierarchy.subdimensions or config.hierarchy.preferences
        return bool(self.section and {"hierarchy": grows, "rubrics": config.bench.instructions}.get(self.name, True))


def _step(made: Any, section: str = "") -> Step:
    return Step(made.name, made.inputs, made.settings, made.run, made.estimate, section)


STEPS = {  # what may be wrong with sources is found before anything is paid for
    step.name: step
    for step in (
        Step("instructions", (), instructions.settings, instructions.run),
        Step("hierarchy", (), augment.settings, augment.run, augment.estimate, "hierarchy"),
        Step("sets", sets.INPUTS, sets.settings, sets.run),
        _step(Systems(), "systems"),
        _step(Responses(), "responses"),
        _step(Rubrics(), "bench"),
        _step(Collection()),
    )
}
UNLIMITED = ("instructions", "hierarchy", "sets")


class Synthesis:
    """All steps of one configuration.

    Args:
        limit: only so many instructions are asked about, always the same ones; a later call may take more.
        batch: write requests into files for a batch API in place of sending them.
        runner, processes: of `Stage`.
        tell: gets lines of notes and progress.
    """

    def __init__(
        self,
        config: SynthesisConfig,
        *,
        limit: int | None = None,
        batch: bool = False,
        runner: Runner | None = None,
        processes: int = 1,
        tell: Callable[[str], None] = lambda line: None,
    ):
        prompts.require_known(config.prompts)
        if runner is not None:
            runner.check([source.path for source in config.instructions.sources])
        self._beam = {"runner": runner, "processes": processes}
        self.config, self.limit, self._tell = config, limit, tell
        self.waits = ""
        self.out = Path(config.out).expanduser()
        self.directories = {name: StepDirectory(self.out, name) for name in STEPS}
        sections = {name: getattr(config, step.section) for name, step in STEPS.items() if step.section}
        self._endpoints = Endpoints(config, self.directories, sections, batch=batch, tell=tell)
        steps = [step for step in STEPS.values() if step.name == "hierarchy" or step.asks(config)]
        keys = ", ".join(f"{step.section}.endpoint" for step in steps)
        for name in sorted(config.endpoints.keys() - {sections[step.name].endpoint for step in steps}):
            tell(f"note: endpoints.{name}: no step uses it; name it in one of {keys}, or remove it")
        for name, section in (("system", "systems"), ("rubric", "bench")):
            number, asks = getattr(config, section).examples, section == "systems" or config.bench.instructions
            if number and asks and not prompts.read_prompt(name, config.prompts).shows_examples:
                tell(f"note: {config.prompts}/{name}.txt has no {{examples}}: {section}.examples = {number} shows none")

    def run(self, only: str | None = None, answers: Sequence[Path] = ()) -> bool:
        """Makes the steps that are not made yet, or one of them. False: the step `waits` waits for answers of a batch
        API.

        Args:
            only: this step; those before it must be made.
            answers: files of a batch API, for `only`.

        Raises:
            ConfigError: a step before `only` is not made; the budget does not suffice; a key or package is missing,
                before anything is written.
            HeldError: another process works here.
            DataError: the collection has no row. The report is written, and says what was left out.
            StorageError: it has none, and some requests have no answer yet.
            JanusError: what a step raises. What was paid for is kept, and the next call goes on.
        """
        for step in STEPS.values():
            if only in (None, step.name) and step.asks(self.config) and not self._is_done(step):
                self._endpoints.require(getattr(self.config, step.section))
        with Lock(self.out):
            if answers:
                self._take(STEPS[str(only)], answers)
            for step in STEPS.values():
                if only in (None, step.name):
                    if only is not None:
                        self._require_inputs(step)
                    if not self._make(step):
                        return False
            if only is None:
                report.write(self.out, self.config, self.directories, self._endpoints.by_step())
                self._tell(f"wrote {self.out / 'report.html'}")
            if only in (None, "collection") and not self.directories["collection"].facts()["counts"].get("rows"):
                self._require_answers()
                why = "no instruction has all its responses, so no file is left; dropped.jsonl of each step says why"
                raise DataError("collection", why)
        return True

    def estimate(
        self,
        only: str | None = None,
        tell: Callable[[str], None] = lambda line: None,
        refused: Callable[[ConfigError], None] = lambda error: None,
    ) -> list[Planned]:
        """What each step that is not made yet would ask for. Nothing is written to the output directory, and nobody is
        asked.

        Args:
            tell: gets a line on what the sources of instructions drop.
            refused: gets what the run would raise, because of files that are there, when it comes to a step.
        """
        planned, unfinished = [], set[str]()
        with tempfile.TemporaryDirectory() as scratch:
            directories = dict(self.directories)
            for step in STEPS.values():
                own = {step.name: StepDirectory(Path(scratch), step.name)}
                stage = self._stage(step, {**directories, **own}, scratch=Path(scratch), unfinished=unfinished)
                is_current = all(directories[one].path.is_relative_to(self.out) for one in step.inputs)
                if is_current and self._is_done(step):
                    if step.name == instructions.NAME:
                        tell(summary(step.name, self.directories[step.name].facts()))
                    continue
                if only in (None, step.name):
                    with contextlib.closing(stage):
                        step.estimate(stage)
                    planned.append(stage.planned)
                    try:
                        self._require_unedited(step.name)
                        if stage.planned.requests or stage.planned.in_journal:
                            self._endpoints.require_none_waits(step.name)
                    except ConfigError as error:
                        refused(error)
                is_asked = only in (None, step.name) and step.section and step.name not in UNLIMITED
                if is_asked:
                    stage.writer.finish()  # what the answers of the journal make
                if not is_asked or stage.planned.requests:
                    unfinished.add(step.name)
                if step.name in UNLIMITED or is_asked or not (is_current and self._is_valid(step)):
                    directories[step.name] = StepDirectory(Path(scratch), step.name)
                if step.name in UNLIMITED:
                    stage = self._stage(step, directories, scratch=Path(scratch))
                    augment.seed_alone(stage) if step.name == "hierarchy" else step.run(stage)
                    value = stage.writer.finish()
                    if step.name == instructions.NAME:
                        tell(summary(step.name, value))
                if only == step.name:
                    break
        return planned

    def spent(self) -> tuple[int, float | None]:
        """Tokens and money of all steps; no money without prices."""
        return self._endpoints.spent()

    def _stage(
        self,
        step: Step,
        directories: Mapping[str, StepDirectory],
        *,
        scratch: Path | None = None,
        unfinished: Container[str] = (),
    ) -> Stage:
        def opened(section: AskSection, directory: StepDirectory) -> Endpoint:
            return self._endpoints.open(directory) if scratch is None else self._endpoints.answered(directory, scratch)

        limit = None if step.name in UNLIMITED else self.limit
        more = {"tell": self._tell, "limit": limit, "dry": scratch is not None, **self._beam}
        more |= {"unfinished": unfinished, "earlier": self.directories[step.name]}
        return Stage(self.config, dict(directories), step.name, opened=opened, **more)

    def _asked_for(self, step: Step) -> dict[str, Any]:
        """What decides the rows of a step, with digests of the rows that it reads."""
        inputs = {name: self.directories[name].digest() for name in step.inputs}
        return {"settings": step.settings(self._stage(step, self.directories)), "inputs": inputs}

    def _is_done(self, step: Step) -> bool:
        facts = self.directories[step.name].facts()
        if not facts or facts.get("unanswered") or not all(self.directories[one].facts() for one in step.inputs):
            return False
        had, wanted = facts.get("limit"), None if step.name in UNLIMITED else self.limit
        if had is not None and (wanted is None or wanted > had):
            return False
        return self._is_valid(step)

    def _is_valid(self, step: Step) -> bool:
        """Whether the rows that a step has, if they are not all, are those that it would make."""
        return self.directories[step.name].facts().get("asked") == digest_of(self._asked_for(step))

    def _require_answers(self) -> None:
        for name, directory in self.directories.items():
            if count := directory.facts().get("unanswered"):
                what = f"no answer to {counted(count, 'request')} ({directory.unanswered()}); start again"
                raise StorageError(name, f"endpoints.{getattr(self.config, STEPS[name].section).endpoint}", what)

    def unmade_before(self, name: str) -> list[str]:
        """The steps that one needs, itself or through others, and that are to be made before it, in order."""
        needed = set(STEPS[name].inputs)
        for step in reversed(STEPS.values()):
            needed |= set(step.inputs) if step.name in needed else set()
        return [one for one in STEPS if one in needed and not self._is_usable(one)]

    def _is_usable(self, name: str) -> bool:
        """Whether `--step` of a later step takes its rows."""
        return self._is_done(STEPS[name]) or bool(self.directories[name].facts().get("unanswered"))

    def _require_inputs(self, step: Step) -> None:
        for name in step.inputs:
            if not self._is_usable(name):
                state = "has changed" if self.directories[name].facts() else "is not made"
                what = f"the step {name}, which it needs, {state}; run --step {name} first"
                raise ConfigError(f"--step {step.name}", what)

    def _make(self, step: Step) -> bool:
        directory = self.directories[step.name]
        if self._is_done(step):
            if directory.is_edited():
                self._tell(f"note: {directory.path / 'rows.jsonl'} was edited; it is used as it is")
            return True
        self._require_unedited(step.name)
        asked, began = self._asked_for(step), time.monotonic()
        if changed := changed_settings(directory.facts(), asked):
            kept = "requests that did not are not sent again" if step.asks(self.config) else "it asks no model"
            self._tell(f"note: {step.name} is made again: {changed} changed; {kept}")
        stage = self._stage(step, self.directories)
        try:
            try:
                step.run(stage)
            except BaseException:
                stage.writer.discard()
                raise
            finally:
                stage.close()
        except BudgetError as error:
            self._tell_of_batches(step, stage)
            raise self._endpoints.poor(step.name, error) from error
        if stage.waiting:
            self.waits = step.name
            stage.writer.discard()
            self._tell_of_batches(step, stage)
            return False
        value = stage.writer.finish(
            asked=digest_of(asked),
            **asked,
            limit=stage.limit,
            unanswered=stage.unanswered,
            usage=stage.usage,
            notes=stage.notes,
            time=int(time.time()),
            seconds=round(time.monotonic() - began, 1),
        )
        self._tell(summary(step.name, value))
        return True

    def _require_unedited(self, name: str) -> None:
        """Refuses to write over rows that a person edited."""
        if self.directories[name].is_edited():
            path = self.directories[name].path / "rows.jsonl"
            raise ConfigError(f"{path}: was edited, and the step would be made again; move it away first")

    def _tell_of_batches(self, step: Step, stage: Stage) -> None:
        batch, (waits, written) = self.directories[step.name].batch, stage.batch_files
        if not waits:
            return
        for path in written:
            self._tell(f"wrote {path}")
        send = (
            f"send {', '.join(path.name for path in written)} to the batch API, then" if written else "when they come,"
        )
        run = f"run --batch --step {step.name} --answers FILE"
        where = ", ".join(f"{number:,} of {name}" for name, number in waits.items())
        several = f" ({where})" if len(waits) > 1 else ""
        self._tell(f"{step.name}: {counted(sum(waits.values()), 'answer')} to come{several}; {send} {run}")
        if older := sorted(waits.keys() - {path.name for path in written}):
            self._tell(f"already written, waiting for answers: {', '.join(str(batch / name) for name in older)}")

    def _take(self, step: Step, paths: Sequence[Path]) -> None:
        """Takes the answers of a batch API.

        Raises:
            DataError: a file has none, or none of this step; FILE:LINE is no answer. None was taken, of any file.
        """
        with self._endpoints.files(step.name) as endpoint:
            for path in paths:  # all files are read before an answer counts
                number, known = endpoint.known(path)
                if not known:
                    what = f"none of its {number:,} answers is to a request in {endpoint.directory}"
                    raise DataError(f"--answers {path}", what if number else "is empty")
            for path in paths:
                counts = endpoint.take(path)
                numbers = (f"{number:,} {name.replace('_', ' ')}" for name, number in counts.items())
                self._tell(f"{path}: {', '.join(numbers)}")
            for name, number in endpoint.missing().items():
                self._tell(f"{endpoint.directory / name}: {counted(number, 'request')} without an answer")
