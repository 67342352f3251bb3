"""Which records get a note."""

import pytest

from janus_jax.data.notes import NOTES, holds_marks, notes_of
from janus_jax.data.sample import SPLITS, sample_records
from janus_jax.data.schema import Record
from janus_jax.text.template import TEMPLATES


@pytest.mark.parametrize("template", ["mistral-inst", "chatml"])
def test_a_text_to_which_a_template_was_applied_is_noted(template):
    form = TEMPLATES[template]
    assert holds_marks(form.prompt_text("", "Why?")) and holds_marks(form.prompt_text("Be brief.", "Why?"))


@pytest.mark.parametrize(
    "text",
    [
        *["So.</s>", "So. </s>\n", "So.<|im_end|>", "<s>[INST] Why?", " <s>Why?", "<<SYS>>\n", "So.<|eot_id|>"],
        *["So.<|EOT|>", "So.<end_of_turn>", "<\uff5cUser\uff5c>Why?"],
    ],
)
def test_marks_at_the_place_where_templates_put_them_are_noted(text):
    assert holds_marks(text)
    for record in (Record("", text, "o"), Record("", "p", text), Record(text, "p", "o"), Record("", "p", "o", text)):
        assert notes_of(record) == ["template_marks"]
    assert "template_marks" in NOTES


@pytest.mark.parametrize(
    "text", ["What does <s> mean?", "</s> ends it, as text.", "[1] and [a]", "a <| b |> c", "x[INSTANCE]", "INST"]
)
def test_other_texts_are_not(text):
    assert not holds_marks(text)


def test_control_characters_are_noted():
    assert notes_of(Record("", "a\0b", "c")) == notes_of(Record("", "a", "\x1b[0m")) == ["control_characters"]
    assert notes_of(Record("", "a\tb\r\n", "c\x0c")) == []


def test_nothing_is_noted_about_the_sample():
    for split in SPLITS:
        for raw in sample_records(split):
            assert notes_of(Record(raw["system"], raw["prompt"], raw["output"])) == []
