"""Pairs whose answers were rated: which of them are kept, and the margin that follows."""

import dataclasses

from janus_jax.data.columns import Columns, NoPreferenceError, RecordError, number
from janus_jax.data.schema import Record

COLUMNS = (
    ("score_chosen", "score_rejected"),  # HuggingFaceH4/ultrafeedback_binarized
    ("chosen-rating", "rejected-rating"),  # argilla/ultrafeedback-binarized-preferences-cleaned
    ("chosen_rating", "rejected_rating"),  # argilla/dpo-mix-7k
    ("rating_chosen", "rating_rejected"),  # argilla/distilabel-capybara-dpo-7k-binarized
    ("chosen_avg_rating", "rejected_avg_rating"),  # argilla/ultrafeedback-binarized-preferences
    ("chosen_score", "rejected_score"),
)
"""Ratings of chosen and rejected, as data sets name them; of several the first counts."""

LISTS = ("rating", "generations")
"""Ratings of argilla/distilabel-intel-orca-dpo-pairs, and the responses that they are of, in the same order."""

RATING_COLUMNS = frozenset(name for names in (*COLUMNS, LISTS) for name in names)


@dataclasses.dataclass(frozen=True)
class Ratings:
    """What a build does with ratings."""

    min_margin: float | None = None
    """Keep a pair if its chosen response is rated higher by at least this; None: whatever the ratings are."""
    as_margin: bool = False
    """The margin of a pair that has none is the difference of its ratings."""

    def __bool__(self) -> bool:
        return self.as_margin or self.min_margin is not None

    def applied(self, record: Record, columns: Columns) -> Record:
        """The record of a pair, with its margin.

        Raises:
            RecordError: it needs ratings and has none, or one is no number.
            NoPreferenceError: the ratings are too near each other.
        """
        if self.min_margin is None and record.margin is not None:
            return record  # nothing is left to take from ratings
        gap = record.rated_higher_by
        if gap is None:
            if all(map(columns.has, LISTS)):
                return self._kept(record, _listed_gap(record, columns))
            names = next((names for names in COLUMNS if all(map(columns.has, names))), None)
            if names is None:
                known = ", ".join(" and ".join(names) for names in COLUMNS)
                present = ", ".join(map(str, columns)) or "nothing"
                null = [one for names in COLUMNS for one in names if one in columns and columns.peek(one) is None]
                if null:
                    raise RecordError("no_ratings", f"column {null[0]!r} is null; a rating is needed")
                if columns.has(LISTS[0]) and isinstance(columns.peek(LISTS[0]), list):
                    what = f"column {LISTS[0]!r} is a list, and no column {LISTS[1]!r} says which responses it rates"
                    raise RecordError("no_ratings", f"{what}; pairs of this set cannot be kept by their ratings")
                for one, other in (pair for names in COLUMNS for pair in (names, names[::-1])):
                    if columns.has(one):
                        raise RecordError("no_ratings", f"has {one!r} but no {other!r}; both ratings are needed")
                raise RecordError("no_ratings", f"has no ratings of its responses; known are {known}; found: {present}")
            chosen, rejected = (number(columns[name], name) for name in names)
            gap = chosen - rejected
        return self._kept(record, gap)

    def _kept(self, record: Record, gap: float) -> Record:
        """The record with its margin. Raises NoPreferenceError if the gap is too small."""
        if self.min_margin is not None and gap < self.min_margin:
            what = f"the chosen response is rated higher by {gap:g}; needed: {self.min_margin:g} or more"
            raise NoPreferenceError("margin_too_small", what)
        return dataclasses.replace(record, margin=gap) if self.as_margin and record.margin is None else record


def _listed_gap(record: Record, columns: Columns) -> float:
    """By how much `chosen` is rated higher, from a list of ratings; texts say whose each is.

    Raises:
        RecordError: the lists do not fit together or hold the responses of the pair other than once each, or
            `chosen_score` is another rating than that of the chosen response.
    """
    ratings, texts = (columns[name] for name in LISTS)
    if not (isinstance(ratings, list) and isinstance(texts, list) and len(ratings) == len(texts)):
        raise RecordError("no_ratings", f"columns {LISTS[0]!r} and {LISTS[1]!r} must be lists of one length")
    values = []
    for name, response in (("chosen", record.chosen), ("rejected", record.rejected)):
        places = [
            at for at, one in enumerate(texts) if isinstance(one, str) and one.strip() == (response or "").strip()
        ]
        if len(places) != 1:
            what = f"column {LISTS[1]!r} holds the {name} response {len(places)} times"
            raise RecordError("no_ratings", f"{what}; needed: once, to tell which of {LISTS[0]!r} is its rating")
        values.append(number(ratings[places[0]], f"{LISTS[0]}[{places[0]}]"))
    if columns.has("chosen_score") and (score := number(columns["chosen_score"], "chosen_score")) != values[0]:
        what = f"column 'chosen_score' is {score:g}, but {LISTS[0]!r} rates the chosen response {values[0]:g}"
        raise RecordError("no_ratings", f"{what}; they must agree")
    return values[0] - values[1]
