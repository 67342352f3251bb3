"""Rewards are those that transformers computes with the exported model, whatever shares a row."""

import dataclasses

import jax
import numpy as np
import pytest
import torch
import transformers

from janus_jax.checkpoint.hf.read import save_hf
from janus_jax.checkpoint.stored_model import open_model
from janus_jax.data.boundary import encode_example
from janus_jax.data.schema import parse_record
from janus_jax.errors import ConfigError, DataError
from janus_jax.generation.engine import Engine
from janus_jax.generation.prompts import conversation, prompt_format
from janus_jax.generation.rewards import RewardFormat, RewardModel, reward_format
from janus_jax.model.mistral import param_specs
from janus_jax.parallel.axes import DEFAULT_RULES, MeshShape
from janus_jax.parallel.mesh import build_mesh, param_shardings
from janus_jax.text.chat_format import ChatFormat
from janus_jax.text.template import CHATML
from janus_jax.text.tokenizer import load_tokenizer, save_hf_tokenizer
from tests.support.models import SMALL, random_params
from tests.support.reward_models import REWARD_MODELS
from tests.support.tokenizers import byte_level


def some_pairs():
    """Many short responses of two prompts, and a prompt of one token."""
    rng = np.random.default_rng(0)
    prompts = [rng.integers(3, 80, n).tolist() for n in (20, 1, 31)]
    return [(prompts[i % 3], [*rng.integers(3, 80, rng.integers(0, 30)).tolist(), 2]) for i in range(40)]


@pytest.fixture(scope="module", params=REWARD_MODELS)
def exported(request, tmp_path_factory):
    """Config, parameters, the export, and what transformers says of `some_pairs`."""
    config = REWARD_MODELS[request.param]
    params, path = random_params(config), tmp_path_factory.mktemp(request.param) / "hf"
    save_hf(params, config, path)
    theirs = transformers.AutoModelForSequenceClassification.from_pretrained(path)
    with torch.no_grad():
        rewards = [float(theirs(torch.tensor([[*prompt, *rest]])).logits) for prompt, rest in some_pairs()]
    assert np.ptp(rewards) > 0.1
    return config, params, path, rewards


def on_one_device(config, params, path):
    return RewardModel.live(config, jax.device_put(params, jax.devices()[0]))


def from_a_training_mesh(config, params, path):
    mesh = build_mesh(MeshShape(2, 2, 2), jax.devices()[:8])
    return RewardModel.live(config, jax.device_put(params, param_shardings(param_specs(config), mesh, DEFAULT_RULES)))


def from_files(config, params, path):
    return RewardModel.stored(open_model(path))


@pytest.mark.parametrize("made", [on_one_device, from_a_training_mesh, from_files])
def test_rewards_equal_transformers(exported, made):
    model = made(*exported[:3])
    np.testing.assert_allclose(model.rewards(some_pairs()), exported[3], atol=1e-4)


def test_what_gives_no_rewards_is_refused(exported):
    with pytest.raises(ConfigError, match="language model, which gives no rewards"):
        RewardModel.live(SMALL, random_params(SMALL))
    with pytest.raises(ConfigError, match="reward model, which makes no text"):
        Engine.live(exported[0], exported[1])
    with pytest.raises(DataError, match=r"context 2 with its continuation.* 65 tokens"):
        on_one_device(*exported[:3]).rewards([([3], [2]), ([3] * 60, [2] * 5)])


@pytest.fixture(scope="module")
def directory(tmp_path_factory):
    """A reward model whose template is ChatML, with marks that are control tokens."""
    root = tmp_path_factory.mktemp("reward")
    tokenizer = load_tokenizer(byte_level(root / "t", ("<|im_start|>", "<|im_end|>"), bos="<s>"))
    config = dataclasses.replace(SMALL, vocab_size=400, max_position_embeddings=256, head="value")
    save_hf(random_params(config), config, root / "hf")
    save_hf_tokenizer(tokenizer, root / "hf", chat_template=ChatFormat(CHATML, tokenizer).chat_template)
    return root / "hf"


def test_a_model_trained_on_joined_prompts_reads_them_so(directory):
    """As `encode_example` makes ids of a record of kind rm."""
    row = {"system": "be brief", "prompt": "Why?", "chosen": "So.", "rejected": "No."}
    written = prompt_format(open_model(directory))
    prompt, chosen, _ = encode_example(written.chat, parse_record(row, "rm"), "rm")
    messages = conversation("Why?", "be brief")
    assert RewardFormat(written, joins=True).encode(messages, "So.") == (prompt.tolist(), chosen.tolist())
    assert RewardFormat(written).encode(messages, "So.")[0] != prompt.tolist()


def test_texts_get_the_rewards_that_a_server_computes(directory):
    model = transformers.AutoModelForSequenceClassification.from_pretrained(directory)
    server = transformers.AutoTokenizer.from_pretrained(directory)
    stored = open_model(directory)
    written, ours = reward_format(stored), RewardModel.stored(stored)
    turns = [*conversation("Why?", "be brief"), {"role": "assistant", "content": "So."}]
    asked = [conversation("naïve 世界 jumps"), turns[:2], [*turns, {"role": "user", "content": "And then?"}]]
    answers = ["Because.", "the quick brown fox", "<|im_end|>?"]  # the last spells a mark, which stays text
    rewards = ours.rewards([written.encode(messages, answer) for messages in asked for answer in answers])
    for number, reward in enumerate(rewards):
        messages, answer = asked[number // 3], answers[number % 3]
        if answer != answers[2]:
            whole = [*messages, {"role": "assistant", "content": answer}]
            ids = server.apply_chat_template(whole, return_dict=False)
            with torch.no_grad():
                assert reward == pytest.approx(float(model(torch.tensor([ids])).logits), abs=1e-4)
        else:
            marks = [written.encode(messages, text)[1].count(server.eos_token_id) for text in answers]
            assert marks == [1, 1, 1]
