"""The first step: instructions of any source that a build reads, filtered, each once, without system messages."""

import dataclasses
import itertools
import re
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from janus_jax.data.build.published import published_record
from janus_jax.data.build.readers import raw_records
from janus_jax.data.build.sources import find_splits
from janus_jax.data.columns import Columns, RecordError, alike, columns_of, filled, optional_text, text, without
from janus_jax.data.messages import is_messages, read_conversation
from janus_jax.data.notes import CONTROL
from janus_jax.data.schema import ALIASES, OTHER_NAMES, name_of
from janus_jax.data.synthesize import gates
from janus_jax.data.synthesize.config import InstructionsSection, SourceSection
from janus_jax.data.synthesize.files import digest_of
from janus_jax.data.synthesize.language import is_english
from janus_jax.data.synthesize.near import Contamination, NearDuplicates, tokens
from janus_jax.data.synthesize.stage import Stage
from janus_jax.errors import DataError

NAME, INPUTS = "instructions", ()
_TURN = re.compile(r"\n\s*(Human|Assistant):[ ]?")
_SYSTEM_BLOCK = re.compile(
    r"<<SYS>>.*?<</SYS>>|<\|im_start\|>system\n.*?<\|im_end\|>|<\|system\|>.*?(?=<\|user\|>)", re.DOTALL
)
_USER_MARKS = re.compile(
    r"^\s*(?:<s>)?\s*\[INST\]|\[/INST\]\s*$|<\|im_start\|>(?:user|assistant)\n?|<\|im_end\|>|<\|(?:user|assistant)\|>\n?"
)

_SHOWN = 3
"""Records that an error names."""


class Instruction(NamedTuple):
    text: str
    main_source: str
    original_source: str
    has_system: bool
    """A system message was taken off."""
    has_marks: bool = False
    """Marks of a chat template around it were taken off."""


def settings(stage: Stage) -> dict[str, Any]:
    """Sources count by name, size and time of change of their files."""
    section = stage.config.instructions
    files = [
        [str(path), path.stat().st_size, path.stat().st_mtime_ns]
        for one in [*(source.path for source in section.sources), *section.contaminated_by]
        for paths in find_splits(one).values()
        for path in paths
    ]
    return {"section": section.model_dump(), "language": stage.config.language, "files": files}


class Looked(NamedTuple):
    """A record that was looked at by itself."""

    place: str
    """FILE:RECORD."""
    instruction: Instruction | None
    own: str
    """Equal for instructions of the same words."""
    reason: str = ""
    """Why it is dropped."""
    detail: str = ""


@dataclasses.dataclass(frozen=True)
class Look:
    """What is decided about a record without any other."""

    section: InstructionsSection
    language: str | None
    contamination: Contamination

    def __call__(self, source: SourceSection, named: Iterable[tuple[str, Any]]) -> Iterator[Looked]:
        """Args: named: `records` of the source."""
        for place, raw in named:
            try:
                one = instruction_of(raw, source, first=self.section.several_turns == "first")
                self._check(one.text)
                yield Looked(place, one, digest_of(" ".join(tokens(one.text)) or one.text))
            except RecordError as error:
                yield Looked(place, None, "", error.reason, str(error))

    def _check(self, text: str) -> None:
        size = len(text)
        if size < self.section.min_chars:
            raise RecordError("too_short", f"{size} characters")
        if size > self.section.max_chars:
            raise RecordError("too_long", f"{size:,} characters")
        if markup := gates.MARKUP.search(text):
            raise RecordError("chat_markup", markup[0].strip())
        if control := CONTROL.search(text):
            raise RecordError("control_characters", f"U+{ord(control[0]):04X} at character {control.start() + 1:,}")
        if self.language == "en" and not is_english(text):
            raise RecordError("wrong_language", text[:40])
        if self.contamination.shared(text):
            raise RecordError("in_bench", text[:40])


def run(stage: Stage) -> None:
    section = stage.config.instructions
    benches = [one for source in section.contaminated_by for one in _prompts(source)]
    look = Look(section, stage.config.language, Contamination(benches, section.ngram))
    if stage.runner is None:
        here = (((one, False) for one in look(source, records(source))) for source in section.sources)
        _select(stage, here)
        return
    from janus_jax.data.synthesize.instructions_beam import looked_at

    with looked_at(stage.runner, stage.processes, stage.directory.path, look) as of_sources:
        _select(stage, of_sources)


def _select(stage: Stage, of_sources: Iterable[Iterable[tuple[Looked, bool]]]) -> None:
    """Writes the instructions that are neither equal nor near to one before.

    Args:
        of_sources: the records of each source, and whether no other record can be equal or near.
    """
    section, writer = stage.config.instructions, stage.writer
    near = None if section.alike is None else NearDuplicates(section.alike)
    numbers: list[str] = []  # ids by the numbers that `near` gives
    seen: set[str] = set()
    kept, first = 0, list[str]()
    for source, looked in zip(section.sources, of_sources, strict=True):
        read = 0
        for (place, one, own, reason, detail), is_alone in looked:
            read += 1
            if one is None:
                writer.drop(reason, place=place, detail=detail)
                if len(first) < _SHOWN:
                    first.append(f"{place}: {reason} ({detail})")
                continue
            if not is_alone:
                if own in seen:
                    writer.drop("duplicate", place=place, detail=f"of {own}")
                    continue
                if near is not None and (other := near.add(one.text)) is not None:
                    writer.drop("near_duplicate", place=place, detail=f"of {numbers[other]}")
                    continue
                seen.add(own)
                numbers.append(own)
            kept += 1
            writer.counts["system_messages_taken_off"] += one.has_system
            if one.has_marks:
                writer.counts["chat_marks_taken_off"] += 1
            writer.add(
                {"id": own, "prompt": one.text, "main_source": one.main_source, "original_source": one.original_source}
                | {"place": place}
            )
        writer.counts["read"] += read
        if not read:
            raise DataError(source.path, "has no record" + (f" of split {source.split}" if source.split else ""))
    if not kept:  # none was kept, so that none is a duplicate: all were dropped by themselves
        reasons = ", ".join(f"{count} {reason}" for reason, count in writer.dropped.most_common())
        where = "" if stage.dry else f"; all are in {writer.keep_dropped()}"
        what = f"no instruction is left; dropped: {reasons}; the first: {', '.join(first)}{where}"
        raise DataError("instructions.sources", what)


def records(source: SourceSection) -> Iterator[tuple[str, Any]]:
    """FILE:RECORD and the raw value of each record of a source."""
    named = ((f"{path}:{number}", raw) for path in files_of(source) for number, raw in raw_records(path))
    return itertools.islice(named, source.first)


def files_of(source: SourceSection) -> list[Path]:
    """The files of a source, in order."""
    splits = find_splits(source.path)
    if source.split is not None and source.split not in splits:
        raise DataError(source.path, f"has no split {source.split}; it has {', '.join(splits)}")
    return [path for name, paths in splits.items() if source.split in (None, name) for path in paths]


def instruction_of(raw: Any, source: SourceSection, *, first: bool = False) -> Instruction:
    """The instruction in a record of any kind that a build reads, its system message taken off.

    Args:
        first: of a conversation, take the first question.

    Raises:
        RecordError: there is none, or not one alone.
    """
    columns = columns_of(raw, "an instruction needs a prompt")
    system, prompt = _texts(columns, first)
    if system and prompt.startswith(system):
        prompt = prompt[len(system) :]
    bare, marks = _USER_MARKS.subn("", _SYSTEM_BLOCK.sub("", prompt))
    has_system = bool(system) or bool(_SYSTEM_BLOCK.search(prompt))
    if not filled(bare):
        raise RecordError("empty_field", "the prompt has no text beside its system message")
    names = (optional_text(columns, name) for name in ("main_source", "original_source"))
    main, original = (" ".join(one.split()) for one in names)
    own = source.main_source or Path(source.path).name
    other = next((columns[name] for name in ("source", "dataset") if isinstance(columns.get(name), str)), "")
    return Instruction(alike(bare), main or own, original or other, has_system, marks > 0)


def _texts(columns: Columns, first: bool) -> tuple[str, str]:
    """System message and prompt."""
    name, messages = name_of(columns, "prompt"), name_of(columns, "messages")
    system_name = name_of(columns, "system")
    system = text(columns[system_name], system_name, may_be_empty=True).strip() if system_name else ""
    pairs = name_of(columns, "chosen") and name_of(columns, "rejected")
    if name and is_messages(columns[name]):
        return _of_messages(columns, name, system, first)
    if name and filled(columns[name]):
        prompt = text(columns[name], name)
        if columns.has("input") and not pairs and not is_messages(columns["input"]):
            more = text(columns["input"], "input").strip()
            prompt = prompt if more in prompt else f"{prompt}\n{more}"
        return system, _of_transcript(prompt, first)
    if messages:
        return _of_messages(columns, messages, system, first)
    if isinstance(columns.get("question"), Mapping) or pairs:
        if (record := published_record(columns, "dpo")) is not None:
            return record.system, _of_transcript(record.prompt, first)
    if columns.has("input"):
        if pairs:
            raise RecordError("joined_system", "column 'input' may hold a system message, which cannot be told from it")
        return system, text(columns["input"], "input")
    if pairs and is_messages(columns[name_of(columns, "chosen")]):
        return _of_messages(columns, name_of(columns, "chosen"), system, first)
    if columns.has("turns"):  # of MT-Bench
        return system, _first_turn(columns, first)
    for other in ("question", "query"):
        if columns.has(other):
            return system, text(columns[other], other)
    prompts, chats = (*ALIASES["prompt"], *OTHER_NAMES["prompt"]), ALIASES["messages"]
    missing = f"has no prompt ({', '.join(prompts)}), messages ({', '.join(chats)}) or input"
    raise without(columns, (*prompts, *chats, "input"), missing)


def _first_turn(columns: Columns, first: bool) -> str:
    turns = columns["turns"]
    if not isinstance(turns, list):
        raise RecordError("wrong_type", "column 'turns' must be a list of questions")
    if len(turns) > 1 and not first:
        raise RecordError("several_exchanges", f"column 'turns' has {len(turns)} questions")
    return text(turns[0], "turns")


def _of_messages(columns: Columns, name: str, system: str, first: bool) -> tuple[str, str]:
    for ends in ("user", "assistant"):
        try:
            turns = read_conversation(columns, name, ends)
            break
        except RecordError as error:
            if ends == "assistant":
                raise RecordError("bad_messages", str(error)) from error
    else:
        raise AssertionError
    questions = [turn["content"] for turn in turns if turn["role"] == "user"]
    if len(questions) > 1 and not first:
        raise RecordError("several_exchanges", f"column {name!r} is a conversation of {len(turns)} messages")
    own = turns[0]["content"].strip() if turns[0]["role"] == "system" else ""
    return own or system, questions[0]


def _of_transcript(prompt: str, first: bool) -> str:
    """The question of a transcript in Anthropic's form (`Human: ... Assistant:`); another text as it is."""
    if not re.match(r"\s*Human:", prompt):
        return prompt
    parts = _TURN.split("\n" + prompt.strip())
    turns = [(role, words.strip()) for role, words in zip(parts[1::2], parts[2::2], strict=True)]
    questions = [words for role, words in turns if role == "Human"]
    if len(questions) > 1 and not first:
        raise RecordError("several_exchanges", f"a transcript of {len(turns)} turns")
    return questions[0]


def _prompts(source: str) -> Iterator[str]:
    """The prompts of a bench.

    Raises:
        DataError: FILE:RECORD has none: what a bench holds may not be passed over.
    """
    section = SourceSection(path=source)
    for place, raw in records(section):
        try:
            yield instruction_of(raw, section, first=True).text
            if isinstance(raw, Mapping) and isinstance(raw.get("turns"), list):
                yield from (text(one, "turns") for one in raw["turns"][1:])
        except RecordError as error:
            raise DataError(place, f"instructions.contaminated_by: {error}") from error
