"""Numbers of the report against counts that are made in another way."""

import collections
import dataclasses
import statistics

import numpy as np
import pytest
import yaml

from janus_jax.config.run import load_config
from janus_jax.data.dataset import TokenizedDataset
from janus_jax.data.epoch import BatchSettings, PackedEpochs, Position
from janus_jax.data.inspect.facts import SplitFacts, split_facts
from janus_jax.data.inspect.opened import DirectoryOptions, OpenedSplit, open_splits
from janus_jax.data.inspect.scan import scan
from janus_jax.data.inspect.token_text import TokenDecoder
from janus_jax.data.statistics import Histogram, Quantiles, wilson_interval
from janus_jax.training.setup import prepare
from tests.support.broken_examples import BROKEN_EXAMPLES, GOOD_EXAMPLE
from tests.support.training_examples import random_examples, write_dataset


def facts_of(opened: OpenedSplit, epoch: int = 0) -> SplitFacts:
    scans = [scan(part, 0) for part in opened.mixture.parts]
    return split_facts(opened, scans, epoch, TokenDecoder(opened.packed.dataset.tokenizer()))


def facts_of_directory(directory, **options) -> SplitFacts:
    return facts_of(open_splits(str(directory), options=DirectoryOptions(**options))[0])


def view_of(directory, settings: BatchSettings, **options) -> OpenedSplit:
    return OpenedSplit(
        "split", PackedEpochs(TokenizedDataset(directory), settings, **{"branches": 2} | options), "dpo", None
    )


SETTINGS = BatchSettings(row_length=64, max_sequence_length=32, rows=1)


# --- What rows hold


@pytest.fixture(scope="module")
def pairs(tmp_path_factory):
    return write_dataset(
        tmp_path_factory.mktemp("pairs") / "d", {"train": random_examples(200, pairs=True)}, kind="dpo"
    )


@pytest.fixture
def config_of(tmp_path):
    """Writes a configuration that trains the data."""

    def write(data: dict, **sections) -> str:
        values = {
            "run": {"dir": str(tmp_path / "run"), "seed": 5},
            "model": {"preset": "tiny"},
            "data": data,
            "batch": {"rows": 4, "row_length": 64, "max_sequence_length": 24, "microbatches": 2},
            "objective": {"name": "dpo"},
            "schedule": {"name": "constant", "learning_rate": 1e-3, "epochs": 3},
        }
        path = tmp_path / "run.yaml"
        path.write_text(yaml.safe_dump(values | sections))
        return str(path)

    return write


def test_rows_and_fill_are_those_of_the_batches(pairs, config_of):
    opened = open_splits(config_of({"dir": str(pairs)}))[0]
    result = facts_of(opened, epoch=1).rows
    packed = opened.packed
    used, sizes = [], []
    for step in range(packed.steps(1)):
        batch = packed.read(packed.members(Position(1, step * packed.rows)))
        used += (batch.segment > 0).sum(1).tolist()
        sizes += batch.valid.sum(1).tolist()
    filled = [slots for slots in used if slots]
    assert (result.steps, result.rows_per_step, result.rows) == (packed.steps(1), 4, len(filled))
    assert result.padding_rows == len(used) - len(filled)
    assert result.mean_fill == pytest.approx(statistics.mean(filled) / 64, abs=1e-12)
    assert result.padding == pytest.approx(1 - sum(used) / (64 * len(used)), abs=1e-12)
    assert result.examples == sum(sizes) and result.examples_per_row.mean == pytest.approx(sum(sizes) / len(filled))
    counts = collections.Counter(min(int(slots / 64 * 100 // 5), 19) for slots in filled)
    assert result.fill_histogram.counts == [counts[bin] for bin in range(20)]


def test_what_is_shown_is_what_training_and_evaluation_read(tmp_path, config_of):
    """The loaders of a run, on eight devices."""
    examples = random_examples(150, pairs=True)
    directory = write_dataset(tmp_path / "d", {"train": examples, "validation": examples[:70]}, kind="dpo")
    batch = {"rows": 16, "row_length": 64, "max_sequence_length": 24, "microbatches": 2}
    for evaluation in ({"every_steps": 1}, {"every_steps": 1, "rows": 16}):
        path = config_of({"dir": str(directory)}, eval=evaluation, batch=batch)
        setup = prepare(load_config(path))
        for opened, loader in zip(open_splits(path), (setup.loader, setup.eval_loader), strict=True):
            assert loader is not None
            for epoch in range(2 if opened.role == "training" else 1):
                starts = [Position(epoch, step * loader.unit) for step in range(loader.steps(epoch))]
                rows = [row.tolist() for start in starts for row in loader.members(start)]
                assert [row.tolist() for row in opened.rows(epoch)] == rows
                assert facts_of(opened, epoch).rows.rows_per_step == loader.rows


def test_over_long_examples_are_counted_by_their_policy(pairs):
    dataset = TokenizedDataset(pairs)
    lengths = dataset.lengths.tolist()
    tight = dataclasses.replace(SETTINGS, max_sequence_length=14)
    over = [prompt + max(chosen, rejected) > 14 for prompt, chosen, rejected in lengths]
    dropped = facts_of(view_of(pairs, tight)).total
    assert (dropped.usable, dropped.dropped, dropped.truncated, dropped.zeroed) == (200 - sum(over), sum(over), 0, 0)
    cut = facts_of(view_of(pairs, dataclasses.replace(tight, overlong="truncate"))).total
    # random prompts have 12 tokens at most, so that a response always keeps two
    assert (cut.usable, cut.dropped, cut.truncated, cut.zeroed) == (200, 0, sum(over), 0)
    zeroed = facts_of(view_of(pairs, dataclasses.replace(tight, overlong="zero_grad"))).total
    assert (zeroed.usable, zeroed.dropped, zeroed.truncated, zeroed.zeroed) == (200, 0, 0, sum(over))


def test_what_was_dropped_while_building_is_told(sft_build):
    result = {facts.split: facts for facts in map(facts_of, open_splits(str(sft_build.directory)))}
    assert set(result) == {"train", "validation"}
    assert result["train"].total.dropped_while_building == {"empty_field": 1}
    assert result["validation"].total.dropped_while_building == {}


def test_a_mixture_is_told_as_a_whole_and_by_its_parts(tmp_path, config_of):
    sizes = {"a": 90, "b": 40}
    for seed, (name, size) in enumerate(sizes.items()):
        examples = random_examples(size, pairs=True, seed=seed)
        write_dataset(tmp_path / name, {"train": examples}, kind="dpo")
    mixture = [{"dir": str(tmp_path / "a"), "weight": 1}, {"dir": str(tmp_path / "b"), "weight": 3}]
    opened = open_splits(config_of({"mixture": mixture, "examples": 60}))[0]
    facts = facts_of(opened, epoch=2)
    batches = [
        opened.packed.read(opened.packed.members(Position(2, s * opened.packed.rows)))
        for s in range(opened.packed.steps(2))
    ]
    ids = np.concatenate([batch.example_id[batch.valid] for batch in batches])
    slots = collections.Counter()
    for batch in batches:
        for row in range(len(batch.tokens)):
            for place, example in enumerate(batch.example_id[row].tolist()):
                slots["a" if example < 90 else "b"] += int((batch.segment[row] == place + 1).sum())
    assert [share.read for share in facts.shares] == [int((ids < 90).sum()), int((ids >= 90).sum())] == [15, 45]
    assert [share.weight for share in facts.shares] == [0.25, 0.75]
    assert facts.shares[1].tokens == pytest.approx(slots["b"] / slots.total())
    fits = [sum(p + max(c, r) <= 24 for p, c, r in part.lengths.tolist()) for part in opened.packed.dataset.parts]
    assert [part.usable for part in facts.parts] == [share.usable for share in facts.shares] == fits
    assert facts.shares[1].passes == pytest.approx(45 / fits[1])
    assert facts.total.examples == 130 and facts.total.usable == sum(fits)
    assert facts.total.tokens == sum(int(part.lengths.sum()) for part in opened.packed.dataset.parts)


# --- Lengths


def test_quantiles_and_histograms_are_those_of_the_lengths(pairs):
    lengths = TokenizedDataset(pairs).lengths
    whole = facts_of_directory(pairs).total
    longest = sorted(int(p) + max(int(c), int(r)) for p, c, r in lengths)
    quantiles = whole.lengths["prompt + longer"]
    assert (quantiles.min, quantiles.max, quantiles.count) == (longest[0], longest[-1], 200)
    assert quantiles.median == statistics.median(longest) and quantiles.mean == pytest.approx(statistics.mean(longest))
    cuts = statistics.quantiles(longest, n=20, method="inclusive")
    assert (quantiles.p05, quantiles.p95) == (pytest.approx(cuts[0]), pytest.approx(cuts[18]))
    histogram = whole.histograms["prompt + longer"]
    for number, count in enumerate(histogram.counts):
        low = histogram.start + number * histogram.width
        assert count == sum(low <= value < low + histogram.width for value in longest)
    assert sum(histogram.counts) + histogram.below + histogram.above == 200


def test_outliers_stand_beside_a_histogram_and_are_counted():
    values = np.concatenate([np.arange(1000), [10**6] * 4, [-(10**6)] * 3])
    result = Histogram.of(values, "tokens")
    assert (result.below, result.above) == (
        int((values < result.start).sum()),
        1007 - result.below - sum(result.counts),
    )
    assert result.above >= 4 and result.below >= 3 and result.below + result.above <= 21
    assert len(result.counts) <= 26 and sum(result.counts) + result.below + result.above == 1007


def test_nothing_has_neither_quantiles_nor_bars():
    assert Quantiles.of(np.zeros(0)) == Quantiles(0, *[0.0] * 9)
    assert Histogram.of(np.zeros(0), "tokens").counts == [0]


@pytest.mark.parametrize(
    ("right", "count", "expected"), [(5, 10, (0.2366, 0.7634)), (0, 10, (0.0, 0.2775)), (81, 263, (0.2553, 0.3662))]
)
def test_intervals_are_those_that_others_print(right, count, expected):
    """The last one: Newcombe 1998, table I."""
    assert wilson_interval(right, count) == pytest.approx(expected, abs=5e-5)


def test_length_bias_counts_which_side_is_longer(write):
    texts = [("p", "one two three", "one"), ("q", "one", "one two"), ("r", "one two", "two"), ("s", "a", "b")]
    bias = facts_of_directory(write("dpo", train=texts)).total.length_bias
    assert bias is not None
    assert (bias.pairs, bias.longer, bias.shorter, bias.equal) == (4, 2, 1, 1)
    assert bias.difference.mean == pytest.approx((2 - 1 + 1 + 0) / 4)
    assert bias.longer_wins == 2.5 / 4 and bias.interval == wilson_interval(2.5, 4)


# --- Duplicates


def test_repeats_are_counted_exactly(write):
    texts = [
        ("What?", "Yes.", "No."),
        ("What?", "Yes.", "No."),  # again
        ("What?", "No.", "Yes."),  # the other way round
        ("What?", "Yes.", "Maybe."),
        ("Why?", "So.", "No."),
        ("How?", "Thus.", "No."),
        ("How?", "So.", "No."),
    ]
    duplicates = facts_of_directory(write("dpo", train=texts)).total.duplicates
    assert duplicates.distinct_prompts == 3 and duplicates.prompts_by_count == {1: 1, 2: 1, 4: 1}
    assert duplicates.responses == 2  # (What?, Yes.) a second and a third time
    assert duplicates.pairs == 1
    assert duplicates.swapped == 3  # both and the one that says the opposite
    assert [times for times, _ in duplicates.most_repeated] == [4, 2] and "What?" in duplicates.most_repeated[0][1]


def test_parts_of_a_text_are_not_taken_for_each_other(write):
    """The same ids, divided otherwise between prompt and response, are no repeat."""
    duplicates = facts_of_directory(
        write("sft", train=[([1, 50, 51], [52, 2]), ([1, 50], [51, 52, 2])])
    ).total.duplicates
    assert (duplicates.distinct_prompts, duplicates.responses) == (2, 0)


# --- What must not be trained on


@pytest.mark.parametrize("what", BROKEN_EXAMPLES)
@pytest.mark.parametrize("kind", ["dpo", "rm"])
def test_a_broken_example_is_found_wherever_it_stands(write, what, kind):
    directory = write(kind, train=[GOOD_EXAMPLE] * 5000 + [BROKEN_EXAMPLES[what], GOOD_EXAMPLE])
    (problem,) = facts_of_directory(directory).problems
    assert what in problem.fault and problem.count == 1
    assert f"{directory}, split train, example 5000 (" in problem.examples


def test_bos_in_a_response_is_one_too_many(write):
    (problem,) = facts_of_directory(write("sft", train=[("What?", [1, 50, 2]), ("What?", "Yes.")])).problems
    assert problem.fault == "more than one BOS" and "example 0" in problem.examples


def test_a_tokenizer_without_bos_needs_none(write):
    directory = write("sft", train=[([50, 51], "Yes.")])
    manifest = directory / "manifest.json"
    assert facts_of_directory(directory).problems
    manifest.write_text(manifest.read_text().replace('"bos": 1', '"bos": null'))
    assert facts_of_directory(directory).problems == []


def test_good_examples_have_no_problem(write):
    facts = facts_of_directory(write("dpo", train=[GOOD_EXAMPLE] * 3 + [("a", "", "b")]))
    assert facts.problems == [] and facts.total.only_eos == 1  # a response of EOS alone has a token to learn


def test_a_policy_that_cuts_or_zeroes_on_purpose_is_no_mistake(write):
    directory = write("dpo", train=[GOOD_EXAMPLE, ("What?", "word " * 60, "No.")])
    for overlong in ("truncate", "zero_grad"):
        opened = view_of(directory, dataclasses.replace(SETTINGS, overlong=overlong))
        facts = facts_of(opened)
        assert facts.problems == [] and facts.total.usable == 2
        bias = facts.total.length_bias
        assert bias is not None and bias.pairs == (2 if overlong == "truncate" else 1)  # one has no responses left
        assert bias.difference.max <= 32
        assert (facts.total.truncated, facts.total.zeroed) == ((1, 0) if overlong == "truncate" else (0, 1))


@pytest.mark.parametrize("head", ["lm", "value"])
def test_what_was_cut_need_not_end_with_eos_unless_a_reward_is_read_there(write, head):
    directory = write("dpo", train=[GOOD_EXAMPLE, ("What?", [50] * 60, "No.")])
    opened = view_of(directory, dataclasses.replace(SETTINGS, overlong="truncate"), head=head)
    assert [problem.fault for problem in facts_of(opened).problems] == (
        [] if head == "lm" else ["a response that does not end with EOS"]
    )


def test_an_example_that_is_not_read_breaks_nothing(write):
    directory = write("dpo", train=[GOOD_EXAMPLE, ("What?", [50] * 60, "No.")])
    assert facts_of(view_of(directory, SETTINGS)).problems == []
    assert facts_of_directory(directory).problems


def test_eos_inside_a_response_is_noted(write):
    whole = facts_of_directory(write("sft", train=[("What?", [50, 2, 51, 2]), ("What?", "Yes."), ("a", [2, 2])])).total
    assert whole.eos_inside == 2
    rejected = [GOOD_EXAMPLE, ("What?", "Yes.", [50, 2, 51, 2])]
    assert facts_of_directory(write("dpo", "pairs", train=rejected)).total.eos_inside == 1


def test_repeats_of_a_mixture_are_those_of_each_part_and_of_all(write, config_of):
    first = write("dpo", "a", train=[("One?", "a", "b"), ("Two?", "a", "b"), ("Two?", "b", "a")])
    second = write(
        "dpo", "b", train=[("Three?", "a", "b"), ("Two?", "a", "c"), ("Four?", "a", "b"), ("Four?", "a", "c")]
    )
    facts = facts_of(open_splits(config_of({"mixture": [{"dir": str(first)}, {"dir": str(second)}]}))[0])
    parts = [part.duplicates for part in facts.parts]
    assert [part.prompts_by_count for part in parts] == [{1: 1, 2: 1}, {1: 2, 2: 1}]
    assert [len(part.most_repeated) for part in parts] == [1, 1]
    assert "Two?" in parts[0].most_repeated[0][1] and "Four?" in parts[1].most_repeated[0][1]
    assert facts.total.duplicates.prompts_by_count == {1: 2, 2: 1, 3: 1}
    assert facts.total.duplicates.most_repeated == [(3, '"Two?"'), (2, '"Four?"')]


def test_of_a_mixture_only_what_the_run_reads_is_judged(tmp_path, config_of, write):
    """An epoch reads 5 of 40 examples; the one without EOS is as long as the good one that it replaces."""
    good, bad = ("What?", [50, 51, 2], [52, 2]), ("What?", [50, 51, 52], [52, 2])

    def open_split(name: str, broken: int | None) -> OpenedSplit:
        directory = write("dpo", name, train=[bad if at == broken else good for at in range(40)])
        mixture = [{"dir": str(directory), "weight": 1}]
        schedule = {"name": "constant", "learning_rate": 1e-3, "epochs": 2}
        return open_splits(config_of({"mixture": mixture, "examples": 5}, schedule=schedule))[0]

    plain = open_split("good", None)
    positions = [Position(epoch, step * 4) for epoch in range(2) for step in range(plain.packed.steps(epoch))]
    read = {int(example) for position in positions for example in plain.packed.example_ids(position)}
    assert len(read) == facts_of(plain).examples_read == 10
    assert facts_of(open_split("unread", min(set(range(40)) - read))).problems == []
    (problem,) = facts_of(open_split("read", min(read))).problems
    assert problem.count == 1 and f"example {min(read)} (" in problem.examples


@pytest.mark.parametrize("head", ["lm", "value"])
def test_the_verdict_on_weights_is_that_of_the_packed_rows(tmp_path, head):
    """Responses of any length, none among them: those that are named are those whose rows hold no learned token."""
    rng = np.random.default_rng(3)
    examples = random_examples(300, pairs=True)
    for number in rng.choice(300, 12, replace=False).tolist():
        side = "chosen" if number % 2 else "rejected"
        examples[number] = dataclasses.replace(examples[number], **{side: np.zeros(0, np.int32)})
    opened = view_of(write_dataset(tmp_path / "d", {"train": examples}, kind="dpo"), SETTINGS, head=head)
    empty = set()
    for row in opened.rows(0):
        batch = opened.packed.read([row])
        for place, example in enumerate(batch.example_id[0, batch.valid[0]].tolist()):
            for branch in (1, 2):
                mine = (batch.segment[0] == place + 1) & (batch.branch[0] == branch)
                learned = batch.weights[0, mine].sum()
                if head == "value":  # there a weight stands on the prompt's last token if nothing follows it
                    learned = (batch.position[0, mine] >= len(examples[example].prompt)).sum()
                if not learned:
                    empty.add(example)
    assert len(empty) == 12
    problem = next(problem for problem in facts_of(opened).problems if "without a token" in problem.fault)
    assert problem.count == 12 and f"example {min(empty)} (" in problem.examples
