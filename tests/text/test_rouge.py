"""Our ROUGE-L equals that of the package rouge-score."""

import itertools
import json
import os
import random
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rouge_score.rouge_scorer import RougeScorer

from janus_jax.text.rouge import longest_common, rouge_l, unseen_share, words

REAL = os.environ.get("JANUS_REAL_DATA")
SCORER = RougeScorer(["rougeL"], use_stemmer=False)
AWKWARD = [
    "",
    " \n\t",
    "...?!",
    "it's a don't-care: e.g. 3.14, x_y",
    "IT'S A DON'T CARE",
    "\u0130stanbul \u0131ss\u0131z \u212a \u017f ß Straße naïve café",
    "cafe\u0301 m² ½ \u0663 \uff14 ﬁne",
    "日本語 text と code",
    "a\u00a0b\u2003c\x1fd\u200be\x00f",
    "the the the cat the cat sat",
    "cat the the sat the",
]


def theirs(one: str, other: str) -> float:
    return SCORER.score(one, other)["rougeL"].fmeasure


@pytest.mark.parametrize("one", AWKWARD)
def test_awkward_texts_score_the_same(one):
    for other in AWKWARD:
        assert rouge_l(words(one), words(other)) == theirs(one, other), (one, other)


@settings(max_examples=50, deadline=None)
@given(st.lists(st.text("abAİK9 .-é\n", max_size=30), min_size=2, max_size=2))
def test_random_texts_score_the_same(texts):
    assert rouge_l(*map(words, texts)) == theirs(*texts)


def test_long_texts_of_many_repeated_words_score_the_same():
    chosen = random.Random(0)
    for vocabulary in (2, 5, 40):
        one, other = (
            " ".join(str(chosen.randrange(vocabulary)) for _ in range(chosen.randrange(60, 200))) for _ in range(2)
        )
        assert rouge_l(words(one), words(other)) == theirs(one, other)
        assert longest_common(words(one), words(other)) == longest_common(words(other), words(one))


@pytest.mark.skipif(not REAL, reason="JANUS_REAL_DATA names no folder of real rows")
def test_real_texts_score_the_same():
    lines = Path(str(REAL), "biggen_bench_part.jsonl").read_text(encoding="utf-8").splitlines()[:40]
    texts = [json.loads(line)["reference_answer"][:1500] for line in lines]
    for one, other in itertools.pairwise(texts):
        assert rouge_l(words(one), words(other)) == theirs(one, other)


def test_letters_that_it_does_not_see_are_a_share():
    assert unseen_share(["", "...", "abc 12"]) == 0
    assert unseen_share(["日本 ab"]) == 0.5
