"""The model is the model that Hugging Face runs: logits and gradients against transformers' torch code, float32."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
import transformers

from janus_jax.checkpoint.hf.keys import key_table, leaves
from janus_jax.checkpoint.hf.read import load_hf
from janus_jax.model import attention as attention_module
from janus_jax.model import head as head_module
from janus_jax.model.attention import Slots
from janus_jax.model.mistral import Compute, logits, token_logps

ROWS, LENGTH, VOCAB = 2, 40, 97
TOLERANCE = 1e-4

BASE = dict(
    vocab_size=VOCAB,
    hidden_size=32,
    intermediate_size=56,
    num_hidden_layers=3,
    num_attention_heads=4,
    num_key_value_heads=2,
    max_position_embeddings=64,
    sliding_window=None,
    tie_word_embeddings=False,
    initializer_range=0.2,  # large, so that attention is far from uniform
    rope_parameters={"rope_type": "default", "rope_theta": 1e4},
    rms_norm_eps=1e-5,
)
CASES = {
    "grouped query heads": ("Mistral", {}),
    "one key head, window shorter than the sequence": ("Mistral", {"num_key_value_heads": 1, "sliding_window": 7}),
    "head_dim is not D / N, large theta and epsilon": (
        "Mistral",
        {"head_dim": 10, "rope_parameters": {"rope_type": "default", "rope_theta": 1e6}, "rms_norm_eps": 1e-2},
    ),
    "llama tied, nine heads over three": (
        "Llama",
        {"tie_word_embeddings": True, "hidden_size": 36, "num_attention_heads": 9, "num_key_value_heads": 3},
    ),
}


def torch_model(architecture, changes):
    """A torch model with random weights, norms included (theirs start at one)."""
    torch.manual_seed(0)
    options = BASE | changes
    if architecture == "Llama":
        options.pop("sliding_window")
    config = getattr(transformers, f"{architecture}Config")(**options)
    model = getattr(transformers, f"{architecture}ForCausalLM")(config).float().eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "norm" in name:
                parameter.add_(0.3 * torch.randn_like(parameter))
    return model


def close(ours, theirs, name):
    ours, theirs = np.asarray(ours), np.asarray(theirs)
    assert ours.shape == theirs.shape, name
    error = np.abs(ours - theirs).max() / np.abs(theirs).max()
    assert error <= TOLERANCE, f"{name}: {error}"


def compare(model, directory):
    """Asserts equal logits and equal gradients of the mean cross-entropy, for every parameter."""
    model.save_pretrained(directory)
    tokens = np.random.default_rng(1).integers(0, VOCAB, (ROWS, LENGTH + 1)).astype(np.int32)
    inputs, targets = tokens[:, :-1], tokens[:, 1:]
    their_logits = model(torch.from_numpy(inputs).long()).logits
    torch.nn.functional.cross_entropy(
        their_logits.reshape(-1, VOCAB), torch.from_numpy(targets).long().reshape(-1)
    ).backward()

    config, params = load_hf(directory)
    inputs, targets = jnp.asarray(inputs), jnp.asarray(targets)
    position = jnp.broadcast_to(jnp.arange(LENGTH, dtype=jnp.int32), (ROWS, LENGTH))
    layout = Slots(jnp.ones_like(position), jnp.zeros_like(position), position)
    compute = Compute(dtype=jnp.float32)

    def loss(p):
        return -token_logps(config, p, inputs, targets, layout, compute).mean()

    @jax.jit  # one program compiles faster than two
    def run(p):
        return logits(config, p, inputs, layout, compute), jax.grad(loss)(p)

    our_logits, gradients = run(params)
    close(our_logits, their_logits.detach(), "logits")
    gradients = leaves(gradients)
    theirs = {name: parameter.grad for name, parameter in model.named_parameters()}
    table = key_table(config)
    assert {entry.key for entry in table} == set(theirs)
    for entry in table:
        gradient = np.asarray(gradients[entry.path])
        close(entry.to_torch(gradient if entry.layer is None else gradient[entry.layer]), theirs[entry.key], entry.key)


@pytest.mark.parametrize("case", CASES)
def test_logits_and_gradients_equal_transformers(case, tmp_path):
    compare(torch_model(*CASES[case]), tmp_path)


@pytest.mark.parametrize(
    "changes", [pytest.param({}, marks=pytest.mark.slow), {"sliding_window": 7, "tie_word_embeddings": True}]
)
def test_blocked_attention_and_chunked_head_equal_transformers(changes, tmp_path, monkeypatch):
    heads = BASE["num_attention_heads"]
    monkeypatch.setattr(attention_module, "_SCORES_PER_BLOCK", 7 * heads * LENGTH)  # 7 does not divide 40
    monkeypatch.setattr(head_module, "_LOGITS_PER_CHUNK", 9 * VOCAB)
    compare(torch_model("Mistral", changes), tmp_path)


def test_window_changes_the_logits(tmp_path):
    """The window case above would prove nothing if seven positions were enough."""
    tokens = torch.arange(LENGTH).reshape(1, -1)
    wide, narrow = (torch_model("Mistral", {"sliding_window": window})(tokens).logits for window in (None, 7))
    assert (wide - narrow)[0, 7:].abs().max() > 1e-2 * wide.abs().max()
