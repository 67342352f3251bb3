"""Numbers as sentences, the same on the terminal and on the page."""

import dataclasses
from collections.abc import Iterator
from typing import Literal

from janus_jax.data.inspect.boundary_check import BoundaryCheck
from janus_jax.data.inspect.facts import Duplicates, LengthBias, PartFacts, Share, SplitFacts
from janus_jax.data.notes import said_of
from janus_jax.data.statistics import Histogram
from janus_jax.data.tally import located, reasons
from janus_jax.errors import counted
from janus_jax.text.served import served_lines


@dataclasses.dataclass(frozen=True)
class Statement:
    """A sentence with a list of details."""

    text: str
    details: tuple[str, ...] = ()


@dataclasses.dataclass(frozen=True)
class Table:
    """Cells as text; the first column names the line."""

    columns: tuple[str, ...]
    rows: list[tuple[str, ...]]


def percent(share: float) -> str:
    """A share with one decimal; only exact shares show as 0.0 % and 100.0 %."""
    text = f"{share * 100:.1f} %"
    if text == "100.0 %" and share < 1:
        return "> 99.9 %"
    return "< 0.1 %" if text == "0.0 %" and share > 0 else text


@dataclasses.dataclass(frozen=True)
class Verdict:
    """What the report comes to, with one line for each thing."""

    level: Literal["wrong", "look at this", "fine"]
    title: str
    lines: tuple[str, ...] = ()


def verdicts(splits: list[SplitFacts]) -> list[Verdict]:
    """The worst first. WRONG makes the command fail; FINE stands alone."""
    problems = [problem for facts in splits for problem in facts.problems]
    findings = [finding for facts in splits for finding in facts.findings]
    examples = counted(sum(facts.examples_read for facts in splits), "example")
    sound = "every response has tokens and, unless truncated, ends with EOS; BOS occurs once, at the start, if the "
    sound += "tokenizer has one."
    if not problems and not findings:
        return [Verdict("fine", f"FINE: No problems in {examples}: {sound}")]
    levels = []
    if problems:
        lines = (f"{counted(one.count, 'example')} with {one.fault}: {one.examples}" for one in problems)
        levels.append(Verdict("wrong", "WRONG: Do not train on this data.", tuple(lines)))
    if findings:
        lines = (
            f"{one.text} ({percent(one.share)}, threshold {one.kind}={one.threshold:g}), in {one.where}"
            for one in findings
        )
        no_error = "" if problems else f" Nothing is broken in {examples}: {sound}"
        title = f"LOOK AT THIS: {counted(len(findings), 'share')} past a threshold (--look-at sets it).{no_error}"
        levels.append(Verdict("look at this", title, tuple(lines)))
    return levels


def row_statements(facts: SplitFacts) -> Iterator[Statement]:
    """Rows and steps of the epoch."""
    rows, per_row = facts.rows, facts.rows.examples_per_row
    yield Statement(
        f"epoch {rows.epoch}: {counted(rows.rows, 'row')} of {rows.row_length:,} slots, "
        f"{counted(rows.examples, 'example')}; up to {rows.max_sequence_length:,} tokens per sequence"
    )
    if rows.steps is not None:
        yield Statement(f"{counted(rows.steps, 'step')} per epoch, {counted(rows.rows_per_step, 'row')} per step")
    if facts.epochs is not None and facts.role == "training":
        yield Statement(
            f"the run starts {counted(facts.epochs, 'epoch')} and reads {facts.examples_read:,} of "
            f"{counted(facts.total.examples, 'example')} at least once"
        )
    yield Statement(
        f"examples per row: mean {per_row.mean:.1f}, min {per_row.min:.0f}, max {per_row.max:.0f}, "
        f"limit {rows.max_segments:,}"
    )
    empty = f", with {counted(rows.padding_rows, 'empty row')}" if rows.padding_rows else ""
    yield Statement(
        f"mean fill of a row {percent(rows.mean_fill)}; padding {percent(rows.padding)} of all slots{empty}"
    )


def overlap_statements(facts: SplitFacts) -> Iterator[Statement]:
    """How many prompts also occur in the first split."""
    if facts.prompts_in_first is not None:
        yield Statement(
            f"overlap: {facts.prompts_in_first:,} of {counted(facts.total.usable, 'example')} "
            f"{'has' if facts.prompts_in_first == 1 else 'have'} a prompt that also occurs in {facts.first_title}"
        )


def named_parts(facts: SplitFacts) -> dict[str, PartFacts]:
    """The parts of a mixture and their total, or the single data set, by name."""
    if not facts.parts:
        return {facts.total.name: facts.total}
    return {part.name: part for part in facts.parts} | {f"all parts of {facts.split}": facts.total}


def shares_table(shares: list[Share]) -> Table:
    """What an epoch reads of each part of a mixture."""
    rows = [
        (
            share.name,
            "-" if share.weight is None else percent(share.weight),
            f"{share.usable:,}",
            f"{share.read:,}",
            percent(share.examples),
            percent(share.tokens),
            f"{share.passes:.2f}",
        )
        for share in shares
    ]
    return Table(("part", "weight", "usable", "read", "of examples", "of tokens", "passes"), rows)


def part_statements(part: PartFacts) -> Iterator[Statement]:
    """What is read, length bias, duplicates and the token boundary."""
    dropped = reasons(part.dropped_while_building, part.build_places.get("dropped", {}))
    yield Statement(
        f"{counted(part.examples, 'example')}, {part.tokens:,} tokens; dropped by `janus data build`: {dropped}"
    )
    yield Statement(
        f"{part.usable:,} usable; overlong: {part.dropped:,} dropped, {part.truncated:,} truncated, "
        f"{part.zeroed:,} left without responses"
    )
    if part.equal_pairs:
        yield Statement(
            f"{counted(part.equal_pairs, 'pair')} dropped: chosen and rejected have the same tokens, as they are read"
        )
    if part.keep_together:
        yield Statement(
            f"{counted(part.keep_together, 'example')} dropped by batch.keep_together: a neighbour in the block is"
        )
    for note, count in part.build_notes.items():
        if count:
            where = located(count, part.build_places.get("notes", {}).get(note, ()))
            yield Statement(f"note of the build: {counted(count, 'example')}{where} {said_of(note, count)}")
    if part.only_eos:
        yield Statement(f"note: {counted(part.only_eos, 'example')} with a response of EOS alone")
    if part.eos_inside:
        yield Statement(f"note: {counted(part.eos_inside, 'example')} with EOS inside a response, before its end")
    if part.length_bias:
        yield bias_statement(part.length_bias)
    yield duplicates_statement(part.duplicates)
    if part.boundary_check:
        yield boundary_statement(part.boundary_check)


def lengths_note(part: PartFacts) -> str:
    """Which examples the lengths are those of."""
    bias = "; chosen - rejected: of usable pairs, as read" if part.length_bias else ""
    return f"Tokens of all examples as built{bias}."


def lengths_table(part: PartFacts) -> Table:
    """Mean and quantiles of lengths in tokens."""
    lengths = part.lengths | ({"chosen - rejected": part.length_bias.difference} if part.length_bias else {})
    rows = [
        (name, f"{q.mean:,.1f}", *(f"{n:,.0f}" for n in (q.min, q.p05, q.p25, q.median, q.p75, q.p95, q.p99, q.max)))
        for name, q in lengths.items()
    ]
    return Table(("tokens", "mean", "min", "5%", "25%", "50%", "75%", "95%", "99%", "max"), rows)


def histograms(part: PartFacts) -> dict[str, Histogram]:
    """Histograms of the lengths in `lengths_table`."""
    return part.histograms | ({"chosen - rejected": part.length_bias.histogram} if part.length_bias else {})


def bias_statement(bias: LengthBias) -> Statement:
    """How well length alone tells chosen from rejected."""
    low, high = bias.interval
    verdict = "no better than chance" if low <= 0.5 <= high else "length alone tells them apart"
    return Statement(
        f"length bias: chosen is longer in {bias.longer:,} of {counted(bias.pairs, 'pair')} "
        f"({percent(bias.longer / bias.pairs)}), shorter in {bias.shorter:,}, equal in {bias.equal:,}",
        (
            f"choosing the longer response is right in {percent(bias.longer_wins)} "
            f"(95 % interval {low * 100:.1f}-{high * 100:.1f} %): {verdict}",
        ),
    )


def duplicates_statement(duplicates: Duplicates) -> Statement:
    """How many prompts and responses repeat, and the most frequent prompts."""
    repeated = {times: prompts for times, prompts in duplicates.prompts_by_count.items() if times > 1}
    examples = counted(duplicates.examples, "example")
    summary = f"duplicates: no prompt occurs twice in {examples}"
    if repeated:
        counts = ", ".join(
            f"{prompts:,} {'occurs' if prompts == 1 else 'occur'} {times} times"
            for times, prompts in list(repeated.items())[:8]
        )
        more = f" and {len(repeated) - 8} more counts" if len(repeated) > 8 else ""
        summary = f"duplicates: {duplicates.distinct_prompts:,} distinct prompts in {examples}; {counts}{more}"
    details = [f"{times:,} times: {text}" for times, text in duplicates.most_repeated]
    if duplicates.responses:
        details.append(f"{counted(duplicates.responses, 'repeat')} of an earlier prompt and response (chosen)")
    if duplicates.pairs:
        details.append(f"{counted(duplicates.pairs, 'repeat')} of an earlier pair, rejected included")
    if duplicates.swapped:
        details.append(
            f"{counted(duplicates.swapped, 'pair')} contradicted by another with chosen and rejected swapped"
        )
    return Statement(summary, tuple(details))


def boundary_statement(check: BoundaryCheck) -> Statement:
    """How often another way to tokenize gives other ids at the boundary of prompt and response."""
    if check.skipped_because:
        return Statement(f"token boundary: not checked: {check.skipped_because}")
    checked = "" if check.checked == check.examples else f"{check.checked:,} of "
    built = "separately" if check.boundary == "separate" else "as one text without a space"
    details = [
        f"{check.prompt_alone:,} with the prompt tokenized alone, as a server does",
        f"{check.with_space:,} as one text with a space between prompt and response",
        f"{check.without_space:,} as one text without a space",
    ]
    if check.not_reproduced:
        details.append(
            f"{check.not_reproduced:,} not compared: their texts in tfds/, tokenized as the manifest says, do not give "
            "the stored ids"
        )
    details += served_lines(check.served)
    if check.not_served:
        details.append(f"not what a server reads: {check.not_served}")
    for one in check.differences:
        details += [
            f"example {one.example}, stored: {one.stored}",
            f"example {one.example}, {one.tokenization}: {one.other}",
        ]
    return Statement(
        f"token boundary: prompt and response were tokenized {built}; {checked}"
        f"{counted(check.examples, 'example')} checked. Ids would differ in:",
        tuple(details),
    )
