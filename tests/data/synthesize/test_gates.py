"""Gates of texts and answers in JSON: what passes, and under which name the rest is counted."""

import json

import numpy
import pytest

from janus_jax.data.synthesize import gates, structured
from janus_jax.data.synthesize.asking import Item, Outcome, Rejected
from janus_jax.data.synthesize.augment import NamesAnswer, PreferencesAnswer
from janus_jax.data.synthesize.language import is_english

SYSTEM = "You are a night-radio host with a warm, unhurried voice who turns each answer into a small scene."


def reason(gate, *args):
    try:
        gate(*args)
    except Rejected as rejected:
        return rejected.reason
    return ""


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("Very good.", ""),
        ("Tr\u00e8s bon", "too_short"),  # one letter outside ASCII makes no sentence
        ("\u00e9", "too_short"),
        ("\u041f\u043b\u043e\u0445\u043e", "too_short"),  # a word of five letters
        ("\u6ca1\u6709\u5e2e\u52a9", ""),  # does not help
        ("\u597d", "too_short"),  # good
        ("\ub3c4\uc6c0\uc774 \ub429\ub2c8\ub2e4", ""),  # helps
    ],
)
def test_few_letters_are_enough_in_chinese_and_korean_alone(text, expected):
    assert reason(gates.length_in_letters, text, 10) == expected


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("I'm sorry, but I can't assist with that.", "refusal"),
        ("I\u2019m really sorry, but I cannot provide this.", "refusal"),
        ("As an AI language model, I don't have feelings.", "refusal"),
        ("I cannot help with that request.", "refusal"),
        ("Unfortunately, I am unable to answer this.", "refusal"),
        ("I'm sorry to hear about your dog. Here is what helps.", ""),
        ("Sorry is hard to say. Write: 'I apologize for being late.'", ""),
        ("You cannot create a table without a name.", ""),
        ("I cannot overstate how much yeast matters.", ""),
    ],
)
def test_refusals_are_told_from_apologies(text, expected):
    assert reason(gates.refusal, text) == expected


def test_markup_counts_unless_the_instruction_has_it():
    for text in ("Yes.<|im_end|>", "Yes. [/INST]", "Yes.</s>", "Yes.\nUser: and now?", "<|eot_id|>"):
        assert reason(gates.markup, text) == "chat_markup"
    assert reason(gates.markup, "Use [INST] once.", "What does [INST] mean?") == ""
    assert reason(gates.markup, "a < b | c > d; the user: me") == ""


def test_copies_of_the_system_message():
    assert reason(gates.copied, f"Well. {SYSTEM} Rain fell.", [SYSTEM], 12, "copied_system") == "copied_system"
    assert reason(gates.copied, "Tonight, a small scene: rain fell on the town.", [SYSTEM], 12, "copied_system") == ""


def note(gate, *args):
    """What a model is told of a text."""
    with pytest.raises(Rejected) as error:
        gate(*args)
    return gates.fault(error.value.reason, error.value.detail)


@pytest.mark.parametrize(
    "text", ["Yes.</s>", "Yes. [/INST] <|im_end|>", "User: and now?", "Here is a <|im_end|> text:"]
)
def test_a_note_to_a_model_has_no_marks_of_a_chat(text):
    """Some servers end the prompt at them."""
    said = note(gates.preamble if text.startswith("Here") else gates.markup, text)
    assert said and not gates.MARKUP.search(said) and "User" not in said


@pytest.mark.parametrize(
    ("gate", "args", "expected"),
    [
        (gates.length, ("x" * 1400, 1, 1200), "it was too long (1,400 characters; at most 1,200)"),
        (
            gates.length_in_letters,
            ("no", 10, "one of its texts has "),
            "it was too short (one of its texts has 2 characters; at least 10)",
        ),
        (structured.read, ("{}", NamesAnswer), "its JSON had another form (subdimensions is missing)"),
        (
            structured.read,
            ('{"preferences": [{"preference": 1, "description": "d"}]}', PreferencesAnswer),
            "its JSON had another form (preferences.0.preference has another type)",
        ),
        (structured.read, ("[]", NamesAnswer), "its JSON had another form (the whole has another type)"),
    ],
)
def test_a_note_to_a_model_has_bounds_and_no_words_of_a_library(gate, args, expected):
    assert note(gate, *args) == expected


def test_a_note_to_a_model_does_not_depend_on_other_answers():
    outcomes = [Outcome(Item(str(at), []), value=text) for at, text in enumerate(["a b c d e", "a b c d f", "a b c"])]
    notes = {gates.fault("alike", detail) for _, detail in gates.too_alike(outcomes, 0.7)}
    assert notes == {"it was too like another text"}


@pytest.mark.parametrize(
    ("text", "english"),
    [
        ("Why does dough rise?", True),
        ("Why do we dream?", True),
        ("x = [i for i in range(10)]", True),
        ("Warum geht der Teig auf, und was ist mit der Hefe?", False),
        ("Pourquoi est-ce que la pâte lève dans le four et pas avant?", False),
        ("¿Por qué sube la masa del pan antes de que se hornee?", False),
        ("Почему поднимается тесто?", False),
        ("パンの生地はなぜ膨らむのですか", False),
        ("Translate 'guten Morgen' to English, and say when it is used.", True),
        ("Résumé tips for the café manager?", True),
        ("Can you parallelize it?", True),
        ("x+y = 4z, x*y = 4z^2, express x-y in z", True),
        ("Nem értem, miért kel meg a tészta a sütőben, és mi köze van ehhez az élesztőnek.", False),
    ],
)
def test_english_is_told_from_other_languages(text, english):
    assert is_english(text) == english


def test_another_language_is_right_where_the_instruction_asks_for_it():
    german = "Der Teig geht auf, weil die Hefe Gas bildet und der Kleber es hält."
    assert reason(gates.language, german, "en", "Why does it rise?") == "wrong_language"
    assert reason(gates.language, german, "en", "Answer in German: why does it rise?") == ""
    assert reason(gates.language, german, None) == ""


def test_the_later_of_two_texts_that_are_too_alike_is_named():
    texts = ["the cat sat on the mat", "a dog ran far away", "the cat sat on a mat", "简洁", "简洁"]
    outcomes = [Outcome(Item(str(at), []), value=text) for at, text in enumerate(texts)]
    assert [number for number, _ in gates.too_alike(outcomes, 0.8)] == [2, 4]


def test_unusual_lengths_are_those_far_from_the_median_by_its_deviation():
    scipy_stats = pytest.importorskip("scipy.stats")
    numbers = [*range(300, 700, 3), 12, 60_000]
    usual = gates.Lengths.of(numbers, 100)
    logs = numpy.log(numbers)
    deviation = scipy_stats.median_abs_deviation(logs, scale="normal")
    expected = (logs - numpy.median(logs)) / deviation
    assert [usual.distance(one) for one in numbers] == pytest.approx(expected, rel=1e-4)
    least, most = usual.bounds(5.0)
    assert [one for one in numbers if not least <= one <= most] == [12, 60_000]
    assert gates.Lengths.of(numbers, 1000) is None and gates.Lengths.of([7] * 200, 100) is None


@pytest.mark.parametrize(
    ("text", "mended"),
    [
        ('{"subdimensions": ["a", "b"]}', False),
        ('Here you are:\n```json\n{"subdimensions": ["a", "b"]}\n```', True),
        ('Sure. {"subdimensions": ["a", "b",],} Enjoy!', True),
        ('{"subdimensions": ["a", "b"], "more": 1}', False),
    ],
)
def test_small_faults_of_json_are_mended(text, mended):
    assert structured.read(text, NamesAnswer) == (NamesAnswer(subdimensions=["a", "b"]), mended)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("I cannot.", "bad_json"),
        ('{"subdimensions": ["a", ', "bad_json"),
        ("[" * 5000, "bad_json"),
        ('{"subdimensions": "a"}', "wrong_form"),
        ('{"subdimensions": [1]}', "wrong_form"),
        ("[]", "wrong_form"),
    ],
)
def test_what_cannot_be_mended_is_rejected(text, expected):
    assert reason(structured.read, text, NamesAnswer) == expected


def test_commas_inside_strings_stay():
    text = '{"subdimensions": ["a,]", "b, }",]}'
    assert structured.read(text, NamesAnswer)[0].subdimensions == ["a,]", "b, }"]


def test_the_schema_is_one_that_strict_mode_takes():
    jsonschema = pytest.importorskip("jsonschema")
    form = structured.response_format(PreferencesAnswer, "json_schema")["response_format"]["json_schema"]
    schema = form["schema"]
    item = {"preference": "p", "description": "d"}
    jsonschema.validate({"preferences": [item]}, schema)
    for wrong in (
        {"preferences": [item], "x": 1},
        {"preferences": [{**item, "x": 1}]},
        {"preferences": [{"preference": "p"}]},
    ):
        with pytest.raises(jsonschema.ValidationError):
            jsonschema.validate(wrong, schema)
    assert json.dumps(form) and form["strict"] is True
