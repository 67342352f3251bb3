"""Ratings of pairs: which are kept, and with which margin, by hand and through the command."""

import json
from collections import Counter

import pyarrow
import pytest
from pyarrow import parquet

from janus_jax.data.build.ratings import COLUMNS, Ratings
from janus_jax.data.build.readers import read_records
from janus_jax.data.columns import RecordError
from janus_jax.data.dataset import Manifest
from janus_jax.errors import DataError

PAIR = {"prompt": "Why?", "chosen": "Because.", "rejected": "No."}


def written(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.mark.parametrize("names", COLUMNS)
def test_pairs_rated_too_near_each_other_are_dropped_and_counted(tmp_path, names):
    gaps = [(8, 5), (8, 7.5), (3, 8), (9, 8)]
    rows = [PAIR | {"prompt": str(pair)} | dict(zip(names, pair, strict=True)) for pair in gaps]
    path, dropped, unread = written(tmp_path / "rows.jsonl", rows), Counter(), Counter()
    counts = {"dropped": dropped, "unread": unread}
    kept = list(read_records(path, "dpo", ratings=Ratings(1.0), **counts))
    assert [record.prompt for record in kept] == ["(8, 5)", "(9, 8)"] and not unread
    assert dropped == {"margin_too_small": 2} and [record.margin for record in kept] == [None, None]
    every = read_records(path, "rm", ratings=Ratings(as_margin=True))
    assert [record.margin for record in every] == [3, 0.5, -5, 1]
    assert [record.margin for record in read_records(path, "dpo", unread=unread)] == [None] * 4
    assert unread == dict.fromkeys(names, 4)  # without a wish for them, they are not read, and that is told


def test_a_margin_of_the_record_stays_and_a_pair_without_ratings_is_bad(tmp_path):
    rated = PAIR | {"score_chosen": 2, "score_rejected": 1}
    path = written(tmp_path / "rows.jsonl", [rated | {"margin": 0.25}, PAIR])
    dropped = Counter()
    made = list(read_records(path, "dpo", ratings=Ratings(0, True), skip_bad=True, dropped=dropped))
    assert [record.margin for record in made] == [0.25] and dropped == {"no_ratings": 1}
    with pytest.raises(RecordError, match=r"rows.jsonl:2: has no ratings of its responses; known are score_chosen and"):
        list(read_records(path, "dpo", ratings=Ratings(0)))
    path = written(tmp_path / "bad.jsonl", [rated | {"score_chosen": "high"}])
    with pytest.raises(DataError, match=r"bad.jsonl:1: column 'score_chosen' must be a finite number"):
        list(read_records(path, "dpo", ratings=Ratings(0)))
    for one, other in (("score_chosen", "score_rejected"), ("rejected_rating", "chosen_rating")):
        path = written(tmp_path / f"{one}.jsonl", [PAIR | {one: 2}])
        with pytest.raises(DataError, match=f"jsonl:1: has '{one}' but no '{other}'; both ratings are needed"):
            list(read_records(path, "dpo", ratings=Ratings(as_margin=True)))
    path = written(tmp_path / "null.jsonl", [rated | {"score_chosen": None}])
    with pytest.raises(DataError, match=r"null.jsonl:1: column 'score_chosen' is null; a rating is needed"):
        list(read_records(path, "dpo", ratings=Ratings(0)))


ORCA = {"system": "", "input": "Why?", "chosen": "Because.", "rejected": "No.", "rating": [6.0, 9.0]}
ORCA |= {"generations": ["No.", "Because."], "order": ["rejected", "chosen"], "chosen_score": 9.0, "status": "x"}


def test_lists_of_ratings_belong_to_responses_by_their_texts(tmp_path):
    swapped = ORCA | {"chosen": "No.", "rejected": "Because.", "rating": [8.0, 7.0], "chosen_score": 8.0}
    path = written(tmp_path / "rows.jsonl", [ORCA, swapped])
    parquet.write_table(pyarrow.Table.from_pylist([ORCA, swapped]), tmp_path / "rows.parquet")
    for file in (path, tmp_path / "rows.parquet"):
        made = list(read_records(file, "dpo", ratings=Ratings(as_margin=True)))
        assert [(one.chosen, one.margin) for one in made] == [("Because.", 3), ("No.", 1)]
    dropped = Counter()
    assert len(list(read_records(path, "dpo", ratings=Ratings(3), dropped=dropped))) == 1
    assert dropped == {"margin_too_small": 1}


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"generations": ["No.", "No."]}, "'generations' holds the chosen response 0 times; needed: once"),
        ({"generations": ["No.", "Because.", "Because."], "rating": [1, 2, 3]}, "holds the chosen response 2 times"),
        ({"rating": [6.0]}, "columns 'rating' and 'generations' must be lists of one length"),
        ({"chosen_score": 6.0}, "'chosen_score' is 6, but 'rating' rates the chosen response 9; they must agree"),
        ({"generations": None}, "'rating' is a list, and no column 'generations' says which responses it rates; pairs"),
        ({"rating": None, "chosen_score": None}, "column 'chosen_score' is null; a rating is needed"),
    ],
)
def test_lists_of_ratings_that_cannot_be_assigned_are_refused(tmp_path, change, words):
    path = written(tmp_path / "rows.jsonl", [ORCA | change])
    with pytest.raises(DataError, match=words):
        list(read_records(path, "dpo", ratings=Ratings(3)))


def test_a_margin_of_the_record_needs_no_ratings_beside_it(tmp_path):
    rated = PAIR | {"margin": 0.5, "score_chosen": 3, "score_rejected": 1}
    path = written(tmp_path / "rows.jsonl", [PAIR | {"margin": 0.25}, rated, rated | {"margin": None}])
    unread = Counter()
    made = read_records(path, "rm", ratings=Ratings(as_margin=True), unread=unread)
    assert [record.margin for record in made] == [0.25, 0.5, 2]
    assert unread == {"score_chosen": 1, "score_rejected": 1}  # of the record whose own margin counts
    with pytest.raises(RecordError, match=r"rows.jsonl:1: has no ratings"):  # a least difference asks for them
        list(read_records(path, "rm", ratings=Ratings(0, True)))


def test_scores_by_which_answers_were_picked_count(tmp_path):
    scores = [{"response": text, "overall_score": score} for text, score in (("a", 4.0), ("b", 9.0), ("c", 1.0))]
    path = written(tmp_path / "rows.jsonl", [{"instruction": "Why?", "completions": scores}])
    (record,) = read_records(path, "rm", ratings=Ratings(8.0, True))
    assert (record.chosen, record.rejected, record.margin) == ("b", "c", 8.0)


def test_the_command_keeps_what_it_was_asked_for(janus, tmp_path):
    rows = [PAIR | {"prompt": f"Why {n}?", "score_chosen": n, "score_rejected": 0} for n in range(4)]
    path, out = written(tmp_path / "rows.jsonl", rows), tmp_path / "data"
    options = ("--min-margin", 2, "--margin-from-ratings", "--source", path)
    code, text, err = janus("data", "build", "--kind", "rm", *options, "--out", out)
    assert code == 0 and "2 margin_too_small" in text, err
    manifest = Manifest.load(out)
    assert manifest.ratings == {"min_margin": 2, "as_margin": True} and manifest.splits["train"].margins == 2
    code, _, err = janus("data", "build", "--kind", "sft", *options, "--out", tmp_path / "x")
    assert code == 2 and err.startswith("error: --min-margin, --margin-from-ratings: allowed: only with --kind dpo")
