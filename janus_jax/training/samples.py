"""The hook that answers fixed prompts while a run trains. It reads the weights and changes nothing."""

import dataclasses
import re

import jax

from janus_jax.generation import placement
from janus_jax.generation.answers import Answer
from janus_jax.generation.engine import Engine
from janus_jax.parallel import processes
from janus_jax.parallel.processes import memory_for
from janus_jax.storage import parts
from janus_jax.storage.bucket import BucketPath, Prefix, os_errors
from janus_jax.storage.local import near, write_bytes
from janus_jax.training import sample_text
from janus_jax.training.hooks import Due, Hook, Run, Step
from janus_jax.training.notices import Stop
from janus_jax.training.sample_memory import STEPS_PER_CALL
from janus_jax.training.sample_prompts import SamplePrompts
from janus_jax.training.sample_text import Answered

_FILE = re.compile(r"(\d+)\.jsonl")


@dataclasses.dataclass(frozen=True)
class Sample(Hook):
    """Answers the prompts of `samples` by the weights of a step, and writes them.

    It comes after `Save`: whatever happens meanwhile, the step is safe. Answers that a notice cuts off are made when
    the run resumes.
    """

    due: Due

    def at_start(self, run: Run) -> None:
        prompts = run.setup.samples
        if prompts is None:
            return
        _, idle = placement.generation_place(run.setup.model, placement.devices_of(run.state.params))
        for note in (*prompts.notes, *(f"samples: {note}" for note in idle)):
            run.print(f"note: {note}")
        with processes.agreement("samples"):
            written = _forget_later(run) if processes.is_main() else []
        known = processes.broadcast("samples", written)
        cut = self._wanted(run) and run.step not in known
        if cut if run.step else prompts.section.at_start:
            self._sample(run, prompts)

    def after_step(self, run: Run, step: Step) -> None:
        if run.setup.samples is not None and self._wanted(run):
            self._sample(run, run.setup.samples)

    def _wanted(self, run: Run) -> bool:
        """After a step."""
        return self.due(run.step) or run.stopped

    def _sample(self, run: Run, prompts: SamplePrompts) -> None:
        jax.block_until_ready(run.state)  # so that the time of steps is theirs, and their temporaries are gone
        advice = "lower samples.rows or samples.max_new_tokens"
        with run.phase("samples"), memory_for(f"samples of {prompts.rows} rows", advice):
            try:
                samples = _answers(run, prompts)
            except Stop as stop:
                raise stop.with_traceback(None) from None  # whose frames hold the copy of the weights
            run.notices.guard()
            if processes.is_main():
                _write(run, samples)
        run.metrics.restart_clock()


def _answers(run: Run, prompts: SamplePrompts) -> list[Answered]:
    """Answers by a copy of the weights, which is gone afterwards."""
    engine = Engine.live(
        run.setup.model,
        run.state.params,
        rows=prompts.rows,
        steps_per_call=STEPS_PER_CALL,
        stop_ids=prompts.written.stop_ids,
        tokenizer=prompts.written.tokenizer,
    )
    # `require_room` has checked the memory before the first step: a run that trains is not ended by an estimate.
    asked, session = prompts.asked, engine.session(checked=False)
    answers = [tuple(Answer() for _ in range(prompts.section.n)) for _ in asked]
    for number in sorted(range(len(asked)), key=lambda number: -len(asked[number].request.ids)):
        session.submit(number, asked[number].request)  # the longest first: the cache never grows
    while session.busy:
        run.notices.boundary()
        for event in session.step():
            answers[event.request][event.sample].add(event)
    return [Answered(one, texts) for one, texts in zip(asked, answers, strict=True)]


def _forget_later(run: Run) -> list[int]:
    """Removes the samples of steps that are made again; returns the steps that have some."""
    folder, names = run.dir.samples, parts.names(run.dir.samples)
    steps = {int(match[1]): name for name in names if (match := _FILE.fullmatch(name))}
    later = [name for step, name in steps.items() if step > run.step or not run.step]
    if isinstance(folder, BucketPath):
        prefix = Prefix(folder)
        prefix.delete([item for item in prefix.list() if item.name in later])
    else:
        for name in later:
            with os_errors(folder / name):
                (folder / name).unlink()
    return sorted(steps.keys() - {int(name.partition(".")[0]) for name in later})


def _write(run: Run, samples: list[Answered]) -> None:
    name, folder = f"{run.step}.jsonl", run.outputs.local.samples
    with os_errors(folder):
        folder.mkdir(parents=True, exist_ok=True)
    write_bytes(folder / name, sample_text.lines(samples, run.step))
    run.metrics.write("samples", run.step, sample_text.values(samples))
    run.metrics.texts(run.step, sample_text.markdown(samples), *sample_text.table(samples))
    for line in sample_text.digest(samples, near(str(run.dir.samples / name))):
        run.print(line)
