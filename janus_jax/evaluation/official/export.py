"""From an official tool's questions to the file of answers that it reads: `janus bench export`."""

import dataclasses
import datetime
import json
import os
import time
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from janus_jax.checkpoint.stored_model import open_model
from janus_jax.errors import ConfigError, DataError, counted, named
from janus_jax.evaluation.bench.rows import digest
from janus_jax.evaluation.official import files
from janus_jax.evaluation.official.questions import Question
from janus_jax.evaluation.official.systems import ALLOWED_NAME, NAME, System
from janus_jax.evaluation.official.tool import Answered, Tool
from janus_jax.generation import memory
from janus_jax.generation.answers import answer
from janus_jax.generation.engine import Engine, require_language_model
from janus_jax.generation.journal import Journal, begin
from janus_jax.generation.opened import ignored_settings, open_engine, require_same_models
from janus_jax.generation.prompt_file import PromptRow
from janus_jax.generation.prompts import conversation, prompt_format
from janus_jax.generation.requests import Request, check
from janus_jax.generation.sampling import SamplingOptions
from janus_jax.generation.stopping import StoppingOptions
from janus_jax.parallel import processes
from janus_jax.parallel.same_everywhere import versions

_NO_ROOM = {"text": "", "finish_reason": "no room", "tokens": 0}


@dataclasses.dataclass(frozen=True)
class ExportOptions:
    """How questions are answered."""

    sampling: SamplingOptions
    """Its temperature counts only if `own_temperature` is false."""
    own_temperature: bool
    """Each question has the temperature of its tool, and of its category."""
    stopping: StoppingOptions
    seed: int = 0
    rows: int = 32
    """Answers that grow at the same time."""
    cache_dtype: str | None = None
    """As `Engine` has it."""
    reference: bool = False
    """Also write the reference answers that the questions have."""


@dataclasses.dataclass
class _Part:
    """The answers under one system message. Only process 0 has `settings` and the journal."""

    system: System
    name: str
    out: Path
    rows: list[PromptRow]
    """First turns."""
    settings: dict[str, Any]
    journal: Journal | None = None
    requests: list[Request] = dataclasses.field(default_factory=list)

    def answers(self, number: int, turns: int) -> list[dict[str, Any]]:
        """What the journal has of the answers to the first turns of a question."""
        assert self.journal is not None
        return [self.journal.done[number + turn * len(self.rows)]["answers"][0] for turn in range(turns)]


class Export:
    """Answers to be written. Several processes make it and call `write` alike; process 0 alone has the files.

    All but the weights is read and checked when it is made.

    Args:
        model: as `open_model`.
        read: gives the questions, in process 0 alone, and counts columns that are not read.
        out: the directory below which the tool looks for answers.
        systems: each gives a file of its own.
        name: what the tool calls the model; None: the last part of its path.
        template: of the model, if its files name none.
        tell: gets notes, and lines of progress.

    Raises:
        ConfigError: an output exists with other settings, the model is of the wrong kind, the cache does not fit, or
            processes differ.
        ConversionError: the model cannot be read, or lacks tokenizer or template.
        DataError: "FILE:ROW: ..." for a question that cannot be answered.
    """

    def __init__(
        self,
        tool: Tool,
        model: str,
        read: Callable[[Counter[str]], list[Question]],
        out: Path,
        systems: Sequence[System],
        options: ExportOptions,
        *,
        name: str | None = None,
        step: int | None = None,
        template: str | None = None,
        tell: Callable[[str], None],
    ):
        self._tool, self._options, self._out, self._tell = tool, options, out, tell
        self._engine: Engine | None = None
        self._longest = self._cramped = 0
        unread: Counter[str] = Counter()
        with processes.agreement("export"):
            self._questions = read(unread) if processes.is_main() else []
            self._model = open_model(model, step)
            require_language_model(self._model.config, self._model.path)
            self._written = prompt_format(self._model, template)
            name = name or default_name(model)
            if not NAME.fullmatch(name):
                raise ConfigError("--name", f"{name!r} cannot name a model in {tool.name}; allowed: {ALLOWED_NAME}")
            names = [name] if len(systems) == 1 else [f"{name}-{system.label}" for system in systems]
            self._parts = [self._part(*one) for one in zip(systems, names, strict=True)]
            if processes.is_main() and (file := self._reference_file()) is not None:
                files.require_same_text(*file)
        require_same_models(self._flat(names, systems), {"MODEL": (self._model, self._written)})
        self._share()
        self._note(unread)
        asked = [request for part in self._parts for request in part.requests]
        self._at_once = min(options.rows, max(len(part.requests) for part in self._parts))
        with processes.agreement("memory"):
            if asked:
                longest = Request([0] * self._longest, stopping=options.stopping)
                asked += [longest] if self._longest else []
                place, dtype = f"--rows {self._at_once}", options.cache_dtype
                memory.require_for(self._model.config, asked, self._at_once, place, cache_dtype=dtype)

    def write(self) -> list[str]:
        """Answers; goes on where it was stopped.

        Returns:
            What was written, in lines.

        Raises:
            ConfigError: another command writes the same file.
        """
        lines = []
        for part in self._parts:
            if part.requests:
                self._answer(part)
            with processes.agreement("output"):
                if processes.is_main() and part.requests:
                    lines += self._finish(part)
                elif processes.is_main():
                    files.remove_journal(part.out)
                    lines.append(f"{part.out} is written already")
        with processes.agreement("reference"):
            if processes.is_main() and (file := self._reference_file()) is not None:
                files.write_text(*file)
                lines.append(f"wrote {file[0]}")
        return lines

    def _part(self, system: System, name: str) -> _Part:
        """Checks all that is asked under a system message."""
        rows, ids = [], []
        for question in self._questions:
            row = PromptRow(tuple(conversation(question.turns[0], system.text)), {}, question.place)
            ids.append(self._ids(row.messages, question.place))
            rows.append(row)
            if len(question.turns) > 1:  # the second turn with a short answer, before there is one
                self._reserve(len(self._ids(_followed(row, "x", question), question.place)))
        part = _Part(system, name, self._tool.path(self._out, name), rows, self._settings(system, name, ids))
        if processes.is_main() and not files.is_made(part.out, part.settings):
            part.journal = Journal(part.out, part.settings)
            part.requests = [self._request(*one) for one in self._asked(ids, turn=1)]
        return part

    def _ids(self, messages: Sequence[dict[str, str]], place: str) -> list[int]:
        with named(place):
            ids = self._written.encode(messages)
        check(self._model.config, place, Request(ids, stopping=self._options.stopping))
        return ids

    def _reserve(self, length: int) -> None:
        """Notes how long the second turn may become."""
        longest = self._model.config.max_position_embeddings - 1
        wanted = length + self._options.stopping.max_new_tokens
        self._cramped += wanted > longest
        self._longest = max(self._longest, min(wanted, longest))

    def _asked(self, ids: Sequence[list[int] | None], *, turn: int) -> list[tuple[Any, float, str]]:
        """Of each question: ids or None, temperature, name for random numbers."""
        return [
            (own, self._temperature(question), f"{question.id}/{turn}")
            for own, question in zip(ids, self._questions, strict=True)
        ]

    def _temperature(self, question: Question) -> float:
        options = self._options
        if not options.own_temperature:
            return options.sampling.temperature
        return self._tool.temperature_of(question.category)

    def _request(self, ids: Sequence[int], temperature: float, name: str) -> Request:
        options = self._options
        sampling = dataclasses.replace(options.sampling, temperature=temperature)
        return Request(ids, 1, options.stopping, sampling, options.seed, name=name)

    def _share(self) -> None:
        """Gives all processes the questions that are left, as ids."""
        plan = [
            [[(list(one.ids), one.sampling.temperature, one.name) for one in part.requests] for part in self._parts],
            self._longest,
        ]
        requests, self._longest = processes.broadcast_large("questions", plan)
        for part, own in zip(self._parts, requests, strict=True):
            part.requests = [self._request(*one) for one in own]

    def _answer(self, part: _Part) -> None:
        count, tell = len(part.requests), self._tell
        with processes.agreement("directory"):
            if processes.is_main():
                files.make_directory(part.out)
        left = begin(part.journal, count * self._tool.turns, "turns are answered", tell)
        if left and self._engine is None:
            self._engine = self._open()
            for note in self._engine.notes:
                tell(f"note: {note}")
        self._generate(part, part.rows, part.requests, [number for number in left if number < count])
        if later := [number for number in left if number >= count]:
            rows, requests, no_room = self._second_turns(part)
            if part.journal is not None:
                for number in no_room.intersection(later):
                    part.journal.add(number, {"answers": [_NO_ROOM]})
            self._generate(part, rows, requests, [number for number in later if number not in no_room])

    def _open(self) -> Engine:
        dtype = self._options.cache_dtype
        return open_engine(self._model, self._written, rows=self._at_once, cache_dtype=dtype)

    def _generate(
        self, part: _Part, rows: Sequence[PromptRow], requests: Sequence[Request], left: Sequence[int]
    ) -> None:
        if left:
            assert self._engine is not None
            answer(self._engine, rows, requests, left, part.journal, log_probs=False, tell=self._tell)

    def _second_turns(self, part: _Part) -> tuple[list[PromptRow], list[Request], set[int]]:
        """Rows and requests of both turns, the second ones after the first; and which second turns cannot be asked,
        because they have no room or the template refuses them."""
        rows, ids = [], []
        for number, row in enumerate(part.rows):
            question, text = self._questions[number], part.answers(number, 1)[0]["text"]
            messages = _followed(row, text, question)
            rows.append(PromptRow(tuple(messages), {}, question.place))
            try:
                ids.append(self._ids(messages, question.place))
            except DataError:
                ids.append(None)
        asked = processes.broadcast_large("second turns", self._asked(ids, turn=2))
        no_room = {number + len(asked) for number, own in enumerate(asked) if own[0] is None}
        pairs = zip(asked, part.requests, strict=True)
        second = [first if own[0] is None else self._request(*own) for own, first in pairs]
        return [*part.rows, *rows], [*part.requests, *second], no_room

    def _finish(self, part: _Part) -> list[str]:
        """Writes the answers and how they were made. Returns what there is to say of them."""
        assert part.journal is not None
        turns, now, made, answered = self._tool.turns, time.time(), [], []
        for number, question in enumerate(self._questions):
            own = part.answers(number, turns)
            made += own
            texts = tuple(one["text"] for one in own)
            tokens = tuple(len(self._written.tokenizer.encode(text)) for text in texts)
            answered.append(Answered(question, texts, tokens, now))
        ends = Counter(one["finish_reason"] for one in made)
        facts = {
            "answers": len(made),
            "empty": sum(not one["text"].strip() for one in made),
            "cut": ends["length"],
            "no_room": ends["no room"],
            "mean_tokens": sum(one["tokens"] for one in made) / len(made),
        }
        meta = {
            "settings": part.settings,
            "answers": facts,
            "versions": versions(),
            "written": f"{datetime.datetime.fromtimestamp(now, datetime.UTC):%Y-%m-%dT%H:%M:%SZ}",
        }
        files.write_text(files.made_of(part.out), json.dumps(meta, indent=1) + "\n")
        files.write_text(part.out, self._tool.write(part.name, answered))
        part.journal.discard()
        return [f"wrote {part.out}: {counted(len(made), 'answer')} of {part.name}", *_notes(facts)]

    def _reference_file(self) -> tuple[Path, str] | None:
        """Path and text of the file of reference answers, if it is asked for."""
        if not self._options.reference:
            return None
        if self._tool.references is None:
            raise ConfigError("--reference", f"the questions of {self._tool.name} have none")
        path, text = self._tool.references
        records = [question.reference for question in self._questions if question.reference is not None]
        if not records:
            raise ConfigError("--reference", "no question has a reference answer")
        return self._out / path, text(records)

    def _settings(self, system: System, name: str, ids: Sequence[Sequence[int]]) -> dict[str, Any]:
        """What decides the answers."""
        options, chat = self._options, self._written.chat
        temperatures = {question.category: self._temperature(question) for question in self._questions}
        by_category = options.own_temperature and self._tool.temperatures
        return {
            "for": self._tool.name,
            "format": self._tool.release,
            "model": str(self._model.path),
            "step": self._model.step,
            "name": name,
            "system": system.text,
            "template": "the model's own" if chat is None else chat.template.name,
            **dataclasses.asdict(options.sampling),
            "temperature": temperatures if by_category else options.sampling.temperature,
            "max_new_tokens": options.stopping.max_new_tokens,
            "seed": options.seed,
            "cache_dtype": options.cache_dtype,
            "questions": len(self._questions),
            "questions_digest": digest([[one.id, one.turns, one.category, one.kept] for one in self._questions]),
            "prompts_digest": digest(ids),
        }

    def _flat(self, names: Sequence[str], systems: Sequence[System]) -> dict[str, Any]:
        """Option of the command -> value, which all processes have alike."""
        values = dataclasses.asdict(self._options)
        values |= values.pop("sampling") | values.pop("stopping")
        values |= {"for": self._tool.name, "name": names, "system": [system.text for system in systems]}
        return {f"--{name.replace('_', '-')}": value for name, value in values.items()}

    def _note(self, unread: Counter[str]) -> None:
        for column, count in unread.items():
            self._tell(f"note: {column!r} of {counted(count, 'question')} is not used")
        without = sum(question.reference is None for question in self._questions)
        if self._options.reference and without:
            self._tell(f"note: no reference answer to {counted(without, 'question')}, which that file leaves out")
        known = self._tool.temperatures
        others = Counter(one.category for one in self._questions if known and one.category not in known)
        for category, count in others.items() if self._options.own_temperature else ():
            what = f"category {category!r} of {counted(count, 'question')} is unknown to {self._tool.release}"
            self._tell(f"note: {what}; its temperature is {self._tool.temperature}, as there")
        if self._cramped:
            what = f"{counted(self._cramped, 'second turn')} may have no room in the model's longest text"
            self._tell(f"note: {what}, if the first answer is long; --max-new-tokens makes it shorter")
        if settings := ignored_settings(self._model, self._options.sampling):
            self._tell(f"note: the model's generation_config.json names {settings}; only the options count here")


def default_name(model: str) -> str:
    """The last part of what was given, not of the step or the hub's copy that it leads to."""
    return Path(os.path.abspath(model)).name


def _followed(row: PromptRow, answer: str, question: Question) -> list[dict[str, str]]:
    """The conversation of a second turn. fschat takes blanks off the ends of an answer too."""
    reply = {"role": "assistant", "content": answer.strip()}
    return [*row.messages, reply, {"role": "user", "content": question.turns[1]}]


def _notes(facts: dict[str, Any]) -> list[str]:
    """What there is to say of answers."""
    notes = []
    if facts["empty"]:
        notes.append(f"{facts['empty']:,} of them are empty; they stay, and a judge will count them as lost")
    if facts["no_room"]:
        notes.append(f"{facts['no_room']:,} second turns had no room after the first answer; they are empty")
    if facts["cut"]:
        notes.append(f"{facts['cut']:,} of them were cut at --max-new-tokens, or at the model's longest text")
    return [f"note: {note}" for note in notes]
