"""Every key of config.json is understood as transformers understands it, ignored knowingly, or refused."""

import json

import jax.numpy as jnp
import numpy as np
import pytest
import torch
import transformers

from janus_jax.checkpoint.hf.config import read_model_config
from janus_jax.checkpoint.hf.config_keys import GENERATION, READ, check_keys, ignored_keys
from janus_jax.checkpoint.stored_model import open_model
from janus_jax.checkpoint.verify import outputs
from janus_jax.errors import ConversionError

SHAPE = {
    "vocab_size": 80,
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
    "initializer_range": 0.3,
}
FULL, SLIDING = ["full_attention"] * 2, ["sliding_attention"] * 2
PLAIN = {"default": {"rope_type": "default", "rope_theta": 500.0}}

MISTRAL = {
    "architectures": ["MistralForCausalLM"],
    "bos_token_id": 1,
    "eos_token_id": 2,
    "hidden_act": "silu",
    "hidden_size": 4096,
    "initializer_range": 0.02,
    "intermediate_size": 14336,
    "max_position_embeddings": 32768,
    "model_type": "mistral",
    "num_attention_heads": 32,
    "num_hidden_layers": 32,
    "num_key_value_heads": 8,
    "rms_norm_eps": 1e-05,
    "rope_theta": 10000.0,
    "sliding_window": 4096,
    "tie_word_embeddings": False,
    "torch_dtype": "bfloat16",
    "transformers_version": "4.34.0.dev0",
    "use_cache": True,
    "vocab_size": 32000,
}
LLAMA = {
    "architectures": ["LlamaForCausalLM"],
    "attention_bias": False,
    "attention_dropout": 0.0,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "hidden_act": "silu",
    "hidden_size": 2048,
    "initializer_range": 0.02,
    "intermediate_size": 5632,
    "max_position_embeddings": 4096,
    "mlp_bias": False,
    "model_type": "llama",
    "num_attention_heads": 32,
    "num_hidden_layers": 22,
    "num_key_value_heads": 4,
    "pretraining_tp": 1,
    "rms_norm_eps": 1e-05,
    "rope_scaling": None,
    "rope_theta": 10000.0,
    "tie_word_embeddings": False,
    "torch_dtype": "float16",
    "transformers_version": "4.31.0",
    "use_cache": True,
    "vocab_size": 32000,
}
PUBLISHED = {
    "Mistral 7B v0.1": MISTRAL,
    "Mistral 7B v0.3": MISTRAL
    | {"sliding_window": None, "rope_theta": 1e6, "vocab_size": 32768, "attention_dropout": 0.0, "head_dim": 128},
    "Zephyr": MISTRAL | {"_name_or_path": "mistralai/Mistral-7B-v0.1", "pad_token_id": 2, "use_cache": False},
    "Llama 2": LLAMA | {"_name_or_path": "meta-llama/Llama-2-7b-hf", "pad_token_id": 0, "max_length": 4096},
    "Llama 3": LLAMA | {"rope_theta": 500000.0, "eos_token_id": [128001, 128009], "vocab_size": 128256},
    "SmolLM2": LLAMA
    | {
        "is_llama_config": True,
        "rope_interleaved": False,
        "tie_word_embeddings": True,
        "pad_token_id": 2,
        "transformers.js_config": {"kv_cache_dtype": {"fp16": "float16", "q4f16": "float16"}, "dtype": "q4"},
    },
    "Vicuna": LLAMA | {"max_sequence_length": 2048, "temperature": 0.9, "top_p": 0.6, "num_key_value_heads": 32},
    "Yi": LLAMA | {"pad_token_id": 0, "rope_theta": 5e6, "vocab_size": 64000},
    "unsloth": MISTRAL
    | {
        "unsloth_fixed": True,
        "unsloth_version": "2024.9",
        "_attn_implementation_autoset": True,
        "_attn_implementation": "sdpa",
        "cache_implementation": "hybrid",
        "tokenizer_class": "LlamaTokenizer",
        "id2label": {"0": "LABEL_0", "1": "LABEL_1"},
        "label2id": {"LABEL_0": 0, "LABEL_1": 1},
    },
}

UNDERSTOOD: dict[str, list[tuple[str, dict]]] = {
    "num_key_value_heads": [("Mistral", {"num_key_value_heads": 4}), ("Llama", {"num_key_value_heads": 1})],
    "head_dim": [("Mistral", {"head_dim": 6}), ("Llama", {"head_dim": 8})],
    "hidden_act": [("Llama", {"hidden_act": "swish"})],
    "rms_norm_eps": [("Mistral", {"rms_norm_eps": 0.5})],
    "rope_theta": [("Llama", {"rope_theta": 500.0, "rope_parameters": ...})],
    "rope_parameters": [("Mistral", {"rope_parameters": PLAIN["default"]})],
    "rope_scaling": [("Llama", {"rope_scaling": {"type": "default"}, "rope_theta": 500.0, "rope_parameters": ...})],
    "sliding_window": [("Mistral", {"sliding_window": 5})],
    "layer_types": [
        ("Mistral", {"sliding_window": 5, "layer_types": FULL}),
        ("Mistral", {"sliding_window": 5, "layer_types": SLIDING}),
        ("Mistral", {"sliding_window": 5, "layer_types": None}),
        ("Mistral", {"layer_types": FULL, "sliding_window": ...}),
        ("Llama", {"sliding_window": 5, "layer_types": FULL}),
    ],
    "use_sliding_window": [("Mistral", {"sliding_window": 5, "use_sliding_window": True})],
    "max_window_layers": [("Mistral", {"sliding_window": 5, "max_window_layers": 0})],
    "tie_word_embeddings": [("Llama", {"tie_word_embeddings": True})],
}
"""For each key that shapes the outputs beside the sizes: architecture and changes of config.json, `...` to remove."""

SIZES = {*SHAPE} - {"num_key_value_heads"}
LABELS = {"architectures", "model_type", "bos_token_id", "eos_token_id", "pad_token_id", "id2label", "label2id"}
REWARD = {"num_labels", "mean", "std", "normalize_reward", "value_head_prefix"}
ORDER = [(arch, changes) for cases in UNDERSTOOD.values() for arch, changes in cases]


def write(directory, raw):
    directory.mkdir(exist_ok=True)
    (directory / "config.json").write_text(json.dumps(raw))
    return directory


def refused(directory, raw, *parts):
    with pytest.raises(ConversionError) as caught:
        read_model_config(write(directory, raw))
    message = str(caught.value)
    assert "\n" not in message and "config.json" in message
    for part in parts:
        assert part in message, message


def test_each_key_that_is_read_is_compared_with_transformers():
    assert READ == {*UNDERSTOOD, *SIZES, *LABELS, *REWARD}  # sizes: a wrong one does not fit the tensors


@pytest.mark.parametrize(("architecture", "changes"), ORDER)
def test_logits_are_those_of_transformers(architecture, changes, tmp_path):
    now = {key: value for key, value in changes.items() if value is not ... and key != "layer_types"}
    window = {"sliding_window": None} if architecture == "Mistral" else {}
    config = getattr(transformers, f"{architecture}Config")(**{**SHAPE, **window, **now})
    torch.manual_seed(0)
    getattr(transformers, f"{architecture}ForCausalLM")(config).save_pretrained(tmp_path)
    raw = json.loads((tmp_path / "config.json").read_text()) | changes
    write(tmp_path, {key: value for key, value in raw.items() if value is not ...})

    tokens = np.random.default_rng(0).integers(0, 80, 24).astype(np.int32)
    model = transformers.AutoModelForCausalLM.from_pretrained(tmp_path).eval()
    with torch.no_grad():
        theirs = model(torch.from_numpy(tokens).long()[None]).logits[0].numpy()
    ours = np.concatenate(outputs(open_model(tmp_path), tokens).result(), axis=1)
    np.testing.assert_allclose(ours, theirs, rtol=0, atol=1e-4 * np.abs(theirs).max())
    assert ours.dtype == jnp.float32


@pytest.mark.parametrize(
    ("architecture", "changes"),
    [("Mistral", {"sliding_window": 5, "layer_types": FULL}), ("Mistral", {"sliding_window": 5}), ("Llama", {})],
)
def test_rewards_are_those_of_transformers(architecture, changes, tmp_path):
    now = {key: value for key, value in changes.items() if key != "layer_types"}
    config = getattr(transformers, f"{architecture}Config")(**SHAPE, **now, num_labels=1, pad_token_id=0)
    torch.manual_seed(0)
    getattr(transformers, f"{architecture}ForSequenceClassification")(config).save_pretrained(tmp_path)
    write(tmp_path, json.loads((tmp_path / "config.json").read_text()) | changes)
    tokens = np.random.default_rng(0).integers(1, 80, 24).astype(np.int32)
    model = transformers.AutoModelForSequenceClassification.from_pretrained(tmp_path).eval()
    with torch.no_grad():
        theirs = model(torch.from_numpy(tokens).long()[None]).logits.item()
    (ours,) = outputs(open_model(tmp_path), tokens).result()
    assert ours[-1, 0] == pytest.approx(theirs, rel=1e-4)


@pytest.mark.parametrize("config", [transformers.MistralConfig, transformers.LlamaConfig])
@pytest.mark.parametrize("head", ["CausalLM", "SequenceClassification"])
def test_each_key_of_transformers_is_known(config, head, tmp_path):
    named = {"architectures": [config.__name__.replace("Config", f"For{head}")], "id2label": {0: "reward"}}
    raw = config().to_dict() | named
    read_model_config(write(tmp_path, raw))
    for key in raw:
        try:
            check_keys(tmp_path, {key: "strange"})
        except ConversionError as error:
            assert "unknown" not in str(error)


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_files_are_read_as_transformers_reads_them(name, tmp_path):
    ours = read_model_config(write(tmp_path, PUBLISHED[name]))
    theirs = transformers.AutoConfig.from_pretrained(tmp_path)
    assert ours.sliding_window == getattr(theirs, "sliding_window", None)
    assert ours.rope_theta == theirs.rope_parameters["rope_theta"]
    for here, key in {"num_heads": "num_attention_heads", "num_kv_heads": "num_key_value_heads"}.items():
        assert getattr(ours, here) == getattr(theirs, key)
    for key in ("vocab_size", "hidden_size", "intermediate_size", "head_dim", "rms_norm_eps"):
        assert getattr(ours, key) == getattr(theirs, key)
    assert ours.tie_embeddings == theirs.tie_word_embeddings


@pytest.mark.parametrize(
    ("changes", "parts"),
    [
        ({"layer_types": ["full_attention", "sliding_attention"] * 16}, ["layer_types", "one kind"]),
        ({"layer_types": FULL}, ["layer_types", "one entry per layer, 32"]),
        ({"layer_types": "full_attention"}, ["layer_types", "a list"]),
        ({"layer_types": ["chunked_attention"] * 32}, ["layer_types", "full_attention or sliding_attention"]),
        ({"layer_types": [[]] * 32}, ["layer_types", "full_attention or sliding_attention"]),
        ({"layer_types": ["sliding_attention"] * 32, "sliding_window": None}, ["sliding_window=null", "layer_types"]),
        ({"sliding_window": 0}, ["sliding_window=0", "positive"]),
        ({"use_sliding_window": False}, ["use_sliding_window=false", "sliding_window=4096", "disagree"]),
        ({"use_sliding_window": True, "max_window_layers": 28}, ["max_window_layers=28", "disagree"]),
        ({"rope_parameters": {"rope_theta": 1e4, "factor": 2.0}}, ["rope_parameters", "factor"]),
        ({"rope_scaling": {"type": "default"}, "rope_theta": None, "rope_parameters": PLAIN["default"]}, ["differs"]),
    ],
)
def test_windows_and_rotations_that_no_two_programs_read_alike(changes, parts, tmp_path):
    refused(tmp_path, MISTRAL | changes, *parts)


@pytest.mark.parametrize(
    "changes", [{"sliding_window": 4095}, {"layer_types": ["sliding_attention"] * 22}, {"sliding_window": 0}]
)
def test_a_llama_with_a_window_is_refused(changes, tmp_path):
    refused(tmp_path, LLAMA | changes, *changes, "a Llama has no window")


def test_a_window_longer_than_any_text_changes_nothing(tmp_path):
    changes = {"sliding_window": 4096, "use_sliding_window": False, "max_window_layers": 21}
    assert read_model_config(write(tmp_path, LLAMA | changes)).sliding_window is None


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("attention_bias", True),
        ("mlp_bias", True),
        ("no_bias", False),
        ("quantization_config", {"quant_method": "awq"}),
        ("quantization", {"bits": 4}),
        ("pruned_heads", {"0": [1]}),
        ("auto_map", {"AutoModelForCausalLM": "modeling_x.XForCausalLM"}),
        ("pretraining_tp", 2),
        ("partial_rotary_factor", 0.5),
        ("rope_interleaved", True),
        ("use_rope", False),
        ("no_rope_layers", [1, 0]),
        ("llama_4_scaling_beta", 0.1),
        ("attn_temperature_tuning", True),
        ("position_embedding_type", "alibi"),
        ("logits_scaling", 8.0),
        ("logit_scale", 0.0625),
        ("final_logit_softcapping", 30.0),
        ("attn_logit_softcapping", 50.0),
        ("residual_multiplier", 0.22),
        ("embedding_multiplier", 12.0),
        ("scale_emb", 12),
        ("query_pre_attn_scalar", 256),
        ("attention_multiplier", 0.01),
        ("scale_attn_weights", False),
        ("use_qk_norm", True),
        ("qk_norm", True),
        ("norm_type", "layernorm"),
        ("activation_function", "gelu"),
        ("num_experts", 8),
        ("num_local_experts", 8),
        ("sinks", True),
        ("is_causal", False),
        ("per_layer_config", {"0": {"sliding_window": 8}}),
        ("attention_chunk_size", 8192),
        ("num_nextn_predict_layers", 1),
    ],
)
def test_a_key_that_changes_the_model_is_refused_by_name(key, value, tmp_path):
    refused(tmp_path, LLAMA | {key: value}, f"{key}=", "not supported", "allowed: ")


@pytest.mark.parametrize("value", [0, 1, 0.5, True, "x", [1], {"a": 1}])
def test_unknown_keys_are_refused_all_at_once(value, tmp_path):
    parts = [f"strange={json.dumps(value)}", "other=3", "unknown", "remove the key"]
    refused(tmp_path, MISTRAL | {"strange": value, "other": 3}, *parts)


@pytest.mark.parametrize("value", [None, False, "", [], {}])
def test_unknown_keys_without_a_value_pass(value, tmp_path):
    assert read_model_config(write(tmp_path, MISTRAL | {"strange": value})) == read_model_config(
        write(tmp_path, MISTRAL)
    )


def test_what_is_ignored_is_listed_with_a_reason():
    notes = {"attention_dropout": 0.1, "hidden_dropout": 0.0, "_name_or_path": "x", "unsloth_fixed": True}
    raw = MISTRAL | notes | {"top_p": 0.9, "mean": 1.0, "std": None}
    reasons = ignored_keys(raw, reward=True, generation_file=False)
    assert [*reasons] == ["attention_dropout", "_name_or_path", "unsloth_fixed"]
    assert "dropout" in reasons["attention_dropout"]
    reasons = ignored_keys(raw, reward=False, generation_file=True)
    assert [*reasons] == ["attention_dropout", "_name_or_path", "unsloth_fixed", "top_p", "mean"]


def test_settings_of_generation_are_those_of_transformers():
    assert GENERATION <= transformers.GenerationConfig().to_dict().keys()
