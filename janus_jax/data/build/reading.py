"""The records of every split of a build, and what the build has to say about them."""

import dataclasses
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from janus_jax.data.build.derive import Derivation, derive_pairs, for_pairs
from janus_jax.data.build.ratings import Ratings
from janus_jax.data.build.readers import read_records
from janus_jax.data.build.selection import Contents, HeldOut, without_repeats
from janus_jax.data.build.sources import OVERRULE
from janus_jax.data.notes import notes_of
from janus_jax.data.schema import Record
from janus_jax.data.tally import Tally, note, places_of
from janus_jax.errors import DataError


@dataclasses.dataclass(frozen=True)
class Choice:
    """Which records a build keeps."""

    dedupe: bool = False
    """Keep one of the records whose texts and margin look equal (`columns.alike`)."""
    validation_fraction: float | None = None
    """Share of the prompts of split train whose records become split validation."""
    validation_seed: int = 0
    """Seed of that draw."""


class Reading:
    """Reads splits one after another and counts what it leaves out.

    Args:
        files: split name -> files.
        scratch: a directory for files that are needed while reading.
    """

    def __init__(
        self,
        files: Mapping[str, Sequence[Path]],
        kind: str,
        choice: Choice,
        *,
        derive: Derivation | None,
        ratings: Ratings | None = None,
        skip_bad: bool,
        scratch: Path,
    ):
        fraction = choice.validation_fraction
        if fraction is not None and not 0 < fraction < 1:
            raise DataError(f"validation_fraction={fraction:g}: allowed: more than 0 and less than 1")
        if fraction is not None and "train" not in files:
            names = ", ".join(files)
            raise DataError(
                f"validation_fraction={fraction:g}: names in the source say split {names}, and there is no split train "
                f"to take it from; to train on a file of it, {OVERRULE}"
            )
        if fraction is not None and "validation" in files:
            raise DataError(f"validation_fraction={fraction:g}: the source has a split validation already")
        self.splits = [*files, *(["validation"] if fraction is not None else [])]
        self.kind, self.choice, self.derive, self.ratings, self.skip_bad = kind, choice, derive, ratings, skip_bad
        self._files, self._scratch = dict(files), scratch
        self._held_out: HeldOut | None = None
        self._contents: dict[str, Contents] = {name: Contents() for name in self.splits}
        self.dropped, self.unread, self.notes = ({name: Tally() for name in self.splits} for _ in range(3))

    def records(self, split: str) -> Iterator[Record]:
        """The records of a split, read as they are asked for."""
        dropped, choice = self.dropped[split], self.choice
        drawn = split not in self._files
        if choice.validation_fraction is not None and split in ("train", "validation"):
            if self._held_out is None:
                every = self._checked("train", Counter(), Counter())
                self._held_out = HeldOut(every, choice.validation_fraction, choice.validation_seed)
            held_out = self._held_out
            # both splits read the files of train; what is wrong with those counts once
            counters = (Counter[str](), Counter[str]()) if drawn else (dropped, self.unread[split])
            records = (one for one in self._checked("train", *counters) if (one in held_out) == drawn)
        else:
            records = self._checked(split, dropped, self.unread[split])
        if choice.dedupe:
            records = without_repeats(records, dropped)
        if self.derive is not None:
            options = dataclasses.asdict(self.derive)
            records = derive_pairs(records, self.kind, scratch=self._scratch, dropped=dropped, **options)
        notes, margins, without = self.notes[split], 0, Tally()
        for record in records:
            self._contents[split].add(record, named=split != "train")
            for one in notes_of(record):
                note(notes, one, record.place)
            margins += record.margin is not None
            if record.margin is None:
                note(without, "no_margin", record.place)
            yield record
        if margins and without:
            notes.update(without)
            notes.places |= without.places

    def _checked(self, split: str, dropped: Counter[str], unread: Counter[str]) -> Iterator[Record]:
        kind = self.kind if self.derive is None else "sft"
        options = {"skip_bad": self.skip_bad, "ratings": self.ratings, "dropped": dropped, "unread": unread}
        records = read_records(self._files[split], kind, **options)
        return records if self.derive is None else for_pairs(records)

    def compare(self) -> None:
        """Compares all splits with train, after they were read: counts prompts that train has too.

        Raises:
            DataError: a split holds the same records as train.
        """
        for split in self.splits if "train" in self.splits else ():
            if split == "train":
                continue
            if self._contents[split].same(self._contents["train"]):
                raise DataError(f"split {split}: holds the same records as split train; give it records of its own")
            for place in self._contents[split].prompts_in(self._contents["train"]):
                note(self.notes[split], "prompt_in_train", place)

    def facts(self, split: str) -> dict[str, Any]:
        """Fields of `dataset.Split` that only reading knows."""
        return facts_of(self.dropped[split], self.notes[split], self.unread[split])


def facts_of(dropped: Tally, notes: Tally, unread: Tally) -> dict[str, Any]:
    """Fields of `dataset.Split` for the counts of a split."""
    counts = {"dropped": dropped, "notes": notes, "unread": unread}
    facts: dict[str, Any] = {name: dict(sorted(count.items())) for name, count in counts.items()}
    return facts | {"places": {name: named for name, count in counts.items() if (named := places_of(count))}}
