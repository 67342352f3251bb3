"""What of a split's numbers is past its threshold."""

import dataclasses
from collections.abc import Iterator, Mapping

from janus_jax.data.inspect.facts import Finding, LengthBias, PartFacts, SplitFacts
from janus_jax.data.inspect.thresholds import SHORT
from janus_jax.data.notes import said_of
from janus_jax.data.tally import reasons
from janus_jax.errors import counted

_NOUNS = {"unknown": "token", "dropped_by_build": "record"}


def judged(facts: SplitFacts, thresholds: Mapping[str, float]) -> SplitFacts:
    """The split with its `findings`.

    Each part of a mixture is judged by itself. Of the whole, only those kinds are reported that no part shows, such as
    repeats across parts.
    """
    findings = [
        finding
        for part in facts.parts
        for finding in _of_part(f"{part.name}, split {facts.split}", facts.kind, part, thresholds)
    ]
    known = {finding.kind for finding in findings}
    whole = [*_of_part(facts.title, facts.kind, facts.total, thresholds), *_of_split(facts, thresholds)]
    return dataclasses.replace(facts, findings=findings + [f for f in whole if f.kind not in known])


def _of_part(where: str, data: str, part: PartFacts, thresholds: Mapping[str, float]) -> Iterator[Finding]:
    built, usable, duplicates = part.examples, part.usable, part.duplicates
    repeats = duplicates.responses if data == "sft" else duplicates.pairs
    prompts = duplicates.examples - duplicates.distinct_prompts
    by_build = sum(part.dropped_while_building.values())
    dropped = reasons(part.dropped_while_building, part.build_places.get("dropped", {}))
    check = part.boundary_check
    served = {} if check is None else check.served
    compared, refused = (check.checked, check.not_served) if check is not None else (0, "")
    other_template = "" if check is None else check.template_note
    shares = [
        ("not_served", int(bool(refused)), compared, refused),
        ("merged", served.get("merged", 0), compared, "prompt and response merge if they are one text"),
        ("control_text", served.get("control_text", 0), compared, "a text spells a control token; a server reads it"),
        ("other_template", built if other_template else 0, built, other_template),
        ("dropped", part.dropped, built, "over-long and dropped"),
        ("dropped", part.keep_together, built, "dropped by batch.keep_together with a neighbour"),
        ("truncated", part.truncated, built, "over-long and truncated"),
        ("truncated", part.zeroed, built, "over-long and left without responses"),
        ("equal_pairs", part.equal_pairs, built, "dropped, because chosen and rejected have the same tokens"),
        ("repeated", repeats, usable, "the same as an earlier one"),
        ("repeated_prompts", prompts, usable, "with the prompt of an earlier one"),
        ("contradicted", duplicates.swapped, usable, "contradicted by one with chosen and rejected swapped"),
        ("short", part.short, usable, f"a response has at most {SHORT} tokens, EOS included"),
        ("only_eos", part.only_eos, usable, "a response is EOS alone"),
        ("eos_inside", part.eos_inside, usable, "EOS is inside a response, before its end"),
        ("unknown", part.unknown, part.tokens, "the unknown token"),
        ("dropped_by_build", by_build, built + by_build, f"dropped by `janus data build`: {dropped}"),
        *(("build_notes", count, built, said_of(note, count)) for note, count in part.build_notes.items()),
    ]
    for kind, count, total, what in shares:
        if count and count / total > thresholds[kind]:
            noun = _NOUNS.get(kind, "example")
            text = f"{count:,} of {counted(total, noun)}: {what}"
            yield Finding(kind, where, text, count, total, count / total, thresholds[kind])
    if part.length_bias is not None:
        yield from _of_bias(where, part.length_bias, thresholds["length_bias"])


def _of_bias(where: str, bias: LengthBias, least: float) -> Iterator[Finding]:
    low, high = bias.interval
    for which, count, share, (lowest, highest) in (
        ("longer", bias.longer, bias.longer_wins, (low, high)),
        ("shorter", bias.shorter, 1 - bias.longer_wins, (1 - high, 1 - low)),
    ):
        if lowest > least:
            interval = f"95 % interval {lowest * 100:.1f}-{highest * 100:.1f} %"
            text = f"{count:,} of {bias.pairs:,} pairs: the {which} response is the chosen one; {interval}"
            yield Finding("length_bias", where, text, count, bias.pairs, share, least)


def _of_split(facts: SplitFacts, thresholds: Mapping[str, float]) -> Iterator[Finding]:
    shared, total, least = facts.prompts_in_first or 0, facts.total.usable, thresholds["held_out_in_train"]
    if shared and shared / total > least:
        text = f"{shared:,} of {counted(total, 'example')}: the prompt also occurs in {facts.first_title}"
        yield Finding("held_out_in_train", facts.title, text, shared, total, shared / total, least)
    fill, least = facts.rows.fill_of_others, thresholds["fill"]
    if fill is not None and fill < least:
        slots = (facts.rows.rows - 1) * facts.rows.row_length
        used = round(fill * slots)
        text = f"{used:,} of {slots:,} slots hold a token, the emptiest row left out"
        yield Finding("fill", facts.title, text, used, slots, fill, least)
