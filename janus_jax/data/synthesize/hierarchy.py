"""Preferences in a hierarchy: dimension > subdimension > preference > description. Reading seeds, near-duplicates.

A seed is JSON or JSONL. Its items are preferences with the columns of a published `preference_set`, or nodes as on the
Janus project page: `id` is the path (`Style/Tone/Playful`), `parent` the path above, `label` the name.
"""

import dataclasses
import json
import re
import unicodedata
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from janus_jax.data.build.readers import raw_records
from janus_jax.data.columns import RecordError, columns_of, text
from janus_jax.data.schema import PREFERENCE_KEYS
from janus_jax.data.synthesize.config import EMBEDDED
from janus_jax.data.synthesize.prompts import OWN
from janus_jax.errors import DataError, named
from janus_jax.text.rouge import rouge_l, words

_NODE = ("id", "label", "parent", "value", "description")
_LONGEST = 2000
"""Characters of a description."""
_SHOWN = 5
"""Seeds that a note names."""


class Preference(NamedTuple):
    """A leaf of the hierarchy. Names are those of the columns of `preference_set`."""

    dimension: str
    subdimension: str
    preference: str
    description: str

    @property
    def key(self) -> str:
        """The same for preferences whose names look alike."""
        return "/".join(map(plain, self[:3]))


@dataclasses.dataclass
class Hierarchy:
    """Dimensions in the order of the seed, their subdimensions, and the preferences of these."""

    dimensions: dict[str, dict[str, list[Preference]]] = dataclasses.field(default_factory=dict)

    def preferences(self) -> Iterator[Preference]:
        for subdimensions in self.dimensions.values():
            for preferences in subdimensions.values():
                yield from preferences

    def subdimensions(self) -> Iterator[tuple[str, str]]:
        return ((one, other) for one, inner in self.dimensions.items() for other in inner)

    def statistics(self) -> dict[str, int]:
        """Counts, by the names of the paper's table."""
        preferences = sum(1 for _ in self.preferences())
        subdimensions = sum(1 for _ in self.subdimensions())
        return {"dimensions": len(self.dimensions), "subdimensions": subdimensions, "preferences": preferences}


class Names:
    """The names of one parent's children, or their descriptions, of which none is a near-duplicate of another.

    Args:
        alike: ROUGE-L from which two texts are near-duplicates. Texts without letters a to z and digits are compared
            as a whole.
    """

    def __init__(self, alike: float):
        self._alike = alike
        self._places: dict[str, str] = {}  # by plain text
        self._words: list[tuple[list[str], str]] = []  # with places

    def like(self, value: str) -> str:
        """`repeated`, `alike`, or nothing if the text is new. Adds nothing."""
        return self.like_which(value)[0]

    def like_which(self, value: str) -> tuple[str, str]:
        """As `like`, and the place of the text that it is like."""
        if (place := self.same(value)) is not None:
            return "repeated", place
        own = words(value)
        return next((("alike", place) for other, place in self._words if rouge_l(other, own) >= self._alike), ("", ""))

    def same(self, value: str) -> str | None:
        """The place of a text that is the same but for case, punctuation and spaces."""
        return self._places.get(plain(value))

    def add(self, value: str, place: str = "") -> None:
        self._places.setdefault(plain(value), place)
        self._words.append((words(value), place))


def plain(value: str) -> str:
    """A text without case, accents' composition, punctuation and spaces of its own."""
    return " ".join(re.findall(r"\w+", unicodedata.normalize("NFKC", value).casefold())) or value.strip()


def stored(dimension: str) -> str:
    """The name of a dimension as the published data store it: `Background knowledge` is `background_knowledge`."""
    return re.sub(r"[\s-]+", "_", dimension.strip().casefold())


def read_seeds(
    sources: Iterable[str], alike: float, dropped: Counter[str], note: Callable[[str], None] | None = None
) -> Hierarchy:
    """The hierarchy of all seeds. Preferences may lack a description (empty).

    Args:
        alike: as of `Names`.
        dropped: counts what has the name of another preference of its subdimension.
        note: gets a line on such seeds, and on near-duplicates, which are kept; None: they are not looked for.

    Raises:
        DataError: a seed cannot be read or is empty, or names the place of an item that is no preference.
    """
    made = Hierarchy()
    names: dict[tuple[str, str], tuple[Names, Names]] = {}
    repeated, near = list[str](), list[str]()
    spelled: dict[str, str] = {}
    for source in sources:
        path, count = OWN / "assets" / "seed.json" if source == EMBEDDED else Path(source).expanduser(), 0
        if not path.is_file():
            raise DataError(source, "no such file; allowed: a JSON or JSONL file of preferences, or `embedded`")
        for number, raw in raw_records(path):
            count += 1
            with named(f"{source}:{number}"):
                leaf = _leaf(raw)
            if leaf is None:
                continue
            # the first spelling of a subdimension counts
            own = "/".join(map(plain, leaf[:2]))
            leaf = leaf._replace(subdimension=spelled.setdefault(own, leaf.subdimension))
            inner = made.dimensions.setdefault(leaf.dimension, {})
            kept = inner.setdefault(leaf.subdimension, [])
            if not leaf.preference:
                continue
            place = f"{source}:{number} {leaf.preference!r}"
            own_names, described = names.setdefault(leaf[:2], (Names(alike), Names(alike)))
            if (other := own_names.same(leaf.preference)) is not None:
                dropped["seed_repeated"] += 1
                repeated.append(f"{place} is {other}")
                continue
            if note is not None:
                like = own_names.like_which(leaf.preference)[1]
                like = like or (described.like_which(leaf.description)[1] if leaf.description else "")
                near.extend([f"{place} is like {like}"] if like else [])
            own_names.add(leaf.preference, place)
            if leaf.description:
                described.add(leaf.description, place)
            kept.append(leaf)
        if not count:
            raise DataError(source, "is empty; at least one preference is needed")
    for places, what in (
        (repeated, "seeds with the name of another in their subdimension are dropped"),
        (near, "seeds that are near-duplicates are kept"),
    ):
        if places and note is not None:
            more = f"; {len(places) - _SHOWN:,} more" if len(places) > _SHOWN else ""
            note(f"{what} ({len(places):,}): {'; '.join(places[:_SHOWN])}{more}")
    empty = [name for name, inner in made.dimensions.items() if not inner]
    if empty or not made.dimensions:
        what = f"dimension {empty[0]!r} has no subdimension" if empty else "no preference"
        raise DataError(", ".join(sources), f"{what}; each dimension needs one with at least one preference")
    return made


def _leaf(raw: Any) -> Preference | None:
    """A preference, or a subdimension without one; None for the node of a dimension."""
    columns = columns_of(raw, "a preference has dimension, subdimension, preference and description")
    if "id" in columns and "label" in columns and "dimension" not in columns:
        return _node(columns)
    if missing := [key for key in PREFERENCE_KEYS[:3] if not columns.has(key)]:
        present = ", ".join(columns) or "nothing"
        raise RecordError(
            "missing_field", f"has no {missing[0]}; {', '.join(PREFERENCE_KEYS)} are read; found: {present}"
        )
    names = [_name(columns[key], key) for key in PREFERENCE_KEYS[1:3]]
    return Preference(stored(text(columns["dimension"], "dimension")), names[0], names[1], _description(columns))


def _node(columns: Mapping[str, Any]) -> Preference | None:
    path = text(columns["id"], "id").split("/", 2)
    label = _name(columns["label"], "label")
    if unknown := [name for name in columns if name not in _NODE]:
        raise RecordError("unknown_field", f"has {unknown[0]!r}; a node has {', '.join(_NODE)}")
    if plain(path[-1]) != plain(label):
        raise RecordError("bad_node", f"its id {columns['id']!r} does not end with its label {label!r}")
    parent = "/".join(path[:-1])
    if (given := columns.get("parent") or "") != parent:
        raise RecordError("bad_node", f"its parent is {given!r}, but its id names {parent!r}")
    if len(path) == 1:
        return None
    return Preference(stored(path[0]), _name(path[1], "id"), label if len(path) == 3 else "", _description(columns))


def _name(value: Any, column: str) -> str:
    name = " ".join(text(value, column).split())
    if len(name) > 200:
        raise RecordError("too_long", f"column {column!r} has {len(name)} characters; a name has at most 200")
    return name


def _description(columns: Mapping[str, Any]) -> str:
    value = columns.get("description")
    description = "" if value is None else " ".join(text(value, "description", may_be_empty=True).split())
    if len(description) > _LONGEST:
        raise RecordError(
            "too_long", f"column 'description' has {len(description):,} characters; allowed: {_LONGEST:,}"
        )
    return description


def as_row(preference: Preference, origin: Mapping[str, Any]) -> dict[str, Any]:
    """A row of the step: the columns of `preference_set`, and where it comes from."""
    return {**preference._asdict(), "provenance": dict(origin)}


def of_rows(rows: Iterable[Mapping[str, Any]]) -> Hierarchy:
    """The hierarchy that a step wrote, or a person edited.

    Raises:
        DataError: a row lacks a name or a description.
    """
    made = Hierarchy()
    for number, row in enumerate(rows, 1):
        values = [row.get(key) for key in PREFERENCE_KEYS]
        if not all(isinstance(value, str) and value.strip() for value in values):
            raise DataError(f"hierarchy, row {number}", f"needs {', '.join(PREFERENCE_KEYS)}: {json.dumps(row)[:100]}")
        leaf = Preference(*map(str, values))
        made.dimensions.setdefault(leaf.dimension, {}).setdefault(leaf.subdimension, []).append(leaf)
    return made
