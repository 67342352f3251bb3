"""The third step: preference sets of each instruction, one preference of each dimension.

Preferences are drawn like cards: each is used once before any is used again, as far as the rules allow. Instructions
are dealt in the order of their ids, so neither the order of the sources nor a limit changes a set. Sets that were drawn
stay when instructions are added; the new ones get what has been used least.
"""

import dataclasses
import difflib
import math
from collections import Counter, deque
from collections.abc import Container, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from janus_jax.config.yaml_file import read_list
from janus_jax.data.synthesize.files import number_of
from janus_jax.data.synthesize.hierarchy import Hierarchy, Preference, of_rows, plain
from janus_jax.data.synthesize.prompts import OWN
from janus_jax.data.synthesize.stage import Stage
from janus_jax.errors import DataError, counted

NAME, INPUTS = "sets", ("hierarchy", "instructions")
_KEYS = ("dimension", "subdimension", "preference")
_LOOK = 500
"""Preferences of a dimension that are looked at for one that fits, before a set is given up."""
_TRIES = 20
"""Other first preferences that a set is begun with before it is given up."""


Hits = frozenset[tuple[int, int]]
"""(rule, part) of each part that a preference fits."""


@dataclasses.dataclass(frozen=True)
class Rules:
    """Preferences that no set holds together. A rule is a list of parts, each with names that one preference has."""

    parts: tuple[tuple[Mapping[str, str], ...], ...]
    places: tuple[str, ...]
    """FILE:LINE of each rule."""

    def hits(self, one: Preference) -> Hits:
        """(rule, part) of each part that a preference fits."""
        names = {key: plain(name) for key, name in _names(one)}
        return frozenset(
            (rule, part)
            for rule, parts in enumerate(self.parts)
            for part, wanted in enumerate(parts)
            if all(names[key] == value for key, value in wanted.items())
        )

    def refuse(self, hits: Sequence[Hits]) -> bool:
        """Whether preferences with these hits are a set that a rule forbids."""
        rules = {rule for one in hits for rule, _ in one}
        return any(_covered(hits, rule, len(self.parts[rule])) for rule in rules)

    def idle(self, hierarchy: Hierarchy) -> Iterator[str]:
        """A line for each rule that forbids no set of the hierarchy, with the names that are most like its own."""
        known: dict[str, dict[str, str]] = {key: {} for key in _KEYS}
        for one in hierarchy.preferences():
            for key, name in _names(one):
                known[key].setdefault(plain(name), name)
        hits = [
            frozenset().union(*(self.hits(one) for inner in subdimensions.values() for one in inner))
            for subdimensions in hierarchy.dimensions.values()
        ]
        for rule, (place, parts) in enumerate(zip(self.places, self.parts, strict=True)):
            unfit = [one for part, one in enumerate(parts) if not any((rule, part) in own for own in hits)]
            why = "its parts are of too few dimensions; a set has one preference of each dimension"
            if unfit or not _covered(hits, rule, len(parts)):
                yield f"{place}: the rule forbids nothing: {_unfit(unfit[0], known) if unfit else why}"


def _names(one: Preference) -> Iterator[tuple[str, str]]:
    """(key of a rule, name) of a preference."""
    return zip(_KEYS, (one.dimension.replace("_", " "), *one[1:3]), strict=True)


def _unfit(part: Mapping[str, str], known: Mapping[str, Mapping[str, str]]) -> str:
    """Why no preference fits a part. Args: known: key -> plain names that the hierarchy has, and their spelling."""
    for key, value in part.items():
        if value not in known[key]:
            near = difflib.get_close_matches(value, known[key], 3)
            like = f"; similar names: {', '.join(known[key][one] for one in near)}" if near else ""
            return f"no {key} is called {value!r}{like}"
    return f"no preference has {' and '.join(f'{key} {value!r}' for key, value in part.items())}"


def _covered(hits: Sequence[Hits], rule: int, parts: int) -> bool:
    """Whether each part has a preference of its own."""

    def rest(part: int, free: Sequence[Hits]) -> bool:
        if part == parts:
            return True
        return any((rule, part) in one and rest(part + 1, [*free[:at], *free[at + 1 :]]) for at, one in enumerate(free))

    return rest(0, hits)


def read_rules(path: str | None) -> Rules:
    """The rules of a YAML file; None: ours.

    Raises:
        ConfigError, DataError: FILE:LINE is no rule.
    """
    file = OWN / "assets" / "incompatible.yaml" if path is None else Path(path).expanduser()
    made, places = [], []
    for item, origin in read_list(file):
        allowed = "allowed: a list of two parts or more, each with dimension, subdimension or preference"
        if not isinstance(item, list) or len(item) < 2 or not all(isinstance(one, dict) and one for one in item):
            raise DataError(origin, f"is no rule; {allowed}")
        for part in item:
            if unknown := [key for key in part if key not in _KEYS]:
                raise DataError(origin, f"unknown key {unknown[0]!r}; {allowed}")
            if not all(isinstance(value, str) and value.strip() for value in part.values()):
                raise DataError(origin, f"a name is no text; {allowed}")
        made.append(tuple({key: plain(value.replace("_", " ")) for key, value in part.items()} for part in item))
        places.append(origin)
    return Rules(tuple(made), tuple(places))


class Deck:
    """The preferences of one dimension, dealt so that each is used about equally often.

    Args:
        used: key -> how often it was used before.
        draw: parts of the seed of the order.
    """

    def __init__(self, preferences: Mapping[str, Preference], used: Mapping[str, int], *draw: object):
        self.preferences = preferences
        self._used = Counter({key: used.get(key, 0) for key in preferences})
        self._draw, self._round = draw, min(self._used.values(), default=0)
        self._waiting: deque[str] = deque()

    def candidates(self, last: Container[str]) -> Iterator[str]:
        """Keys, those that are due first. Those of `last` come after all others."""
        seen: set[str] = set()
        put_off = []
        at = 0
        while at < _LOOK and len(seen) < len(self.preferences):
            while at >= len(self._waiting):
                self._deal()
            key = self._waiting[at]
            at += 1
            if key in seen:
                continue
            seen.add(key)
            if key in last:
                put_off.append(key)
            else:
                yield key
        yield from put_off

    def _deal(self) -> None:
        """Queues those that were used less than this round's number."""
        queued = Counter(self._waiting)
        keys = [key for key in self.preferences if self._used[key] + queued[key] <= self._round]
        keys.sort(key=lambda key: (number_of(*self._draw, self._round, key), key))
        self._waiting.extend(keys)
        self._round += 1

    def take(self, key: str) -> None:
        """Counts a use. One that is not due, because a small dimension has no other, is skipped when its turn comes."""
        if key in self._waiting:
            self._waiting.remove(key)
        self._used[key] += 1


def settings(stage: Stage) -> dict[str, Any]:
    rules = read_rules(stage.config.sets.incompatible)
    return {
        "per_instruction": stage.config.sets.per_instruction,
        "seed": stage.config.seed,
        "rules": [[dict(part) for part in parts] for parts in rules.parts],
    }


def run(stage: Stage) -> None:
    config, writer = stage.config, stage.writer
    hierarchy = of_rows(stage.rows("hierarchy"))
    rules = read_rules(config.sets.incompatible)
    ids = [row["id"] for row in stage.rows("instructions")]
    _require_enough(hierarchy, config.sets.per_instruction)
    if config.sets.incompatible is not None and not stage.dry:  # ours are for our seed
        for line in rules.idle(hierarchy):
            stage.note(line)
    kept = _kept(stage, hierarchy, rules)
    writer.counts["kept"] = sum(1 for one in ids if one in kept)
    sets, failed = draw(hierarchy, ids, config.sets.per_instruction, config.seed, rules, kept)
    for one in ids:  # in the order of the sources
        if one in failed:
            writer.drop("no_compatible_set", id=one)
            continue
        for number, chosen in enumerate(sets[one]):
            writer.add({"id": f"{one}-{number}", "instruction": one, "preferences": [p._asdict() for p in chosen]})
    if not sets and rules.parts:
        raise DataError("sets", "the rules about incompatible preferences leave no set; see sets.incompatible")


def _require_enough(hierarchy: Hierarchy, per_instruction: int) -> None:
    """Refuses to look for more sets than there are, whatever the rules allow.

    Raises:
        DataError: says how many preferences of which dimension there are.
    """
    sizes = {name: sum(map(len, inner.values())) for name, inner in hierarchy.dimensions.items()}
    if not sizes:
        raise DataError("sets", "the hierarchy has no preference; see steps/hierarchy/rows.jsonl")
    if (most := math.prod(sizes.values())) < per_instruction:
        have = " x ".join(f"{size} of {name}" for name, size in sizes.items())
        what = f"only {counted(most, 'different set')} can be made of the hierarchy's preferences ({have})"
        raise DataError(f"sets.per_instruction = {per_instruction:,}", f"{what}; allowed: at most so many")


def draw(
    hierarchy: Hierarchy,
    ids: Iterable[str],
    per_instruction: int,
    seed: int,
    rules: Rules,
    kept: Mapping[str, Sequence[tuple[Preference, ...]]] | None = None,
) -> tuple[dict[str, list[tuple[Preference, ...]]], set[str]]:
    """The sets of each instruction, and the ids of those for which there are not enough compatible sets.

    Args:
        ids: of instructions, in any order.
        kept: sets that stay as they are.
    """
    kept = kept or {}
    used = Counter(one.key for sets in kept.values() for chosen in sets for one in chosen)
    decks, hits = [], {}
    for dimension, subdimensions in hierarchy.dimensions.items():
        keyed = {one.key: one for inner in subdimensions.values() for one in inner}
        hits |= {key: rules.hits(one) for key, one in keyed.items()}
        decks.append(Deck(keyed, used, seed, dimension))
    made: dict[str, list[tuple[Preference, ...]]] = {}
    failed: set[str] = set()
    for one in sorted(set(ids)):
        if one in kept:
            made[one] = list(kept[one])
            continue
        sets: list[tuple[str, ...]] = []
        while len(sets) < per_instruction and (chosen := _choose(decks, hits, rules, sets)):
            sets.append(chosen)
        if len(sets) < per_instruction:
            failed.add(one)
            continue
        made[one] = [tuple(deck.preferences[key] for deck, key in zip(decks, keys, strict=True)) for keys in sets]
        for keys in sets:
            for deck, key in zip(decks, keys, strict=True):
                deck.take(key)
    return made, failed


def _choose(
    decks: Sequence[Deck], hits: Mapping[str, Hits], rules: Rules, before: Sequence[tuple[str, ...]]
) -> tuple[str, ...] | None:
    """A set that no rule forbids and that differs from those before, in each dimension if it has enough preferences."""
    budget = _TRIES * _LOOK

    def extend(chosen: tuple[str, ...]) -> tuple[str, ...] | None:
        nonlocal budget
        number = len(chosen)
        if number == len(decks):
            return None if chosen in before else chosen
        for key in decks[number].candidates({keys[number] for keys in before}):
            budget -= 1
            if budget < 0:
                return None
            more = (*chosen, key)
            if not rules.refuse([hits[one] for one in more]) and (whole := extend(more)):
                return whole
        return None

    return extend(())


def _kept(stage: Stage, hierarchy: Hierarchy, rules: Rules) -> dict[str, list[tuple[Preference, ...]]]:
    """Sets of an earlier draw with the same seed that still can be. Without step.json the seed counts as the same: a
    process may have been killed just before it wrote that, and texts for the sets are paid for."""
    seed = stage.earlier.facts().get("settings", {}).get("seed", stage.config.seed)
    if seed != stage.config.seed or not stage.earlier.digest():
        return {}
    known = {one.key: one for one in hierarchy.preferences()}
    dimensions, sets = list(hierarchy.dimensions), dict[str, list[tuple[Preference, ...]]]()
    wrong = set()
    for row in stage.earlier.rows():
        read = (Preference(**one) for one in row["preferences"])
        chosen = tuple(known.get(one.key, one) if known.get(one.key) == one else one for one in read)  # one text each
        fits = [one.dimension for one in chosen] == dimensions and all(known.get(one.key) == one for one in chosen)
        if not fits or rules.refuse([rules.hits(one) for one in chosen]):
            wrong.add(row["instruction"])
        sets.setdefault(row["instruction"], []).append(chosen)
    number = stage.config.sets.per_instruction
    return {one: chosen for one, chosen in sets.items() if one not in wrong and len(chosen) == number}
