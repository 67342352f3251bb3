"""Numbers as sentences, the same on the terminal and on the page."""

import dataclasses
from collections.abc import Iterator

from janus_jax.data.inspect.boundary_check import Borders
from janus_jax.data.inspect.facts import LengthBias, PartFacts, Repeats, Share, SplitFacts
from janus_jax.data.statistics import Histogram


@dataclasses.dataclass(frozen=True)
class Statement:
    """A sentence, and the list that belongs to it."""

    text: str
    details: tuple[str, ...] = ()


@dataclasses.dataclass(frozen=True)
class Table:
    """Cells as text; the first column names the row."""

    columns: tuple[str, ...]
    rows: list[tuple[str, ...]]


def percent(share: float) -> str:
    """A share with one decimal; what is not all or nothing does not look like it."""
    shown = f"{share * 100:.1f} %"
    if shown == "100.0 %" and share < 1:
        return "> 99.9 %"
    return "< 0.1 %" if shown == "0.0 %" and share > 0 else shown


def counted(number: int, one: str, many: str = "") -> str:
    """A number with its noun."""
    return f"{number:,} {one if number == 1 else many or one + 's'}"


def row_lines(facts: SplitFacts) -> Iterator[Statement]:
    """Rows and steps of the epoch."""
    rows = facts.rows
    yield Statement(
        f"{counted(rows.rows, 'row')} of {rows.row_length:,} slots in epoch {rows.epoch}, "
        f"{counted(rows.examples, 'example')}; at most {rows.max_sequence_length:,} tokens a sequence"
    )
    if rows.steps is not None:
        yield Statement(f"{counted(rows.steps, 'step')} of {counted(rows.rows_per_step, 'row')} each an epoch")
    if facts.epochs is not None and facts.role == "training":
        yield Statement(
            f"{counted(facts.epochs, 'epoch')} begun by the run: it reads {facts.read_ever:,} of "
            f"{counted(facts.whole.examples, 'example')} at least once"
        )
    per = rows.examples_per_row
    yield Statement(f"examples a row: mean {per.mean:.1f}, {per.least:.0f} to {per.most:.0f} (cap {rows.max_segments})")
    filled = f" ({counted(rows.padding_rows, 'row')} of padding)" if rows.padding_rows else ""
    yield Statement(f"mean fill of a row {percent(rows.fill)}; padding {percent(rows.padding)} of all slots{filled}")


def overlap_lines(facts: SplitFacts) -> Iterator[Statement]:
    """Prompts that an earlier split has too."""
    if facts.prompts_also_in_first is not None:
        yield Statement(
            f"{facts.prompts_also_in_first:,} of {facts.whole.fit:,} have a prompt that is also in {facts.first}"
        )


def named_parts(facts: SplitFacts) -> dict[str, PartFacts]:
    """The parts of a mixture and their total, or the one data set, by name."""
    if not facts.parts:
        return {facts.whole.name: facts.whole}
    return {part.name: part for part in facts.parts} | {f"all parts of {facts.split}": facts.whole}


def shares_table(shares: list[Share]) -> Table:
    """What an epoch reads of each part of a mixture."""
    rows = [
        (
            share.name,
            "-" if share.weight is None else percent(share.weight),
            f"{share.fit:,}",
            f"{share.read:,}",
            percent(share.examples),
            percent(share.tokens),
            f"{share.passes:.2f}",
        )
        for share in shares
    ]
    return Table(("part", "weight", "fit", "read", "examples", "tokens", "passes"), rows)


def part_lines(part: PartFacts) -> Iterator[Statement]:
    """What is read, length bias, repeats and the token boundary."""
    yield from count_lines(part)
    yield from bias_lines(part.bias)
    yield repeat_line(part.repeats)
    yield from border_lines(part.borders)


def count_lines(part: PartFacts) -> Iterator[Statement]:
    """What is read and what is not."""
    dropped = ", ".join(f"{count:,} {reason}" for reason, count in part.dropped_while_building.items()) or "none"
    yield Statement(f"{counted(part.examples, 'example')}, {part.tokens:,} tokens; dropped while building: {dropped}")
    yield Statement(
        f"{part.fit:,} fit; over-long: {part.dropped:,} dropped, {part.truncated:,} truncated, "
        f"{part.zeroed:,} left without responses"
    )
    if part.empty:
        yield Statement(f"note: {counted(part.empty, 'example')} with a response that is nothing but EOS")
    if part.eos_inside:
        yield Statement(f"note: {counted(part.eos_inside, 'example')} with EOS inside a response, before its end")


def lengths_note(part: PartFacts) -> str:
    """Whose lengths the table has."""
    bias = "; chosen - rejected: of those that fit, as they are read" if part.bias else ""
    return f"Tokens of all examples as they were built{bias}."


def lengths_table(part: PartFacts) -> Table:
    """Mean and quantiles of lengths in tokens."""
    spreads = part.lengths | ({"chosen - rejected": part.bias.difference} if part.bias else {})
    rows = [
        (name, f"{s.mean:,.1f}", *(f"{q:,.0f}" for q in (s.least, s.p05, s.p25, s.median, s.p75, s.p95, s.p99, s.most)))
        for name, s in spreads.items()
    ]
    return Table(("tokens", "mean", "least", "5%", "25%", "50%", "75%", "95%", "99%", "most"), rows)


def histograms(part: PartFacts) -> dict[str, Histogram]:
    """Histograms of the lengths in `lengths_table`."""
    return part.histograms | ({"chosen - rejected": part.bias.histogram} if part.bias else {})


def bias_lines(bias: LengthBias | None) -> Iterator[Statement]:
    """How far length tells chosen from rejected."""
    if bias is None:
        return
    low, high = bias.interval
    verdict = "no better than chance" if low <= 0.5 <= high else "length alone tells them apart"
    yield Statement(
        f"length bias: chosen is longer in {bias.longer:,} of {counted(bias.pairs, 'pair')} "
        f"({percent(bias.longer / bias.pairs)}), shorter in {bias.shorter:,}, equal in {bias.equal:,}",
        (
            f'"the longer one is chosen" would be right on {percent(bias.longer_wins)} '
            f"(95 % interval {low * 100:.1f}-{high * 100:.1f} %): {verdict}",
        ),
    )


def repeat_line(repeats: Repeats) -> Statement:
    """What occurs more than once, and the prompts that do so most often."""
    again = {times: count for times, count in repeats.times.items() if times > 1}
    examples = counted(repeats.examples, "example")
    text = f"repeats: no prompt occurs twice among {examples}"
    if again:
        listed = ", ".join(f"{count:,} occur {times} times" for times, count in list(again.items())[:8])
        more = f" and {len(again) - 8} more counts" if len(again) > 8 else ""
        text = f"repeats: {repeats.prompts:,} different prompts in {examples}; {listed}{more}"
    details = [f"{times:,} times: {text}" for times, text in repeats.most]
    if repeats.responses:
        details.append(
            f"{counted(repeats.responses, 'example')} with a prompt and response (chosen) that occurred before"
        )
    if repeats.wholes:
        details.append(f"{counted(repeats.wholes, 'pair')} that occurred before, rejected included")
    if repeats.reversed:
        details.append(
            f"{counted(repeats.reversed, 'pair')} that stand the other way round too: they contradict each other"
        )
    return Statement(text, tuple(details))


def border_lines(borders: Borders | None) -> Iterator[Statement]:
    """How the border of prompt and response would be cut otherwise."""
    if borders is None:
        return
    if borders.why_not:
        yield Statement(f"token boundary: not checked: {borders.why_not}")
        return
    what = "all" if borders.checked == borders.of else f"{borders.checked:,} of"
    built = "apart" if borders.boundary == "separate" else "as one text without a space"
    details = [
        f"{borders.prompt_alone:,} where the prompt is tokenized alone, as a server does",
        f"{borders.with_space:,} as one text with a space between prompt and response",
        f"{borders.without_space:,} as one text without a space",
    ]
    if borders.other_rows:
        details.append(
            f"{borders.other_rows:,} could not be judged: their texts in tfds/, tokenized as the manifest says, do "
            "not give the stored ids"
        )
    for one in borders.shown:
        details += [
            f"example {one.example}, stored: {one.stored}",
            f"example {one.example}, {one.form}: {one.otherwise}",
        ]
    yield Statement(
        f"token boundary: prompt and response were tokenized {built}; on the texts of {what} "
        f"{counted(borders.of, 'example')} this is cut otherwise:",
        tuple(details),
    )
