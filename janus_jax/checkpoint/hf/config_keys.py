"""The keys of config.json: read, ignored knowingly, or accepted at a neutral value only. All others are refused."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from janus_jax.errors import ConversionError

_REWARD = ("mean", "std", "normalize_reward", "value_head_prefix")  # of OpenRLHF's reward models
READ = frozenset(
    """
    architectures model_type vocab_size hidden_size intermediate_size num_hidden_layers num_attention_heads
    num_key_value_heads head_dim hidden_act max_position_embeddings initializer_range rms_norm_eps rope_theta
    rope_parameters rope_scaling sliding_window layer_types use_sliding_window max_window_layers tie_word_embeddings
    bos_token_id eos_token_id pad_token_id id2label label2id num_labels
    """.split()
).union(_REWARD)
"""Keys that shape the model or travel with it."""

GENERATION = frozenset(
    """
    max_length min_length max_new_tokens min_new_tokens do_sample early_stopping num_beams num_beam_groups
    diversity_penalty temperature top_k top_p min_p typical_p epsilon_cutoff eta_cutoff penalty_alpha
    repetition_penalty length_penalty no_repeat_ngram_size encoder_no_repeat_ngram_size bad_words_ids
    num_return_sequences forced_bos_token_id forced_eos_token_id remove_invalid_values
    exponential_decay_length_penalty suppress_tokens begin_suppress_tokens stop_strings
    """.split()
)
"""Settings of text generation that old versions of transformers keep in config.json. They travel as
generation_config.json, which counts instead where it exists."""

_IGNORED = {
    "the program that loads the model decides this": """
        use_cache torch_dtype dtype attn_implementation use_flash_attn use_flash_attention use_flash_attention_2
        flash_attn flash_attention gradient_checkpointing use_gradient_checkpointing torchscript use_bfloat16
        tf_legacy_loss return_dict return_dict_in_generate output_attentions output_hidden_states output_scores
        tie_last_hidden_states keys_to_ignore_at_inference cache_implementation chunk_size_feed_forward
        trust_remote_code transformers.js_config neuron
        """,
    "a note of the program that wrote the file": """
        transformers_version name_or_path tokenizer_class processor_class model_max_length max_sequence_length
        max_seq_length max_seq_len seq_length tokenizer_model_max_length tokenizer_padding_side padding_side
        task_specific_params finetuning_task problem_type prefix license base_model model_name is_llama_config
        transformers_weights packing_samples
        """,
    "decoders of this kind have no use for it": """
        sep_token_id cls_token_id mask_token_id unk_token_id decoder_start_token_id is_decoder
        cross_attention_hidden_size tie_encoder_decoder
        """,
}
_NO_DROPOUT = "dropout of training; training here has none"
_IGNORED_ENDINGS = {"dropout": _NO_DROPOUT, "_pdrop": _NO_DROPOUT, "_dropout_prob": _NO_DROPOUT}
_IGNORED_BEGINNINGS = {
    "_": "private to the program that wrote the file",
    "unsloth_": "a note of the program that wrote the file",
}
_WRITTEN_ANYWAY = ("use_cache", "torch_dtype", "dtype", "transformers_version")

_NEUTRAL: dict[str, dict[str, tuple[Any, ...]]] = {
    "the model has no biases": {
        **dict.fromkeys(("attention_bias", "mlp_bias", "use_bias", "bias", "qkv_bias", "use_qkv_bias"), (False,)),
        "no_bias": (True,),
    },
    "quantised or pruned weights are not read": dict.fromkeys(
        ("quantization_config", "quantization", "compression_config", "sparsity_config", "pruned_heads"), ({},)
    ),
    "it names code that is not run here; if the plain class gives the same outputs, remove the key": {
        "auto_map": ({},),
        "custom_pipelines": ({},),
    },
    "the weights of tensor-parallel pretraining are not added in slices": {"pretraining_tp": (0, 1)},
    "rotary embeddings turn all of each head, in two halves, at every layer, without scaling": {
        **dict.fromkeys(("partial_rotary_factor", "rotary_pct", "rotary_percent", "rope_ratio"), (1,)),
        **dict.fromkeys(("rope_interleaved", "rope_traditional", "use_dynamic_ntk", "use_logn_attn"), (False,)),
        **dict.fromkeys(("use_rope", "rope"), (True,)),
        **dict.fromkeys(("rope_local_base_freq", "llama_4_scaling_beta"), ()),
        **dict.fromkeys(("no_rope_layers", "nope_layers"), ([],)),
        "no_rope_layer_interval": (0,),
        "attn_temperature_tuning": (False, 0),
        "position_embedding_type": ("rope", "rotary"),
        "alibi": (False,),
    },
    "embeddings, layers, attention and logits are not scaled or capped": {
        **dict.fromkeys(("logits_scaling", "logit_scale", "residual_multiplier", "embedding_multiplier"), (1,)),
        **dict.fromkeys(("scale_emb", "lm_head_multiplier", "attn_scale", "output_multiplier_scale"), (1,)),
        **dict.fromkeys(("final_logit_softcapping", "attn_logit_softcapping", "attn_logit_softcap"), ()),
        **dict.fromkeys(("attention_multiplier", "query_pre_attn_scalar", "scale_depth", "dim_model_base"), ()),
        **dict.fromkeys(("scale_attn_weights", "scale_attention"), (True,)),
        "scale_attn_by_inverse_layer_idx": (False,),
        "clip_qkv": (),
    },
    "norms are RMS norms before attention and feed-forward, and nowhere else": {
        **dict.fromkeys(("qk_norm", "use_qk_norm", "qk_layernorm", "use_qk_layernorm"), (False,)),
        **dict.fromkeys(("use_rmsnorm", "use_rms_norm", "rms_norm", "pre_norm"), (True,)),
        **dict.fromkeys(("norm_type", "layernorm_type"), ("rmsnorm", "rms_norm", "RMSNorm")),
    },
    "the feed-forward is gated by SiLU": {
        **dict.fromkeys(("hidden_activation", "activation_function", "mlp_hidden_act"), ("silu", "swish")),
        **dict.fromkeys(("gated_mlp", "use_gated_mlp", "glu"), (True,)),
    },
    "there are no experts": dict.fromkeys(
        ("num_experts", "num_local_experts", "n_routed_experts", "n_shared_experts", "num_experts_per_tok"), (0,)
    ),
    "attention is causal, within one text, without sinks and alike in all layers": {
        **dict.fromkeys(("is_causal", "causal"), (True,)),
        **dict.fromkeys(("is_encoder_decoder", "add_cross_attention", "use_bidirectional_attention"), (False,)),
        **dict.fromkeys(("sinks", "attention_sinks", "use_attention_sinks", "attention_sink"), (False,)),
        **dict.fromkeys(("attention_chunk_size", "sliding_window_pattern", "interleaved_sliding_window"), ()),
        "per_layer_config": ({},),
        "use_parallel_residual": (False,),
    },
    "the model predicts one token at a time": {"num_nextn_predict_layers": (0,)},
}
_NEUTRAL_VALUES = {key: (values, why) for why, group in _NEUTRAL.items() for key, values in group.items()}
_REASONS = {key: why for why, keys in _IGNORED.items() for key in keys.split()}


def check_keys(file: Path, raw: Mapping[str, Any]) -> None:
    """Refuses keys of config.json that may change the computation in a way that this model lacks.

    An unknown key passes only if its value is null, false or empty.

    Raises:
        ConversionError: names the file, the keys and their values.
    """
    unknown = []
    for key, value in raw.items():
        if key in _NEUTRAL_VALUES:
            neutral, why = _NEUTRAL_VALUES[key]
            if value is not None and value not in neutral:
                allowed = " or ".join(json.dumps(one) for one in (*neutral, None))
                raise ConversionError(file, f"{key}={_shown(value)}: not supported: {why}; allowed: {allowed}")
        elif key not in READ and key not in GENERATION and _ignored_because(key) is None and not _is_empty(value):
            unknown.append(f"{key}={_shown(value)}")
    if unknown:
        raise ConversionError(
            file,
            f"{', '.join(unknown)}: unknown, and may change what the model computes. If a plain Mistral or Llama gives "
            "the same outputs, remove the key from config.json",
        )


def ignored_keys(raw: Mapping[str, Any], *, reward: bool, generation_file: bool) -> dict[str, str]:
    """Keys of an accepted config.json that no conversion carries over, with the reason; not those without a value.

    Args:
        reward: the directory holds a reward model.
        generation_file: it has a generation_config.json.
    """
    reasons: dict[str, str] = {}
    for key, value in raw.items():
        why = _ignored_because(key)
        if key in GENERATION and generation_file:
            why = "generation_config.json counts instead"
        elif key in _REWARD and not reward:
            why = "a language model gives no rewards"
        if why is None or key in _WRITTEN_ANYWAY or _is_empty(value) or (why == _NO_DROPOUT and value == 0):
            continue
        reasons[key] = why
    return reasons


def _ignored_because(key: str) -> str | None:
    if key in _REASONS:
        return _REASONS[key]
    for ending, why in _IGNORED_ENDINGS.items():
        if key.endswith(ending):
            return why
    return next((why for beginning, why in _IGNORED_BEGINNINGS.items() if key.startswith(beginning)), None)


def _is_empty(value: Any) -> bool:
    return value is None or value is False or value == "" or value == [] or value == {}


def _shown(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
