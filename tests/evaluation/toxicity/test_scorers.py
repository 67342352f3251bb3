"""Scorers that run on this machine, and scores that were made elsewhere."""

import pytest
import torch
import transformers

from janus_jax.errors import ConfigError, DataError
from janus_jax.evaluation.toxicity.generations import read_generations
from janus_jax.evaluation.toxicity.given import read_given
from janus_jax.evaluation.toxicity.prompts import share
from janus_jax.evaluation.toxicity.scorers import SCORERS, ScorerOptions, described, is_papers
from tests.support.text_models import language_model
from tests.support.toxic import continued, write


def test_profanity_tells_rude_texts_from_others(tmp_path):
    scorer = SCORERS["profanity"](ScorerOptions(tmp_path / "r"))
    kind, rude = scorer.scores(["thank you, my friend", "shut up you idiot"])
    assert 0 <= kind < 0.3 < 0.7 < rude <= 1 and scorer.settings["version"]


@pytest.fixture(scope="module")
def classifier(tmp_path_factory):
    """A random classifier with two labels and the tokenizer of a language model."""
    path = language_model(tmp_path_factory.mktemp("c") / "lm")
    sizes = {"vocab_size": 400, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4}
    labels = {"id2label": {0: "fine", 1: "toxic"}, "label2id": {"fine": 0, "toxic": 1}}
    torch.manual_seed(1)
    config = transformers.BertConfig(**sizes, intermediate_size=64, initializer_range=0.5, **labels)
    transformers.BertForSequenceClassification(config).save_pretrained(path)
    return path


def test_a_classifier_gives_the_probability_of_its_label(classifier, tmp_path):
    texts = ["the quick brown fox", " naïve", "Why? the fox"]
    scorer = SCORERS["classifier"](ScorerOptions(tmp_path / "r", classifier=str(classifier), batch=2))
    model = transformers.AutoModelForSequenceClassification.from_pretrained(classifier).eval()
    tokenizer = transformers.AutoTokenizer.from_pretrained(classifier)
    with torch.no_grad():
        expected = [model(**tokenizer(one, return_tensors="pt")).logits.softmax(-1)[0, 1].item() for one in texts]
    assert scorer.scores(texts) == pytest.approx(expected, abs=1e-4)
    assert len({round(one, 3) for one in expected}) == 3
    assert scorer.settings == {"model": str(classifier), "label": "toxic"}


def test_a_classifier_that_cannot_be_is_refused(classifier, tmp_path):
    for options, what in (
        ({}, "needs --classifier"),
        ({"classifier": str(classifier), "label": "rude"}, "--label rude: allowed: fine, toxic"),
        ({"classifier": str(tmp_path)}, "cannot be loaded"),
    ):
        with pytest.raises(ConfigError, match=what):
            SCORERS["classifier"](ScorerOptions(tmp_path / "r", **options))


def test_only_perspectives_toxicity_is_the_papers():
    assert is_papers({"name": "perspective"}) and described({"name": "x"}) == "x"
    assert not is_papers({"name": "perspective", "url": "http://x"})


@pytest.fixture
def rows(tmp_path):
    return read_generations(write(tmp_path / "g.jsonl", [continued("a", ["x", "y"]), continued("b", ["z", ""])]))


LINES = [
    {"id": "b", "sample": 0, "score": 1},
    {"id": "a", "sample": 1, "score": None, "reason": "language"},
    {"id": "a", "sample": 0, "score": 0.25},
]


def test_given_scores_come_in_any_order_and_may_be_missing_by_name(rows, tmp_path):
    given = read_given(write(tmp_path / "s.jsonl", LINES), rows, "score", share)
    assert [[(one.value, one.reason) for one in row if one.value is None] for row in given] == [
        [(None, "language")],
        [(None, "empty")],
    ]
    assert given[0][0].value == 0.25 and given[1][0].value == 1.0


@pytest.mark.parametrize(
    ("lines", "what"),
    [
        ([], r"s.jsonl: lacks 3 continuations, the first of them id 'a', sample 0"),
        (LINES[:2], r"s.jsonl: lacks 1 continuation, the first of them id 'a', sample 0"),
        ([*LINES, LINES[0]], r"s.jsonl:4: is the second line of id 'b', sample 0"),
        ([LINES[0] | {"score": 1.5}], r"s.jsonl:1: column 'score' must be a number from 0 to 1, found float 1.5"),
        ([LINES[0] | {"score": "high"}], r"s.jsonl:1: column 'score' must be a number from 0 to 1"),
        ([LINES[0] | {"id": "c"}], r"s.jsonl:1: id .*c.* is no id of the continuations"),
        ([LINES[0] | {"sample": 2}], r"s.jsonl:1: sample .*2: allowed: 0 to 1"),
        ([{"id": "a", "sample": 0}], r"s.jsonl:1: a line needs id, sample and score"),
    ],
)
def test_given_scores_that_do_not_fit_are_refused(rows, tmp_path, lines, what):
    with pytest.raises(DataError, match=what):
        read_given(write(tmp_path / "s.jsonl", lines), rows, "score", share)
