"""Steps four to six: system messages, responses and rubrics, each text through its gates."""

import json
from collections.abc import Iterable, Iterator
from typing import Any

from pydantic import create_model

from janus_jax.data.synthesize import gates, structured
from janus_jax.data.synthesize.asking import Item, Outcome, Rejected
from janus_jax.data.synthesize.config import AskSection, GatedSection
from janus_jax.data.synthesize.files import number_of, shuffled
from janus_jax.data.synthesize.hierarchy import plain
from janus_jax.data.synthesize.stage import Stage, require_whole
from janus_jax.errors import DataError, counted
from janus_jax.storage.endpoint_requests import Reply

SCORES = tuple(map(str, range(1, 6)))
_TYPICAL_SYSTEM = "x" * 1000
"""Stands for a system message that is not written yet; those of Multifaceted Bench have 682 to 1,370 characters."""
_LEAST_CHARS, _MOST_CHARS = 10, 2000
"""Of criteria and of a description of a score, without punctuation: a word alone tells a judge nothing."""

Scores = create_model("Scores", __base__=structured.Answer, **{score: (str, ...) for score in SCORES})  # pyright: ignore


class RubricAnswer(structured.Answer):
    criteria: str
    score_descriptions: Scores  # pyright: ignore[reportInvalidTypeForm]


class Systems:
    """System messages: one for each preference set, written from its descriptions alone."""

    name, inputs = "systems", ("instructions", "sets")

    def settings(self, stage: Stage) -> dict[str, Any]:
        return _settings(stage, stage.config.systems, stage.prompt("system").digest)

    def estimate(self, stage: Stage) -> None:
        self.run(stage)
        stage.plan_asked(stage.config.systems)

    def run(self, stage: Stage) -> None:
        section, digest = stage.config.systems, stage.prompt("system").digest

        def read(item: Item, reply: Reply) -> str:
            require_whole(reply)
            text = (reply.text or "").strip()
            gates.refusal(text)
            gates.preamble(text)
            gates.length(text, section.min_chars, section.max_chars)
            gates.markup(text)
            gates.language(text, stage.config.language)
            gates.copied(text, stage.prompt("system").examples, 15, "copied_example")
            return text

        for outcome in _asked(stage, section, self._items(stage), read, section):
            row = outcome.item.about
            if outcome.value is None:
                stage.failed(outcome, id=row["id"])
                continue
            kept = {name: row[name] for name in ("id", "instruction", "preferences")}
            origin = stage.provenance(section, outcome, digest)
            stage.writer.add({**kept, "system": outcome.value, "provenance": origin})

    def _items(self, stage: Stage) -> Iterator[Item]:
        prompt, section = stage.prompt("system"), stage.config.systems
        chosen = limited(stage)
        for row in stage.rows("sets"):
            if chosen is not None and row["instruction"] not in chosen:
                continue
            lines = "\n".join(f"- {one['description']}" for one in row["preferences"])
            shown = _examples(stage, prompt.examples, section.examples, row["id"])
            yield Item(row["id"], prompt.fill(preferences=lines, examples=shown), row["instruction"], row)


class Responses:
    """Responses: one to each system message with its instruction."""

    name, inputs = "responses", ("instructions", "systems")

    def settings(self, stage: Stage) -> dict[str, Any]:
        return _settings(stage, stage.config.responses)

    def estimate(self, stage: Stage) -> None:
        """Of system messages that are not written yet, by one of typical length."""
        section, written = stage.config.responses, set[str]()
        if stage.has("systems"):
            self.run(stage)
            stage.plan_asked(section)
            if "systems" not in stage.unfinished:
                return
            written = {row["id"] for row in stage.rows("systems")}
        chosen, prompts = limited(stage), {row["id"]: row["prompt"] for row in stage.rows("instructions")}
        ids = (row["instruction"] for row in stage.rows("sets") if row["id"] not in written)
        wanted = [one for one in ids if chosen is None or one in chosen]
        items = (Item(one, _conversation(f"{_TYPICAL_SYSTEM}{at}", prompts[one])) for at, one in enumerate(wanted))
        stage.plan(section, items)

    def run(self, stage: Stage) -> None:
        section = stage.config.responses

        def read(item: Item, reply: Reply) -> str:
            require_whole(reply)
            row, prompt = item.about
            text = (reply.text or "").strip()
            gates.refusal(text)
            gates.length(text, section.min_chars, section.max_chars)
            gates.markup(text, prompt)
            gates.language(text, stage.config.language, prompt)
            gates.copied(text, [row["system"]], section.copied_words, "copied_system")
            return text

        for outcome in _asked(stage, section, self._items(stage), read, section):
            row, _ = outcome.item.about
            if outcome.value is None:
                stage.failed(outcome, id=row["id"])
                continue
            origin = stage.provenance(section, outcome)
            stage.writer.add({"id": row["id"], "output": outcome.value, "provenance": origin})

    def _items(self, stage: Stage) -> Iterator[Item]:
        prompts = {row["id"]: row["prompt"] for row in stage.rows("instructions")}
        chosen = limited(stage)
        for row in stage.rows("systems"):
            if chosen is not None and row["instruction"] not in chosen:
                continue
            if (prompt := prompts.get(row["instruction"])) is None:
                raise DataError(f"systems, row {row['id']}", "its instruction is not in instructions/rows.jsonl")
            yield Item(row["id"], _conversation(row["system"], prompt), row["instruction"], (row, prompt))


class Rubrics:
    """Rubrics: one for each preference of the rows that are held out for a bench."""

    name, inputs = "rubrics", ("instructions", "sets", "responses")

    def settings(self, stage: Stage) -> dict[str, Any]:
        section = stage.config.bench
        how = _settings(stage, section, stage.prompt("rubric").digest)
        return how | {"instructions": section.instructions}

    def estimate(self, stage: Stage) -> None:
        if stage.config.bench.instructions:
            self.run(stage)
            stage.plan_asked(stage.config.bench)

    def run(self, stage: Stage) -> None:
        section, prompt = stage.config.bench, stage.prompt("rubric")
        chosen, held = limited(stage), bench_ids(stage)
        if chosen is not None and held and not held & chosen:
            left_out = f"none of the {counted(len(held), 'instruction')} held out for the bench"
            stage.note(
                f"{left_out} is among the {len(chosen)} of --limit, so this trial makes no rubric and no bench row"
            )
        digest, form = prompt.digest, {*map(plain, prompt.quoted), *RubricAnswer.model_fields, *SCORES}
        examples = [text for one in prompt.examples for text in _texts(json.loads(one))]

        def read(item: Item, reply: Reply) -> dict[str, Any]:
            require_whole(reply)
            answer, mended = structured.read(reply.text or "", RubricAnswer)
            stage.writer.counts["mended_json"] += mended
            made = rubric_of(answer)
            texts = list(map(plain, _texts(made)))
            if not all(texts):
                raise Rejected("empty")
            if copied := form.intersection(texts):
                raise Rejected("copied_form", min(copied)[:60])
            for one in texts:
                gates.length_in_letters(one, _LEAST_CHARS, "one of its texts has ")
                gates.length(one, 1, _MOST_CHARS, "one of its texts has ")
            if len(set(texts)) < len(texts):
                raise Rejected("repeated_text")
            whole = "\n".join(_texts(made))
            gates.copied(whole, examples, 10, "copied_example")
            gates.markup(whole)
            gates.language(whole, stage.config.language)
            return made

        items = self._items(stage, self._answered(stage))
        for outcome in _asked(stage, section, items, read, None, form=RubricAnswer):
            set_id, number = outcome.item.about
            if outcome.value is None:
                stage.failed(outcome, id=set_id, preference=number)
                continue
            origin = stage.provenance(section, outcome, digest)
            stage.writer.add({"id": set_id, "preference": number, **outcome.value, "provenance": origin})

    def _answered(self, stage: Stage) -> set[str] | None:
        """Rows with a response; None: not all are made."""
        if not stage.has("responses") or "responses" in stage.unfinished:
            return None
        return {row["id"] for row in stage.rows("responses")}

    def _items(self, stage: Stage, answered: set[str] | None) -> Iterator[Item]:
        prompt, section, held = stage.prompt("rubric"), stage.config.bench, bench_ids(stage)
        chosen = limited(stage)
        for row in stage.rows("sets"):
            one = row["instruction"]
            if one not in held or (chosen is not None and one not in chosen):
                continue
            if answered is not None and row["id"] not in answered:
                continue
            for number, preference in enumerate(row["preferences"]):
                shown = _examples(stage, prompt.examples, section.examples, f"{row['id']}-{number}")
                values = {name: preference[name] for name in ("preference", "description")}
                yield Item(f"{row['id']}-{number}", prompt.fill(**values, examples=shown), about=(row["id"], number))


def rubric_of(answer: RubricAnswer) -> dict[str, Any]:
    """The columns of a rubric."""
    return {"criteria": answer.criteria.strip(), "score_descriptions": answer.score_descriptions.model_dump()}


def _texts(rubric: dict[str, Any]) -> list[str]:
    """The criterion and the descriptions of a rubric."""
    return [rubric["criteria"], *rubric["score_descriptions"].values()]


def limited(stage: Stage) -> set[str] | None:
    """The instructions of a limit: always the same first ones, in an order of their own; None: all."""
    if stage.limit is None:
        return None
    ids = (row["id"] for row in stage.rows("instructions"))
    return set(shuffled(ids, stage.config.seed, "limit")[: stage.limit])


def bench_ids(stage: Stage) -> set[str]:
    """The instructions that are held out for the bench."""
    number = stage.config.bench.instructions
    if not number:
        return set()
    ids = [row["id"] for row in stage.rows("instructions")]
    if number >= len(ids):
        what = f"allowed: fewer than the {counted(len(ids), 'instruction')} that the sources leave"
        raise DataError(f"bench.instructions = {number}", f"{what} ({stage.summary('instructions')})")
    return set(shuffled(ids, stage.config.seed, "bench")[:number])


def _settings(stage: Stage, section: AskSection, *prompts: str) -> dict[str, Any]:
    own = section.model_dump(exclude={"endpoint", "temperature", "top_p", "max_tokens", "asks"})
    return {"asks": stage.asks(section, prompts), "section": own, "language": stage.config.language}


def _conversation(system: str, prompt: str) -> list[dict[str, str]]:
    return [{"role": "system", "content": system}, {"role": "user", "content": prompt}]


def _examples(stage: Stage, examples: tuple[str, ...], number: int, *draw: str) -> str:
    """Some of the examples, drawn for one request, as a part of its prompt."""
    if not number or not examples:
        return ""
    order = sorted(range(len(examples)), key=lambda at: number_of(stage.config.seed, "examples", *draw, at))
    shown = "\n\n".join(f"Example {at}:\n{examples[one]}" for at, one in enumerate(order[:number], 1))
    return f"{shown}\n\n"


def _asked(
    stage: Stage,
    section: AskSection,
    items: Iterable[Item],
    read: Any,
    gated: GatedSection | None,
    form: type[structured.Answer] | None = None,
) -> Iterator[Outcome]:
    """Outcomes of all items, in order."""
    compare = None if gated is None else lambda outcomes: gates.too_alike(outcomes, gated.alike)
    return stage.ask(section, items, read, form=form, compare=compare)
