"""Template text and ids against what mistral_common gives for the same conversation."""

import json
from pathlib import Path

import numpy as np
import pytest

from janus_jax.data.schema import Row
from janus_jax.data.template import CHATML, MISTRAL_INST, encode_example, get_template
from janus_jax.data.tokenizer import load_tokenizer
from janus_jax.errors import DataError

EXAMPLES = json.loads((Path(__file__).parent / "goldens" / "tokenizer.json").read_text())["examples"]


@pytest.fixture(scope="module")
def tokenizer():
    return load_tokenizer()


@pytest.mark.parametrize("case", EXAMPLES, ids=lambda case: case["name"])
def test_ids_equal_mistral_common(tokenizer, case):
    row = Row(case["system"], case["instruction"], case["response"])
    prompt, chosen, rejected = encode_example(MISTRAL_INST, tokenizer, row, "sft")
    assert prompt.tolist() == case["prompt_ids"]
    assert chosen.tolist() == case["response_ids"]
    assert rejected is None
    assert prompt.dtype == chosen.dtype == np.int32


@pytest.mark.parametrize("kind", ["dpo", "orpo", "rm"])
def test_pairs_encode_both_responses_like_single_ones(tokenizer, kind):
    first, second = EXAMPLES[0], EXAMPLES[8]
    row = Row(first["system"], first["instruction"], first["response"], second["response"])
    prompt, chosen, rejected = encode_example(MISTRAL_INST, tokenizer, row, kind)
    assert prompt.tolist() == first["prompt_ids"]
    assert chosen.tolist() == first["response_ids"]
    assert rejected.tolist() == second["response_ids"]


def test_bos_and_eos_stand_once_whatever_the_text_says(tokenizer):
    row = Row("<s>", "</s> <s>", "</s>", "<s> </s>")
    prompt, chosen, rejected = encode_example(MISTRAL_INST, tokenizer, row, "dpo")
    assert [i for i in prompt if i in (1, 2)] == [1] and prompt[0] == 1
    for response in (chosen, rejected):
        assert [i for i in response if i in (1, 2)] == [2] and response[-1] == 2


def test_empty_system_leaves_no_leading_newline():
    assert MISTRAL_INST.prompt_text("", "Why?") == "[INST] Why? [/INST]"
    assert MISTRAL_INST.prompt_text("Be brief.", "Why?") == "[INST] Be brief.\nWhy? [/INST]"
    assert CHATML.prompt_text("", "Why?") == "<|im_start|>user\nWhy?<|im_end|>\n<|im_start|>assistant\n"


def test_braces_in_user_text_are_not_placeholders():
    assert MISTRAL_INST.prompt_text("{instruction}", "{system} {0} {{}}") == (
        "[INST] {instruction}\n{system} {0} {{}} [/INST]"
    )
    assert MISTRAL_INST.response_text("{response} {x}") == "{response} {x}"


def test_chatml_is_the_published_text_as_ordinary_pieces(tokenizer):
    row = Row("Be brief.", "Why?", "So.", "No.")
    prompt, chosen, rejected = encode_example(CHATML, tokenizer, row, "orpo")
    text = "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\nWhy?<|im_end|>\n<|im_start|>assistant\n"
    assert prompt.tolist() == [1, *tokenizer.encode(text)]
    assert chosen.tolist() == [*tokenizer.encode("So.<|im_end|>"), 2]
    assert rejected.tolist() == [*tokenizer.encode("No.<|im_end|>"), 2]


def test_unknown_template_and_kind_and_missing_rejected_are_refused(tokenizer):
    with pytest.raises(DataError, match="'llama': unknown; allowed: mistral-inst, chatml"):
        get_template("llama")
    with pytest.raises(DataError, match="'ppo': unknown; allowed: sft, dpo, orpo, rm"):
        encode_example(MISTRAL_INST, tokenizer, Row("", "a", "b"), "ppo")
    with pytest.raises(DataError, match="kind dpo needs a rejected response"):
        encode_example(MISTRAL_INST, tokenizer, Row("", "a", "b"), "dpo")
