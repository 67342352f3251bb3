"""What the verdict points at, for each kind, with the numbers that were put into the data."""

import dataclasses

import pytest

from janus_jax.data.dataset import TokenizedDataset
from janus_jax.data.epoch import BatchSettings, PackedEpochs
from janus_jax.data.inspect.boundary_check import BoundaryCheck
from janus_jax.data.inspect.facts import SplitFacts, split_facts
from janus_jax.data.inspect.opened import OpenedSplit
from janus_jax.data.inspect.scan import scan
from janus_jax.data.inspect.thresholds import KINDS, thresholds
from janus_jax.data.inspect.token_text import TokenDecoder
from janus_jax.data.inspect.verdict import judged
from janus_jax.data.mixture import Mixture
from janus_jax.errors import ConfigError
from tests.support.repository import ROOT

GOOD = [(f"What is {n}?", f"It is number {n}." + " So it is." * (n % 2), f"Maybe {n}, I guess.") for n in range(10, 20)]
"""Ten pairs with nothing to look at; chosen is the longer response in half of them."""
LONG = "word " * 40
SETTINGS = BatchSettings(row_length=128, max_sequence_length=32, rows=1)


def facts_of(*directories, notes=None, dropped=None, **settings) -> SplitFacts:
    """Numbers of one data set, or of several as a mixture; `notes` and `dropped` are what its build left."""
    parts = [TokenizedDataset(directory) for directory in directories]
    for part in parts:
        split = part.manifest.splits["train"]
        split.dropped.update(dropped or {})
        if notes:
            object.__setattr__(split, "notes", notes)
    dataset, tokenizer = parts[0] if len(parts) == 1 else Mixture(parts), parts[0].tokenizer()
    packed = PackedEpochs(dataset, dataclasses.replace(SETTINGS, **settings), branches=2 - (parts[0].kind == "sft"))
    opened = OpenedSplit("split", packed, "dpo", None)
    return split_facts(opened, [scan(part, tokenizer.unk_id) for part in parts], 0, TokenDecoder(tokenizer))


def findings(facts: SplitFacts, *given: str) -> dict[str, tuple[int, int]]:
    """Count and total by kind."""
    return {one.kind: (one.count, one.total) for one in judged(facts, thresholds(given)).findings}


def test_there_is_nothing_to_look_at_in_good_data(write):
    assert findings(facts_of(write("dpo", train=GOOD))) == {}
    assert findings(facts_of(write("sft", "sft", train=[texts[:2] for texts in GOOD]))) == {}


NEW = "What is it?"
CASES = {
    "dropped": ([(NEW, LONG, "No, not so.")], {}, (1, 11)),
    "truncated": ([(NEW, LONG, "No, not so.")], {"overlong": "truncate"}, (1, 11)),
    "truncated to nothing": ([(NEW, LONG, "No, not so.")], {"overlong": "zero_grad"}, (1, 11)),
    "equal_pairs": ([(NEW, LONG + "a", LONG + "b")], {"overlong": "truncate"}, (1, 11)),
    "equal_pairs as built": ([(NEW, "This and that.", "This and that.")], {}, (1, 11)),
    "repeated": ([GOOD[0], GOOD[0]], {}, (2, 12)),
    "repeated_prompts": ([(p, f"It is {p} then.", f"No, {p} is not.") for p, *_ in GOOD + GOOD[:1]], {}, (11, 21)),
    "contradicted": ([(p, r, c) for p, c, r in GOOD[:1]], {}, (2, 11)),
    "short": ([(NEW, "Yes.", "I do not think so.")], {}, (1, 11)),
    "only_eos": ([(NEW, "", "I do not think so.")], {}, (1, 11)),
    "eos_inside": ([(NEW, "This and that.", [50, 51, 2, 52, 2])], {}, (1, 11)),
    "unknown": ([([1, 50, 0, 51], [50, 52, 53, 0, 2], [50, 52, 53, 2])], {}, (2, None)),
    "dropped_by_build": ([], {"dropped": {"empty_field": 3, "tie": 2}}, (5, 15)),
    "build_notes": ([], {"notes": {"template marks": 4}}, (4, 10)),
    "length_bias": ([], {}, None),
    "held_out_in_train": ([], {}, None),
    "fill": ([], {}, None),
}


def test_every_kind_has_its_case():
    assert {name.split()[0] for name in CASES} | SERVED.keys() == set(KINDS)


SERVED = {
    "not_served": ({}, "train example 3: a server would not read this prompt", (1, 10)),
    "merged": ({"checked": 10, "merged": 2, "control_text": 0, "example": ("train example 3", "a", "b")}, "", (2, 10)),
    "control_text": ({"checked": 10, "merged": 0, "control_text": 3, "example": None}, "", (3, 10)),
    "other_template": ({"note": "template mistral-inst may be the wrong one"}, "", (10, 10)),
}


@pytest.mark.parametrize("kind", SERVED)
def test_what_a_server_would_read_in_another_way_is_pointed_at(write, kind):
    counts, reason, expected = SERVED[kind]
    facts = facts_of(write("dpo", train=GOOD))
    check = BoundaryCheck("separate", 10, 10, "", 0, 0, 0, 0, [], served=counts, not_served=reason)
    check = dataclasses.replace(check, template_note=counts.get("note", ""))
    total = dataclasses.replace(facts.total, boundary_check=check)
    assert findings(dataclasses.replace(facts, total=total)) == {kind: expected}


@pytest.mark.parametrize("name", [name for name, (*_, expected) in CASES.items() if expected])
def test_a_share_above_its_threshold_is_pointed_at(write, name):
    extra, settings, (count, total) = CASES[name]
    kind = name.split()[0]
    facts = facts_of(write("dpo", train=GOOD + extra), **settings)
    total = total or facts.total.tokens
    assert findings(facts)[kind] == (count, total)
    (finding,) = (one for one in judged(facts, thresholds()).findings if one.kind == kind)
    assert finding.text.startswith(f"{count:,} of {total:,} ") and finding.share == count / total > finding.threshold
    assert kind not in findings(facts, f"{kind}={count / total!r}")  # it must be past it


def test_a_response_of_one_record_is_repeated_by_prompt_and_response(write):
    rows = [texts[:2] for texts in GOOD]
    facts = facts_of(write("sft", train=rows * 4))
    assert findings(facts) == {"repeated": (30, 40), "repeated_prompts": (30, 40)}


def test_what_goes_with_a_neighbour_is_told_apart(write):
    extra = [(NEW, LONG, "No, not so."), (NEW + "!", "This and that.", "No, not so.")]
    facts = facts_of(write("dpo", train=GOOD + extra), rows=None, examples=2, keep_together=2)
    assert [(one.kind, one.text) for one in judged(facts, thresholds(["fill=0"])).findings] == [
        ("dropped", "1 of 12 examples: over-long and dropped"),
        ("dropped", "1 of 12 examples: dropped by batch.keep_together with a neighbour"),
    ]


@pytest.mark.parametrize("side", ["longer", "shorter"])
def test_length_bias_is_pointed_at_if_the_whole_interval_is_past_the_threshold(write, side):
    def texts(count):
        pairs = [(f"What is {n}?", f"It is number {n}, and so on.", f"Maybe {n}.") for n in range(10, 10 + count)]
        return pairs if side == "longer" else [(prompt, rejected, chosen) for prompt, chosen, rejected in pairs]

    few, many = (facts_of(write("dpo", f"d{count}", train=texts(count))) for count in (5, 40))
    assert "length_bias" not in findings(few)  # 57-100 %
    assert findings(many) == {"length_bias": (40, 40)}
    (finding,) = judged(many, thresholds()).findings
    assert f"the {side} response is the chosen one; 95 % interval 91.2-100.0 %" in finding.text and finding.share == 1
    assert findings(many, "length_bias=0.92") == {}


def test_rows_that_are_little_filled_are_pointed_at_unless_it_is_one_row(write):
    directory = write("dpo", train=GOOD)
    facts = facts_of(directory, row_length=64, max_segments=1)
    (finding,) = judged(facts, thresholds()).findings
    slots = [texts + 1 for texts in sorted(TokenizedDataset(directory).lengths.sum(1) - 2)]
    assert (finding.kind, finding.count, finding.total) == ("fill", sum(slots[1:]), 9 * 64)
    assert findings(facts, f"fill={finding.share!r}") == {}
    assert findings(facts_of(directory, row_length=4096)) == {}


def test_held_out_prompts_that_are_trained_on_are_pointed_at(write):
    facts = dataclasses.replace(facts_of(write("dpo", train=GOOD)), prompts_in_first=1, first_title="the training set")
    (finding,) = judged(facts, thresholds()).findings
    assert finding.text == "1 of 10 examples: the prompt also occurs in the training set"
    assert findings(facts, "held_out_in_train=0.1") == {}


def test_a_part_of_a_mixture_does_not_hide_behind_the_others(write):
    first, second = write("dpo", "a", train=GOOD), write("dpo", "b", train=[GOOD[0], ("Why so?", LONG, "No idea.")])
    findings = judged(facts_of(first, second), thresholds(["dropped=0.3"])).findings
    assert [(one.kind, one.where, one.count, one.total) for one in findings] == [
        ("dropped", f"{second}, split train", 1, 2),
        ("repeated", f"{first}, {second}, split train", 1, 11),  # only both together show it
    ]


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ("droped=1", "--look-at droped=1: allowed: KIND=SHARE, with a KIND of dropped, truncated"),
        ("dropped", "--look-at dropped: allowed: KIND=SHARE"),
        ("dropped=0.1,", "--look-at : allowed: KIND=SHARE"),
        ("dropped=1.5", "--look-at dropped=1.5: allowed: a share from 0 to 1, like dropped=0.05"),
        ("dropped=nan", "--look-at dropped=nan: allowed: a share from 0 to 1"),
        ("dropped=1 %", "--look-at dropped=1 %: allowed: a share from 0 to 1"),
    ],
)
def test_a_threshold_that_makes_no_sense_is_refused(given, message):
    with pytest.raises(ConfigError) as error:
        thresholds([given])
    assert str(error.value).startswith(message)


def test_thresholds_that_are_not_given_keep_their_defaults_which_the_docs_state():
    assert thresholds(["fill=0.5, short=1", "only_eos=0.25"]) == {
        name: kind.threshold for name, kind in KINDS.items()
    } | {"fill": 0.5, "short": 1, "only_eos": 0.25}
    table = [f"| `{name}` | {kind.threshold:g} | {kind.share_of} |" for name, kind in KINDS.items()]
    assert "\n".join(table) in (ROOT / "docs/data.md").read_text()
