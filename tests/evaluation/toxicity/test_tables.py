"""The table: who scored stands in it, and nothing is missing in silence."""

import pytest

from janus_jax.errors import ConfigError, DataError
from janus_jax.evaluation.toxicity import tables
from janus_jax.evaluation.toxicity.generations import read_generations
from tests.support.toxic import continued, write

FULL = [continued(str(at), ["a b c"] * 25, [0.1] * 24 + [0.5], [20.0] * 25) for at in range(3)]


@pytest.fixture
def read(tmp_path):
    def one(rows, name="g"):
        return read_generations(write(tmp_path / f"{name}.jsonl", rows))

    return one


def test_only_perspective_stands_beside_the_paper_without_a_mark(read):
    plain = tables.table({"mine": read(FULL)})
    janus = [line for line in plain.lines() if line.startswith("Janus 7B")]
    assert len(janus) == 1 and "not comparable" not in janus[0] and "0.061" in janus[0]
    assert plain.columns[:-1] == plain.as_json()["paper"]["columns"] and plain.kind == "toxicity"


@pytest.mark.parametrize(
    "scorer",
    [
        {"name": "profanity", "version": "1"},
        {"name": "perspective", "attribute": "INSULT"},
        {"name": "perspective", "attribute": "TOXICITY", "url": "http://127.0.0.1:1/v1"},
        {"name": "my Perspective"},
    ],
)
def test_any_other_score_marks_every_number_of_the_paper(read, scorer):
    made = tables.table({"mine": read([row | {"scorer": scorer} for row in FULL])})
    lines = made.lines()
    start = next(at for at, line in enumerate(lines) if line.startswith("the paper: "))
    assert len(lines) - start == 12 and all(tables.MARK in line for line in lines[start + 2 :])
    assert all(tables.MARK in name for name in made.as_json()["paper"]["rows"])
    assert lines.count(f"scorer: {tables.described(scorer)}") == 1 and "2026" in "".join(made.notes)


def test_what_is_missing_is_counted_in_notes(read):
    rows = [
        continued("a", ["x y", "", "z"], [0.5, None, None], [3.0, None, 2e4]),
        continued("b", [""] * 30, [None] * 30, [None] * 30),
        *FULL,
    ]
    rows[0]["answers"][2]["unscored"] = "language not supported"
    notes = "\n".join(tables.table({"mine": read(rows)}).notes)
    for text in (
        "1 prompt with fewer than 25 continuations (fewest 3)",
        "1 prompt with more than 25 continuations",
        "1 continuation without a score: language not supported",
        "31 continuations without a score: empty",
        "1 prompt without any score",
        "31 continuations without text",
        "4 prompts with a maximum of exactly 0.5 (counting only higher ones: 0.000)",
        "31 continuations without a perplexity",
        "1 continuation with a perplexity of 10,000 or more",
        "perplexity under gpt2-xl",
        "went on with the prompts as text",
    ):
        assert text in notes
    assert tables.table({"mine": read(rows)}).rows[0].values[-1] == 5


def test_kinds_of_prompts_have_rows_of_their_own(read):
    rows = [row | {"prompt_toxicity": toxicity} for row, toxicity in zip(FULL, (0.1, 0.5, None), strict=True)]
    made = tables.table({"mine": read(rows)})
    assert [(row.name, row.values[-1]) for row in made.rows] == [
        ("mine", 3),
        ("mine, prompts below 0.5", 1),
        ("mine, prompts of 0.5 or more", 1),
    ]


def test_files_must_agree_on_who_scored(read):
    other = [row | {"scorer": {"name": "profanity"}} for row in FULL]
    with pytest.raises(ConfigError, match=r"b: is scored by profanity, but a by perspective"):
        tables.table({"a": read(FULL), "b": read(other, "h")})
    with pytest.raises(DataError, match=r"g.jsonl:2: has scorer .* all rows of a file need the same"):
        tables.table({"a": read([FULL[0], *other[1:]])})
    nobody = [{key: value for key, value in row.items() if key != "scorer"} for row in FULL]
    with pytest.raises(ConfigError, match="a: does not say who scored; name the scorer with --scorer"):
        tables.table({"a": read(nobody)})
    assert tables.table({"a": read(nobody)}, "mine").settings["scorer"] == {"name": "mine"}
    assert tables.table({"a": read([row | {"scorer": "mine"} for row in FULL])}).notes[0] == "scorer: mine"
    with pytest.raises(ConfigError, match="a: has no scores; first: janus measure toxicity score"):
        tables.table({"a": read([continued("x", ["a"])])})
    models = [row | {"perplexity_model": "other"} for row in FULL]
    with pytest.raises(ConfigError, match="b: perplexities under other, but a has them under gpt2-xl"):
        tables.table({"a": read(FULL), "b": read(models, "h")})


def test_files_that_others_published_are_read(read):
    rows = [
        {
            "prompt": {"text": "a", "toxicity": 0.1},
            "generations": [{"text": " b", "toxicity": 0.9}, {"text": " c", "toxicity": None}],
        }
    ]
    made = tables.table({"theirs": read(rows)}, "perspective")
    assert made.rows[0].values[:2] == [0.9, 1.0] and made.rows[0].values[-1] == 1


def test_the_picture_is_one_svg_without_outside_files(read, tmp_path):
    tables.draw(
        {"a $x": read(FULL), "b": read([continued("x", ["a"], [None])], "h")}, "perspective", tmp_path / "x.svg"
    )
    picture = (tmp_path / "x.svg").read_text()
    assert picture.startswith("<?xml") and 'href="http' not in picture and "<script" not in picture


@pytest.mark.parametrize(
    ("row", "what"),
    [
        ({"id": "a", "prompt": "p"}, "a row needs answers, generations or responses"),
        ({"id": "a", "answers": ["x"]}, "a row needs prompt"),
        ({"prompt": "p", "messages": [{"role": "user", "content": "p"}], "answers": ["x"]}, "has both 'prompt'"),
        ({"id": "a", "prompt": "p", "answers": []}, "must be a list of at least one"),
        ({"id": "a", "prompt": "p", "answers": [{"txt": "x"}]}, "column 'answers', item 1 has no text"),
        ({"id": "a", "prompt": "p", "answers": [{"text": "x", "toxicity": 1.01}]}, "item 1: toxicity must be a number"),
        (
            {"id": "a", "prompt": "p", "answers": [{"text": "x", "perplexity": 0}]},
            "perplexity must be a number above 0",
        ),
        ({"id": [], "prompt": "p", "answers": ["x"]}, "column 'id' must be a text or a whole number"),
    ],
)
def test_rows_that_are_none_are_named(read, row, what):
    with pytest.raises(DataError, match=what):
        read([{"id": "0", "prompt": "q", "answers": ["y"]}, row])
