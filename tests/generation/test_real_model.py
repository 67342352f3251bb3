"""SmolLM2-135M generates as transformers does, from its Hugging Face directory and from a converted one.

Slow; wants JANUS_SMOLLM2, a Hugging Face directory of the model (tests/data/test_real_data.py says how to make it):

    JANUS_SMOLLM2=DIR pytest -n 0 -m slow tests/generation/test_real_model.py -s

Takes some minutes on two quiet cores.
"""

import os

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from janus_jax.checkpoint.convert import from_hf
from janus_jax.checkpoint.stored_model import open_model
from janus_jax.generation.engine import Engine
from janus_jax.generation.prompts import conversation, prompt_format
from janus_jax.generation.requests import Request
from janus_jax.generation.stopping import StoppingOptions
from janus_jax.model.mistral import param_specs
from janus_jax.parallel.axes import DEFAULT_RULES, MeshShape
from janus_jax.parallel.mesh import build_mesh, param_shardings
from tests.support.torch_models import greedy

pytestmark = pytest.mark.slow

NEW, WINDOW = 64, 24
PROMPTS = [
    ("", "What is the capital of France?"),
    ("", "Write a short poem about the sea."),
    ("You are a pirate.", "How do I boil an egg?"),
    ("", "List three prime numbers above 100 and say why they are prime."),
    ("Answer in French.", "What is your favourite season, and why do you like it more than the others?"),
    ("", "Explain gravity to a child of five. " * 12),
    ("", "2 + 2 ="),
    ("You explain things with examples from cooking.", "What is recursion?"),
    ("", "Translate 'good morning' into Spanish, Italian and German."),
    ("", "Name the user's language if a text spells <|im_start|>system and <|im_end|> by itself."),
]


@pytest.fixture(scope="module")
def directory():
    if "JANUS_SMOLLM2" not in os.environ:
        pytest.skip("JANUS_SMOLLM2 does not name a Hugging Face directory of SmolLM2-135M")
    return os.environ["JANUS_SMOLLM2"]


@pytest.fixture(scope="module")
def expected(directory):
    """Ids of each prompt, what transformers goes on with, and how many of its tokens are sure."""
    import torch
    import transformers

    torch.set_num_threads(1)  # two that wait for each other on a busy machine are ten times as slow
    model = transformers.AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32).eval()
    written = prompt_format(open_model(directory))
    prompts = [written.encode(conversation(prompt, system)) for system, prompt in PROMPTS]
    return [(ids, *greedy(model, ids, NEW, written.stop_ids)) for ids in prompts]


def test_prompts_are_read_as_transformers_reads_them(directory, expected):
    import transformers

    server = transformers.AutoTokenizer.from_pretrained(directory)
    for (system, prompt), (ids, *_) in zip(PROMPTS[:-1], expected, strict=False):  # the last one spells control tokens
        messages = conversation(prompt, system)
        assert ids == server.apply_chat_template(messages, add_generation_prompt=True, return_dict=False)
    assert expected[-1][0].count(server.convert_tokens_to_ids("<|im_start|>")) == 3  # system, user, assistant


@pytest.mark.parametrize(
    ("source", "devices", "count"),
    [("hf", 1, 10), ("hf", 8, 10), ("converted", 1, 10), ("trained", 8, 4), ("windowed", 1, 3)],
)
def test_greedy_tokens_equal_transformers(directory, expected, source, devices, count, tmp_path):
    """In four rows, or two for four prompts: finished ones are refilled while others go on. transformers answers one
    prompt at a time."""
    stop = prompt_format(open_model(directory)).stop_ids
    if source == "windowed":
        stop = ()  # with so few words in sight, the model ends at once
        expected = windowed(directory, tmp_path / "windowed", expected[:count])
    elif source == "converted":
        from_hf(directory, tmp_path / "converted")
    model = open_model(directory if source in ("hf", "trained") else tmp_path / source)
    options = {"dtype": jnp.float32, "rows": 4 if count > 4 else 2, "stop_ids": stop}
    if source == "trained":  # weights as training has them
        mesh = build_mesh(MeshShape(data=2, fsdp=4), jax.devices()[:8])
        wanted = param_shardings(param_specs(model.config), mesh, DEFAULT_RULES)
        engine = Engine.live(model.config, model.load(dtype=jnp.float32, shardings=wanted), **options)
    else:
        engine = Engine.stored(model, devices=jax.devices()[:devices], **options)
    sizes = {"data": 2, "tensor": 3} if devices == 8 else {"data": 1, "tensor": 1}  # nine heads and three key heads
    assert {axis: engine.compute.place.mesh.shape[axis] for axis in sizes} == sizes
    compare(engine, expected[:count])
    assert sum(sure for _, _, sure in expected[:count]) > 40 * count


def windowed(directory, out, known):
    """The same weights as a Mistral whose window is shorter than the texts; its answers, which are others."""
    import torch
    import transformers

    whole = transformers.AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32)
    keys = "vocab_size hidden_size intermediate_size num_hidden_layers num_attention_heads num_key_value_heads "
    keys += "head_dim rms_norm_eps max_position_embeddings tie_word_embeddings rope_parameters"
    shape = {key: getattr(whole.config, key) for key in keys.split()} | {"eos_token_id": None}
    model = transformers.MistralForCausalLM(transformers.MistralConfig(**shape, sliding_window=WINDOW)).eval()
    model.load_state_dict(whole.state_dict())
    model.save_pretrained(out)
    answers = [(ids, *greedy(model, ids, NEW)) for ids, *_ in known]
    assert all(len(ids) > WINDOW for ids, *_ in known) and {len(new) for _, new, _ in answers} == {NEW}
    assert any(new != old for (_, new, _), (_, old, _) in zip(answers, known, strict=True))
    return answers


def compare(engine, expected):
    print(*engine.notes)
    made = {number: [] for number in range(len(expected))}
    for event in engine.generate(Request(ids, stopping=StoppingOptions(max_new_tokens=NEW)) for ids, _, _ in expected):
        made[event.request] += event.ids
    for number, (_, ids, sure) in enumerate(expected):
        same = int(np.cumprod([a == b for a, b in zip(made[number], ids, strict=False)]).sum())
        print(f"{PROMPTS[number][1][:40]!r}: {same} of {len(ids)} tokens, {sure} sure")
        assert same >= sure
        assert same == len(ids) == len(made[number]) or sure < len(ids)
