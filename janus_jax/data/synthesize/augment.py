"""The second step: a seed hierarchy grows by what a model names, until it has the counts of the configuration.

Each parent asks for itself, so its requests depend on its own earlier answers alone: a run that was stopped asks for
the rest of each, and for nothing twice.
"""

import dataclasses
from collections import Counter
from collections.abc import Sequence
from typing import Any

from janus_jax.data.synthesize import prompts, structured
from janus_jax.data.synthesize.asking import CHUNK, Item, Outcome
from janus_jax.data.synthesize.files import shuffled
from janus_jax.data.synthesize.hierarchy import Hierarchy, Names, Preference, as_row, plain, read_seeds
from janus_jax.data.synthesize.stage import Stage, require_whole

NAME, INPUTS = "hierarchy", ()
SEED_ORIGIN = {"origin": "seed"}


class NamesAnswer(structured.Answer):
    subdimensions: list[str]


class PreferenceAnswer(structured.Answer):
    preference: str
    description: str


class PreferencesAnswer(structured.Answer):
    preferences: list[PreferenceAnswer]


class DescriptionsAnswer(structured.Answer):
    descriptions: list[PreferenceAnswer]


_PROMPTS: dict[type[structured.Answer], str] = {
    NamesAnswer: "subdimensions",
    PreferencesAnswer: "preferences",
    DescriptionsAnswer: "descriptions",
}


@dataclasses.dataclass
class _Parent:
    """What asks for children: a dimension for subdimensions, a subdimension for preferences."""

    dimension: str
    subdimension: str
    wanted: int
    names: Names
    described: Names
    children: list[tuple[str, str, dict[str, Any]]]
    """(name, description, provenance)."""
    rounds: int = 0
    ended: bool = False
    waits: bool = False
    """Its last request has no answer yet."""

    @property
    def missing(self) -> int:
        return max(0, self.wanted - len(self.children))


def settings(stage: Stage) -> dict[str, Any]:
    section = stage.config.hierarchy
    read = [stage.prompt(name).digest for name in ("subdimensions", "preferences", "descriptions")]
    seeds = Counter[str]()
    seed = read_seeds(section.seeds, section.alike, seeds)
    return {
        "asks": stage.asks(section, read),
        "counts": section.model_dump(include={"subdimensions", "preferences", "at_a_time", "shown", "rounds", "alike"}),
        "seed": [list(one) for one in seed.preferences()],
    }


def estimate(stage: Stage) -> None:
    """Plans the requests that the counts need after the answers of the journal, if no answer is wasted."""
    section = stage.config.hierarchy
    parents, subdimensions = _grown(stage, read_seeds(section.seeds, section.alike, Counter(), stage.note))
    stage.plan_asked(section, left=False)
    left = [one for one in (*parents, *subdimensions) if one.missing and one.waits]
    new = sum(parent.missing for parent in parents if parent.waits)
    per = section.at_a_time
    times = sum(-(-one.missing // per) for one in left)
    times += new * -(-section.preferences // per)
    stage.plan(section, [_request(stage, one) for one in left[:CHUNK]], times)
    _describe(stage, subdimensions)
    stage.plan_asked(section)
    stage.writer.discard()


def seed_alone(stage: Stage) -> None:
    """The rows of a dry run: names stand for descriptions, and the first preference of a dimension for as many as the
    sets need, where they are not written yet."""
    section, needed = stage.config.hierarchy, stage.config.sets.per_instruction
    grows = section.subdimensions or section.preferences
    for inner in read_seeds(section.seeds, section.alike, stage.writer.dropped).dimensions.values():
        made = [one for preferences in inner.values() for one in preferences]
        more = range(len(made), needed) if made and grows else ()
        for one in [*made, *(made[0]._replace(preference=f"{made[0].preference} {at}") for at in more)]:
            stage.writer.add(as_row(one._replace(description=one.description or one.preference), SEED_ORIGIN))


def run(stage: Stage) -> None:
    section, writer = stage.config.hierarchy, stage.writer
    parents, leaves = _grown(stage, read_seeds(section.seeds, section.alike, writer.dropped, stage.note))
    _describe(stage, leaves)
    if stage.waiting:
        return
    for parent in parents:
        if parent.missing:
            stage.note(f"{parent.dimension}: {parent.missing} of {parent.wanted} subdimensions are missing")
    seen: set[str] = set()
    for parent in leaves:
        if parent.missing:
            where = f"{parent.dimension}/{parent.subdimension}"
            stage.note(f"{where}: {parent.missing} of {parent.wanted} preferences are missing")
        if not parent.children:
            writer.drop("subdimension_without_preference", dimension=parent.dimension, name=parent.subdimension)
        for name, description, origin in parent.children:
            one = Preference(parent.dimension, parent.subdimension, name, description)
            inside = f"{parent.dimension}/{plain(name)}/{plain(description)}"
            if not description:
                writer.drop("no_description", **one._asdict())
            elif inside in seen:
                writer.drop("repeated_in_dimension", **one._asdict())
            else:
                seen.add(inside)
                writer.add(as_row(one, origin))


def _grown(stage: Stage, seed: Hierarchy) -> tuple[list[_Parent], list[_Parent]]:
    """The dimensions of a seed and their subdimensions, as far as there are answers."""
    parents = _dimensions(stage, seed)
    _grow(stage, parents)
    for parent in parents:
        for name, _, _ in parent.children:
            seed.dimensions[parent.dimension].setdefault(name, [])
    leaves = _subdimensions(stage, seed)
    _grow(stage, leaves)
    return parents, leaves


def _dimensions(stage: Stage, seed: Hierarchy) -> list[_Parent]:
    wanted = stage.config.hierarchy.subdimensions
    return [
        _parent(stage, name, "", wanted, [(one, "", SEED_ORIGIN) for one in inner])
        for name, inner in seed.dimensions.items()
    ]


def _subdimensions(stage: Stage, seed: Hierarchy) -> list[_Parent]:
    wanted = stage.config.hierarchy.preferences
    return [
        _parent(stage, dimension, name, wanted, [(one.preference, one.description, SEED_ORIGIN) for one in inner])
        for dimension, subdimensions in seed.dimensions.items()
        for name, inner in subdimensions.items()
    ]


def _parent(
    stage: Stage, dimension: str, subdimension: str, wanted: int, children: list[tuple[str, str, dict[str, Any]]]
) -> _Parent:
    alike = stage.config.hierarchy.alike
    parent = _Parent(dimension, subdimension, wanted, Names(alike), Names(alike), children)
    for name, description, _ in children:
        parent.names.add(name)
        if description:
            parent.described.add(description)
    return parent


def _request(stage: Stage, parent: _Parent) -> Item:
    section = stage.config.hierarchy
    names = [name for name, _, _ in parent.children]
    where = f"{parent.dimension}/{parent.subdimension}"
    shown = set(shuffled(names, stage.config.seed, where, parent.rounds)[: section.shown])
    existing = "\n".join(f"- {name}" for name in names if name in shown) or "- none"
    prompt = stage.prompt("preferences" if parent.subdimension else "subdimensions")
    messages = prompt.fill(
        dimension=prompts.spoken(parent.dimension),
        meaning=prompts.meaning(parent.dimension),
        subdimension=parent.subdimension,
        existing=existing,
        count=min(parent.missing, section.at_a_time),
    )
    return Item(f"{where}:{parent.rounds}", messages, about=parent)


def _grow(stage: Stage, parents: Sequence[_Parent]) -> None:
    """Asks round by round; parents with enough children, or whose rounds are used up, ask no more."""
    section = stage.config.hierarchy
    for _ in range(section.rounds):
        pending = [one for one in parents if one.missing and not one.ended]
        if not pending:
            return
        deeper = bool(pending[0].subdimension)
        form, name = (PreferencesAnswer, "preferences") if deeper else (NamesAnswer, "subdimensions")
        requests = (_request(stage, one) for one in pending)
        for outcome in stage.ask(section, requests, _reader(stage, form), form=form):
            parent = outcome.item.about
            parent.rounds += 1
            if outcome.value is None:
                parent.ended, parent.waits = True, outcome.waiting  # a later run goes on from here
                stage.failed(outcome, dimension=parent.dimension, subdimension=parent.subdimension)
            else:
                _adopt(stage, parent, outcome, stage.prompt(name).digest)


def _reader(stage: Stage, form: type[structured.Answer]) -> Any:
    """Reads an answer as (name, description) of each child. Small models copy the form with what stands in it."""
    shown = {plain(one) for one in stage.prompt(_PROMPTS[form]).quoted}

    def read(item: Item, reply: Any) -> list[tuple[str, str]]:
        require_whole(reply)
        answer, mended = structured.read(reply.text, form)
        stage.writer.counts["mended_json"] += mended
        if isinstance(answer, NamesAnswer):
            pairs = [(name, "") for name in answer.subdimensions]
        else:
            values = next(iter(vars(answer).values()))
            pairs = [(one.preference, " ".join(one.description.split())) for one in values]
        pairs = [(" ".join(name.split()).strip("\"'. "), description) for name, description in pairs]
        if not any(name for name, _ in pairs):
            raise structured.Rejected("wrong_count", "0 names")
        own = [pair for pair in pairs if shown.isdisjoint(map(plain, pair))]
        if not own:
            raise structured.Rejected("copied_form", next(one for one in map(plain, pairs[0]) if one in shown)[:60])
        for name, description in pairs:
            if (name, description) not in own:
                stage.writer.drop("copied_form", name=name, description=description)
        return own

    return read


def _adopt(stage: Stage, parent: _Parent, outcome: Outcome, prompt: str) -> None:
    """Takes the new ones of an answer, as many as are wanted; what is missing is asked for in the next round."""
    origin = {"origin": "model", **stage.provenance(stage.config.hierarchy, outcome, prompt)}
    asked = min(parent.missing, stage.config.hierarchy.at_a_time)
    if len(outcome.value) != asked:
        stage.writer.rejected["wrong_count"] += 1
    for name, description in outcome.value:
        reason = "surplus" if not parent.missing else parent.names.like(name) or _unfit(name)
        if not reason and parent.subdimension:
            reason = parent.described.like(description) if description else "no_description"
        if reason:
            where = {"dimension": parent.dimension, "subdimension": parent.subdimension}
            stage.writer.drop(reason, **where, name=name, description=description)
            continue
        parent.names.add(name)
        if description:
            parent.described.add(description)
        parent.children.append((name, description, origin))


def _unfit(name: str) -> str:
    return "" if name and len(name) <= 120 and "/" not in name else "unfit_name"


def _to_describe(stage: Stage, parents: Sequence[_Parent]) -> list[Item]:
    """Requests for the descriptions of preferences that have none."""
    section = stage.config.hierarchy
    prompt, items = stage.prompt("descriptions"), []
    for parent in parents:
        names = [name for name, description, _ in parent.children if not description]
        for start in range(0, len(names), section.at_a_time):
            part = names[start : start + section.at_a_time]
            messages = prompt.fill(
                dimension=prompts.spoken(parent.dimension),
                meaning=prompts.meaning(parent.dimension),
                subdimension=parent.subdimension,
                preferences="\n".join(f"- {name}" for name in part),
                count=len(part),
            )
            items.append(Item(f"{parent.dimension}/{parent.subdimension}:{start}", messages, about=(parent, part)))
    return items


def _describe(stage: Stage, parents: Sequence[_Parent]) -> None:
    """Asks for descriptions of preferences that have none, such as those of a seed of names."""
    section, prompt = stage.config.hierarchy, stage.prompt("descriptions")
    items = _to_describe(stage, parents)
    read = _reader(stage, DescriptionsAnswer)

    def complete(item: Item, reply: Any) -> dict[str, str]:
        given = {plain(name): description for name, description in read(item, reply) if description}
        missing = [name for name in item.about[1] if plain(name) not in given]
        if missing:
            raise structured.Rejected("no_description", f"{len(missing)} of {len(item.about[1])} have none")
        return given

    for outcome in stage.ask(section, items, complete, form=DescriptionsAnswer):
        parent, part = outcome.item.about
        if outcome.value is None:
            stage.failed(outcome, dimension=parent.dimension, subdimension=parent.subdimension, preferences=part)
            continue
        wanted = set(part)
        origin = {"origin": "seed", **stage.provenance(section, outcome, prompt.digest)}
        parent.children = [
            (name, outcome.value[plain(name)], origin)
            if name in wanted and not description
            else (name, description, was)
            for name, description, was in parent.children
        ]
