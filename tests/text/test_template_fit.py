"""Notes on templates that are not those of the tokenizer."""

import contextlib
import json

import pytest

from janus_jax.text.chat_format import ChatFormat
from janus_jax.text.template import CHATML, MISTRAL_INST, PLAIN, TEMPLATES
from janus_jax.text.template_fit import replaced_template, template_note
from janus_jax.text.tokenizer import load_tokenizer, save_hf_tokenizer
from tests.support.tokenizers import byte_level

CHAT_MARKS, INST_MARKS = CHATML.marks, MISTRAL_INST.marks
OWN = {
    "chatml": "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}",
    "split marks": "{% for m in messages %}{{ '<|im_' + 'start|>' + m.role + '\n' + m.content + '<|im_' + 'end|>' }}"
    "{% endfor %}",
    "mistral": "{{ bos_token }}{% for m in messages %}{% if m.role != 'user' %}{{ raise_exception('no') }}{% endif %}"
    "[INST] {{ m.content }} [/INST]{% endfor %}",
    "zephyr": "{% for m in messages %}{{ '<|' + m.role + '|>\n' + m.content + eos_token }}\n{% endfor %}",
    "broken": "{% for m in %}",
}


def note(directory, template, special=(), own=None, **config):
    config |= {} if own is None else {"chat_template": own}
    tokenizer = load_tokenizer(byte_level(directory / "tokenizer", special, bos="<s>", config=config))
    return template_note(ChatFormat(template, tokenizer))


@pytest.mark.parametrize("template", TEMPLATES.values(), ids=list(TEMPLATES))
def test_the_embedded_tokenizer_and_one_without_signs_fit_every_template(tmp_path, template):
    assert template_note(ChatFormat(template, load_tokenizer())) == ""
    assert note(tmp_path, template) == ""


@pytest.mark.parametrize(
    ("template", "special", "own"),
    [
        (CHATML, CHAT_MARKS, None),
        (CHATML, (*CHAT_MARKS, *INST_MARKS), None),
        (MISTRAL_INST, (*CHAT_MARKS, *INST_MARKS), None),
        (MISTRAL_INST, (), "mistral"),  # [INST] is text of that model
        (MISTRAL_INST, CHAT_MARKS, "mistral"),  # its tokens are there for others
        (CHATML, (), "split marks"),
        (MISTRAL_INST, INST_MARKS, "zephyr"),
        (PLAIN, (), "zephyr"),  # the prompts may bring these marks
        (MISTRAL_INST, (), "broken"),
    ],
)
def test_a_template_that_the_tokenizer_knows_has_no_note(tmp_path, template, special, own):
    assert note(tmp_path, template, special, OWN.get(own)) == ""


@pytest.mark.parametrize(
    ("template", "special", "own", "better"),
    [
        (MISTRAL_INST, CHAT_MARKS, None, "chatml"),
        (MISTRAL_INST, CHAT_MARKS, "zephyr", "chatml"),
        (MISTRAL_INST, CHAT_MARKS, "broken", "chatml"),
        (MISTRAL_INST, (*CHAT_MARKS, *INST_MARKS), "chatml", "chatml"),
        (MISTRAL_INST, (), "split marks", "chatml"),
        (CHATML, INST_MARKS, None, "mistral-inst"),
        (CHATML, (), "mistral", "mistral-inst"),
        (PLAIN, CHAT_MARKS, None, "chatml"),
    ],
)
def test_a_template_of_which_the_tokenizer_has_signs_is_named(tmp_path, template, special, own, better):
    line = note(tmp_path, template, special, OWN.get(own))
    assert line.startswith(f"template {template.name} may be the wrong one") and line.endswith(f"--template {better}")
    assert "\n" not in line


def test_a_chat_template_that_is_none_of_ours_is_shown(tmp_path):
    line = note(tmp_path, MISTRAL_INST, (), OWN["zephyr"])
    assert "[INST], [/INST] of template mistral-inst became text" in line and "<|system|>\\nBe brief." in line


@pytest.mark.parametrize("place", ["chat_template.jinja", "of several"])
def test_the_chat_template_is_read_where_transformers_reads_it(tmp_path, place):
    own = OWN["zephyr"] if place == "chat_template.jinja" else [{"name": "default", "template": OWN["chatml"]}]
    directory = byte_level(tmp_path / "tokenizer", config={"chat_template": own})
    if place == "chat_template.jinja":
        (directory / place).write_text(OWN["chatml"])
    from transformers import AutoTokenizer

    ours, theirs = load_tokenizer(directory), AutoTokenizer.from_pretrained(directory)
    assert ours.chat_template == OWN["chatml"] == theirs.get_chat_template()
    assert template_note(ChatFormat(MISTRAL_INST, ours)).endswith("--template chatml")


@pytest.mark.parametrize("trained", TEMPLATES.values(), ids=list(TEMPLATES))
@pytest.mark.parametrize("family", ["embedded", "byte-level"])
def test_exports_name_the_template_they_were_trained_with(tmp_path, trained, family):
    tokenizer = load_tokenizer(None if family == "embedded" else byte_level(tmp_path / "tokenizer", CHAT_MARKS))
    save_hf_tokenizer(tokenizer, tmp_path / "export", chat_template=ChatFormat(trained, tokenizer).chat_template)
    exported = load_tokenizer(tmp_path / "export")
    for template in TEMPLATES.values():
        line = template_note(ChatFormat(template, exported))
        assert line == "" if template is trained else line.endswith(f"--template {trained.name}")


def test_marks_that_older_data_spelled_are_named(tmp_path):
    tokenizer = load_tokenizer(byte_level(tmp_path / "tokenizer", CHAT_MARKS))
    assert template_note(ChatFormat(CHATML, tokenizer, marks=())).startswith("<|im_start|>, <|im_end|> became text")


def test_a_tokenizer_config_that_is_no_template_counts_as_none(tmp_path):
    directory = byte_level(tmp_path / "tokenizer")
    for value in ({"a": 1}, [1], [{"name": "other", "template": "x"}], None):
        config = json.loads((directory / "tokenizer_config.json").read_text()) | {"chat_template": value}
        (directory / "tokenizer_config.json").write_text(json.dumps(config))
        assert load_tokenizer(directory).chat_template == ""


MISTRAL_OWN = (
    "{{ bos_token }}{% for m in messages %}{% if m.role == 'user' %}{{ '[INST] ' + m.content + ' [/INST]' }}"
    "{% elif m.role == 'assistant' %}{{ m.content + eos_token }}{% else %}{{ raise_exception('no') }}{% endif %}"
    "{% endfor %}"
)
CHATML_OWN = (
    "{{ bos_token }}{% for m in messages %}{{ '<|im_start|>' + m.role + '\n' + m.content + '<|im_end|>\n' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
DEFAULT_SYSTEM = "{% if messages[0].role != 'system' %}{{ '<|im_start|>system\nYou help.<|im_end|>\n' }}{% endif %}"


@pytest.mark.parametrize(
    ("template", "special", "own", "other"),
    [
        (MISTRAL_INST, (), None, ""),
        (MISTRAL_INST, (), MISTRAL_OWN, ""),  # refuses system messages, and writes all others alike
        (MISTRAL_INST, INST_MARKS, MISTRAL_OWN.replace("+ eos", "+ ' ' + eos"), "So. </s>"),
        (MISTRAL_INST, (), OWN["broken"], ""),
        (MISTRAL_INST, (), OWN["zephyr"], "<|user|>"),
        (CHATML, CHAT_MARKS, CHATML_OWN, ""),  # a line break after the last message is no difference
        (CHATML, CHAT_MARKS, DEFAULT_SYSTEM + CHATML_OWN, "You help."),
        (CHATML, CHAT_MARKS, CHATML_OWN.replace("m.content", "m.content.upper()"), "WHY?"),
        (CHATML, (), MISTRAL_OWN, "[INST]"),
        (PLAIN, (), "{{ bos_token }}" + "{% for m in messages %}{{ m.content }}{% endfor %}", "Be brief.Why?"),
    ],
)
def test_a_replaced_chat_template_is_shown_where_transformers_writes_something_else(
    tmp_path, template, special, own, other
):
    config = {} if own is None else {"chat_template": own}
    directory = byte_level(tmp_path / "tokenizer", special, bos="<s>", config=config)
    chat = ChatFormat(template, load_tokenizer(directory))
    line = replaced_template(chat, chat.tokenizer.chat_template, "the tokenizer")
    assert bool(line) == bool(other) and "\n" not in line
    if other:
        save_hf_tokenizer(chat.tokenizer, tmp_path / "export", chat_template=chat.chat_template)
        theirs, ours = first_difference(directory, tmp_path / "export")
        assert line.startswith(f"template {template.name} replaces the chat template of the tokenizer ")
        assert other in theirs and repr(other)[1:-1] in line and repr(ours[-8:])[1:-1] in line


def first_difference(*directories):
    """What transformers writes with two chat templates, of the first conversation in which they differ."""
    from jinja2 import TemplateError
    from transformers import AutoTokenizer

    texts = {"user": "Why?", "system": "Be brief.", "assistant": "So."}
    for roles in (["user"], ["system", "user"], ["user", "assistant"]):
        messages = [{"role": role, "content": texts[role]} for role in roles]
        options = {"tokenize": False, "add_generation_prompt": roles[-1] == "user"}
        with contextlib.suppress(TemplateError):
            one, other = (
                AutoTokenizer.from_pretrained(d).apply_chat_template(messages, **options) for d in directories
            )
            if one != other:
                return one, other
    raise AssertionError("no difference")
