"""Counts of records by reason, and where the first of them are: a count alone sends nobody to the record."""

from collections import Counter
from collections.abc import Callable, Mapping, Sequence

from janus_jax.storage.staging import original

NAMED = 3
"""How many places of a reason are kept; the rest are counted."""


class Tally(Counter[str]):
    """Counts that `note` makes also keep the first places."""

    def __init__(self) -> None:
        super().__init__()
        self.places: dict[str, list[str]] = {}


def note(counts: Counter[str], reason: str, place: str | Callable[[], str], count: int = 1) -> None:
    """Counts records under a reason; a `Tally` keeps the place of the first of them, FILE:RECORD.

    Args:
        place: called only if the place is kept.
    """
    counts[reason] += count
    if isinstance(counts, Tally) and len(kept := counts.places.setdefault(reason, [])) < NAMED:
        kept.append(place if isinstance(place, str) else place())


def located(count: int, places: Sequence[str]) -> str:
    """` (PLACE, PLACE and 5 more)` for so many records; nothing if no place is known, as in older data sets."""
    shown = [place if place.isprintable() else ascii(place) for place in places]
    more = f" and {count - len(shown):,} more" if count > len(shown) else ""
    return f" ({', '.join(shown)}{more})" if shown else ""


def places_of(counts: Counter[str]) -> dict[str, list[str]]:
    """Reason -> the places that were kept, those in copies of gs:// content by their URLs."""
    kept = counts.places if isinstance(counts, Tally) else {}
    return {reason: list(map(original, places)) for reason, places in sorted(kept.items())}


def summary(counts: Counter[str]) -> str:
    """`reasons` of counts with their own places; empty without any."""
    return reasons(counts, places_of(counts)) if counts else ""


def reasons(counts: Mapping[str, int], places: Mapping[str, Sequence[str]]) -> str:
    """`2 tie (PLACE, PLACE), 1 bad_json (PLACE)`, or `none`."""
    return ", ".join(f"{n:,} {why}{located(n, places.get(why, ()))}" for why, n in counts.items()) or "none"
