"""Numbers as sentences, the same on the terminal and on the page."""

from collections.abc import Iterator

from janus_jax.data.inspect.boundary_check import Borders
from janus_jax.data.inspect.facts import LengthBias, PartFacts, Repeats, SplitFacts


def percent(share: float) -> str:
    """A share with one decimal; what is not all or nothing does not look like it."""
    shown = f"{share * 100:.1f} %"
    if shown == "100.0 %" and share < 1:
        return "> 99.9 %"
    return "< 0.1 %" if shown == "0.0 %" and share > 0 else shown


def counted(number: int, one: str, many: str = "") -> str:
    """A number with its noun."""
    return f"{number:,} {one if number == 1 else many or one + 's'}"


def row_lines(facts: SplitFacts) -> Iterator[str]:
    """Rows and steps of the epoch."""
    rows = facts.rows
    yield (
        f"{counted(rows.rows, 'row')} of {rows.row_length:,} slots in epoch {rows.epoch}, "
        f"{counted(rows.examples, 'example')}; at most {rows.max_sequence_length:,} tokens a sequence"
    )
    if rows.steps is not None:
        yield f"{counted(rows.steps, 'step')} of {counted(rows.rows_per_step, 'row')} each an epoch"
    if facts.epochs is not None and facts.role == "training":
        yield (
            f"{counted(facts.epochs, 'epoch')} begun by the run: it reads {facts.read_ever:,} of "
            f"{counted(facts.whole.examples, 'example')} at least once"
        )
    per = rows.examples_per_row
    yield f"examples a row: mean {per.mean:.1f}, {per.least:.0f} to {per.most:.0f} (cap {rows.max_segments})"
    filled = f" ({counted(rows.padding_rows, 'row')} of padding)" if rows.padding_rows else ""
    yield f"mean fill of a row {percent(rows.fill)}; padding {percent(rows.padding)} of all slots{filled}"


def overlap_lines(facts: SplitFacts) -> Iterator[str]:
    """Prompts that an earlier split has too."""
    if facts.prompts_also_in_first is not None:
        yield f"{facts.prompts_also_in_first:,} of {facts.whole.fit:,} have a prompt that is also in {facts.first}"


def count_lines(part: PartFacts) -> Iterator[str]:
    """What is read and what is not."""
    dropped = ", ".join(f"{count:,} {reason}" for reason, count in part.dropped_while_building.items())
    yield f"{counted(part.examples, 'example')}, {part.tokens:,} tokens; dropped while building: {dropped or 'none'}"
    yield (
        f"{part.fit:,} fit; over-long: {part.dropped:,} dropped, {part.truncated:,} truncated, "
        f"{part.zeroed:,} left without responses"
    )
    if part.empty:
        yield f"note: {counted(part.empty, 'example')} with a response that is nothing but EOS"
    if part.eos_inside:
        yield f"note: {counted(part.eos_inside, 'example')} with EOS inside a response, before its end"


def lengths_note(part: PartFacts) -> str:
    """Whose lengths the table has."""
    bias = "; chosen - rejected: of those that fit, as they are read" if part.bias else ""
    return f"Tokens of all examples as they were built{bias}."


def bias_lines(bias: LengthBias | None) -> Iterator[str]:
    """How far length tells chosen from rejected."""
    if bias is None:
        return
    low, high = bias.interval
    yield (
        f"length bias: chosen is longer in {bias.longer:,} of {counted(bias.pairs, 'pair')} "
        f"({percent(bias.longer / bias.pairs)}), shorter in {bias.shorter:,}, equal in {bias.equal:,}"
    )
    verdict = "no better than chance" if low <= 0.5 <= high else "length alone tells them apart"
    yield (
        f'  "the longer one is chosen" would be right on {percent(bias.longer_wins)} '
        f"(95 % interval {low * 100:.1f}-{high * 100:.1f} %): {verdict}"
    )


def repeat_lines(repeats: Repeats) -> Iterator[str]:
    """What occurs more than once, and the prompts that do so most often."""
    again = {times: count for times, count in repeats.times.items() if times > 1}
    if again:
        listed = ", ".join(f"{count:,} occur {times} times" for times, count in list(again.items())[:8])
        more = f" and {len(again) - 8} more counts" if len(again) > 8 else ""
        of = counted(repeats.examples, "example")
        yield f"repeats: {repeats.prompts:,} different prompts in {of}; {listed}{more}"
    else:
        yield f"repeats: no prompt occurs twice among {counted(repeats.examples, 'example')}"
    for times, text in repeats.most:
        yield f"  {times:,} times: {text}"
    if repeats.responses:
        yield f"  {counted(repeats.responses, 'example')} with a prompt and response (chosen) that occurred before"
    if repeats.wholes:
        yield f"  {counted(repeats.wholes, 'pair')} that occurred before, rejected included"
    if repeats.reversed:
        yield f"  {counted(repeats.reversed, 'pair')} that stand the other way round too: they contradict each other"


def border_lines(borders: Borders | None) -> Iterator[str]:
    """How the border of prompt and response would be cut otherwise."""
    if borders is None:
        return
    if borders.why_not:
        yield f"token boundary: not checked: {borders.why_not}"
        return
    what = "all" if borders.checked == borders.of else f"{borders.checked:,} of"
    built = "apart" if borders.boundary == "separate" else "as one text without a space"
    yield (
        f"token boundary: prompt and response were tokenized {built}; on the texts of {what} "
        f"{counted(borders.of, 'example')} this is cut otherwise:"
    )
    yield f"  {borders.prompt_alone:,} where the prompt is tokenized alone, as a server does"
    yield f"  {borders.with_space:,} as one text with a space between prompt and response"
    yield f"  {borders.without_space:,} as one text without a space"
    if borders.other_rows:
        yield (
            f"  {borders.other_rows:,} could not be judged: their texts in tfds/, tokenized as the manifest says, do "
            "not give the stored ids"
        )
    for one in borders.shown:
        yield f"  example {one.example}, {one.form}: stored {one.stored}"
        yield f"    otherwise {one.otherwise}"
