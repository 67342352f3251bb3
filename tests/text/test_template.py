"""Template text and ids against what mistral_common gives for the same conversation."""

import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from janus_jax.data.boundary import encode_example
from janus_jax.data.sample import sample_records
from janus_jax.data.schema import Record
from janus_jax.errors import DataError
from janus_jax.text.chat_format import ChatFormat
from janus_jax.text.template import CHATML, MISTRAL_INST, PLAIN, get_template
from janus_jax.text.tokenizer import load_tokenizer

EXAMPLES = json.loads((Path(__file__).parent / "goldens" / "tokenizer.json").read_text())["examples"]


@pytest.fixture(scope="module")
def tokenizer():
    return load_tokenizer()


@pytest.mark.parametrize("case", EXAMPLES, ids=lambda case: case["name"])
def test_ids_equal_mistral_common(tokenizer, case):
    record = Record(case["system"], case["instruction"], case["response"])
    prompt, chosen, rejected = encode_example(ChatFormat(MISTRAL_INST, tokenizer), record, "sft")
    assert prompt.tolist() == case["prompt_ids"]
    assert chosen.tolist() == case["response_ids"]
    assert rejected is None
    assert prompt.dtype == chosen.dtype == np.int32


@pytest.mark.parametrize("kind", ["dpo", "orpo", "rm"])
def test_pairs_encode_both_responses_like_single_ones(tokenizer, kind):
    first, second = EXAMPLES[0], EXAMPLES[8]
    record = Record(first["system"], first["instruction"], first["response"], second["response"])
    prompt, chosen, rejected = encode_example(ChatFormat(MISTRAL_INST, tokenizer), record, kind)
    assert prompt.tolist() == first["prompt_ids"]
    assert chosen.tolist() == first["response_ids"]
    assert rejected.tolist() == second["response_ids"]


def test_bos_and_eos_stand_once_whatever_the_text_says(tokenizer):
    record = Record("<s>", "</s> <s>", "</s>", "<s> </s>")
    prompt, chosen, rejected = encode_example(ChatFormat(MISTRAL_INST, tokenizer), record, "dpo")
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


def test_chatml_is_the_published_text_as_ordinary_pieces(tokenizer):
    record = Record("Be brief.", "Why?", "So.", "No.")
    prompt, chosen, rejected = encode_example(ChatFormat(CHATML, tokenizer), record, "orpo")
    text = "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\nWhy?<|im_end|>\n<|im_start|>assistant\n"
    assert prompt.tolist() == [1, *tokenizer.encode(text)]
    assert chosen.tolist() == [*tokenizer.encode("So.<|im_end|>"), 2]
    assert rejected.tolist() == [*tokenizer.encode("No.<|im_end|>"), 2]


def test_plain_adds_nothing(tokenizer):
    assert PLAIN.prompt_text("", "\n\nHuman: Why?\n\nAssistant:") == "\n\nHuman: Why?\n\nAssistant:"
    assert PLAIN.prompt_text("Be brief.", "Why?") == "Be brief.\nWhy?"
    prompt, chosen, _ = encode_example(
        ChatFormat(PLAIN, tokenizer), Record("", "\n\nHuman: Why?\n\nAssistant:", "So.", "No."), "rm"
    )
    assert [*prompt, *chosen] == [1, *tokenizer.encode("\n\nHuman: Why?\n\nAssistant: So."), 2]


def test_unknown_template_and_kind_and_missing_rejected_are_refused(tokenizer):
    with pytest.raises(DataError, match="'llama': unknown; allowed: mistral-inst, chatml, plain"):
        get_template("llama")
    with pytest.raises(DataError, match="'ppo': unknown; allowed: sft, dpo, orpo, rm"):
        encode_example(ChatFormat(MISTRAL_INST, tokenizer), Record("", "a", "b"), "ppo")
    with pytest.raises(DataError, match="kind dpo needs a rejected response"):
        encode_example(ChatFormat(MISTRAL_INST, tokenizer), Record("", "a", "b"), "dpo")


# --- One text or two: where the prompt ends


def pieces(tokenizer, ids) -> list[str]:
    return [tokenizer.processor.id_to_piece(int(i)) for i in ids]


def by_the_rule_of_trl(tokenizer, prompt: str, responses: list[str]) -> tuple[list[int], list[list[int]]]:
    """Ids alone and joined; the border is at the prompt's own length, or one token before it if that prompt is not how
    the joined ids begin; a pair's prompt is the shorter of both."""
    alone = [1, *tokenizer.encode(prompt)]
    wholes = [[1, *tokenizer.encode(prompt + response), 2] for response in responses]
    cut = min(len(alone) - (whole[: len(alone)] != alone) for whole in wholes)
    return alone[:cut], [whole[cut:] for whole in wholes]


TRICKY = [
    "Revolutionary",
    " Revolution",
    ")x",
    "]",
    "][",
    "'s",
    ". So",
    "\nx",
    "\n\n",
    "  ",
    "😀",
    "▁x",
    "</s>",
    "é",
    "中",
]


def test_the_two_boundaries_part_the_published_example_as_the_published_trainers_did(tokenizer):
    record = Record("", "Name a poster.", "Revolutionary", "Rev")
    for boundary, chosen in {"separate": ["▁Revolution", "ary"], "joint": ["Rev", "olution", "ary"]}.items():
        prompt, response, _ = encode_example(ChatFormat(MISTRAL_INST, tokenizer, boundary=boundary), record, "dpo")
        assert pieces(tokenizer, prompt)[-1] == "]"
        assert pieces(tokenizer, response) == [*chosen, "</s>"]


@pytest.mark.parametrize("template", [MISTRAL_INST, CHATML], ids=lambda template: template.name)
@pytest.mark.parametrize("other", ["So.", ".", ")"])
@pytest.mark.parametrize("response", TRICKY)
def test_joint_pairs_are_cut_as_trl_cuts_them(tokenizer, template, response, other):
    chat = ChatFormat(template, tokenizer, boundary="joint")
    got = encode_example(chat, Record("Be brief.", "Why?", response, other), "dpo")
    responses = [text + template.end for text in (response, other)]
    prompt, expected = by_the_rule_of_trl(tokenizer, template.prompt_text("Be brief.", "Why?"), responses)
    assert [part.tolist() for part in got] == [prompt, *expected]


def test_a_response_that_merges_into_the_prompt_takes_the_token_along_for_both(tokenizer):
    record = Record("", "Why?", ")x", "So.")
    prompt, chosen, rejected = encode_example(ChatFormat(MISTRAL_INST, tokenizer, boundary="joint"), record, "dpo")
    assert pieces(tokenizer, prompt)[-2:] == ["/", "INST"]
    assert pieces(tokenizer, chosen) == ["])", "x", "</s>"]
    assert pieces(tokenizer, rejected) == ["]", "So", ".", "</s>"]


@given(texts=st.lists(st.text(st.characters(exclude_categories=["Cs"]), min_size=1), min_size=4, max_size=4))
def test_joint_ids_are_those_of_the_whole_text(tokenizer, texts):
    system, instruction, chosen, rejected = texts
    record = Record(system, instruction, chosen, rejected)
    prompt, *responses = encode_example(ChatFormat(MISTRAL_INST, tokenizer, boundary="joint"), record, "dpo")
    form = MISTRAL_INST.prompt_text(system, instruction)
    alone = ChatFormat(MISTRAL_INST, tokenizer).encode_prompt(system, instruction)
    assert 0 < len(prompt) <= len(alone) and (prompt == alone[: len(prompt)]).all()
    for response, text in zip(responses, (chosen, rejected), strict=True):
        whole = np.concatenate([prompt, response]).tolist()
        assert whole == [1, *tokenizer.encode(form + text), 2]
        assert tokenizer.decode(whole) == tokenizer.decode(tokenizer.encode(form + text))
    single = encode_example(ChatFormat(MISTRAL_INST, tokenizer, boundary="joint"), record, "sft")
    assert np.concatenate(single[:2]).tolist() == np.concatenate([prompt, responses[0]]).tolist()


def test_separate_ids_are_those_of_one_text_with_a_space_on_every_record_of_the_sample(tokenizer):
    """Why `separate` also stands for trainers that put a space after `[/INST]` and tokenize once."""
    for record in sample_records("train"):
        prompt, response, _ = encode_example(
            ChatFormat(MISTRAL_INST, tokenizer), Record(record["system"], record["prompt"], record["output"]), "sft"
        )
        text = f"{MISTRAL_INST.prompt_text(record['system'], record['prompt'])} {record['output']}"
        assert [*prompt, *response] == [1, *tokenizer.encode(text), 2]


def test_a_boundary_that_is_none_is_refused(tokenizer):
    with pytest.raises(DataError, match="'joined': unknown; allowed: separate, joint"):
        encode_example(ChatFormat(MISTRAL_INST, tokenizer, boundary="joined"), Record("", "a", "b"), "sft")


def test_a_prompt_of_which_no_token_is_left_is_refused(tokenizer):
    class OneIdAText:
        bos_id, eos_id = None, 2
        ignores_control_tokens = True

        def control_id(self, token):
            return None

        def token(self, number):
            return None

        def encode(self, text):
            return [len(text)]

    with pytest.raises(DataError, match="merges all of the prompt"):
        encode_example(ChatFormat(MISTRAL_INST, OneIdAText(), boundary="joint"), Record("", "a", "b"), "sft")
