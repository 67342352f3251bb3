"""`config.json` of a Hugging Face directory to and from `ModelConfig`, in the spellings of transformers 4 and 5."""

import json
import math
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax.numpy as jnp

from janus_jax.checkpoint.hf.config_keys import check_keys
from janus_jax.checkpoint.hf.files import damage
from janus_jax.checkpoint.hf.keys import VALUE_HEADS, Layout
from janus_jax.errors import ConversionError
from janus_jax.model.config import Head, ModelConfig
from janus_jax.storage.json_text import json_kind, strict_json

# Values that transformers assumes for keys missing from config.json (MistralConfig, LlamaConfig).
_MISTRAL = {"num_key_value_heads": 8, "max_position_embeddings": 131072, "sliding_window": 4096}
_LLAMA = {"num_key_value_heads": None, "max_position_embeddings": 2048}
_DEFAULTS: dict[str, dict[str, Any]] = {
    "MistralForCausalLM": _MISTRAL,
    "LlamaForCausalLM": _LLAMA,
    "MistralForSequenceClassification": _MISTRAL,
    "LlamaForSequenceClassification": _LLAMA,
}
_MODEL_TYPES = {"mistral": "MistralForCausalLM", "llama": "LlamaForCausalLM"}
_MODEL_NAMES: dict[Head, str] = {"lm": "MistralForCausalLM", "value": "MistralForSequenceClassification"}
_OPENRLHF_NAMES = ("LLMForSequenceRegression", "RewardModel")
"""Class names of OpenRLHF's reward models, as `save_pretrained` writes them. The first was in use when Janus-RM was
trained. transformers has neither class, and OpenRLHF ignores the name when it reads."""
_DEFAULT_THETA = 10000.0
_ROPE_KEYS = ("rope_theta", "rope_type", "type", "partial_rotary_factor", "original_max_position_embeddings")
_LAYER_KINDS = {
    "full_attention": "full_attention",
    "attention": "full_attention",  # an older name
    "sliding_attention": "sliding_attention",
}


def read_json(file: Path) -> dict[str, Any]:
    """A JSON object from a file.

    Raises:
        ConversionError: the file is missing, unreadable, not JSON or not an object, or names a key twice; names the
            file and line.
    """
    try:
        value = strict_json(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ConversionError(file, "no such file") from None
    except json.JSONDecodeError as error:
        if (reason := damage(file)) is not None:
            raise ConversionError(file, reason) from error
        raise ConversionError(f"{file}:{error.lineno}", f"not valid JSON: {error.msg}") from error
    except (OSError, UnicodeDecodeError) as error:
        raise ConversionError(file, f"cannot be read: {error}") from error
    except ValueError as error:
        raise ConversionError(file, str(error)) from error
    if not isinstance(value, dict):
        raise ConversionError(file, f"holds {json_kind(value)}; allowed: an object")
    return value


def read_model_config(directory: str | Path) -> ModelConfig:
    """The architecture of a Mistral- or Llama-shaped Hugging Face directory.

    Raises:
        ConversionError: the file is missing, or it names another architecture or a feature that this model lacks;
            names file and key.
    """
    file = Path(os.path.expanduser(directory)) / "config.json"
    if not file.parent.is_dir():
        raise ConversionError(file.parent, "no such directory")
    return _Reader(file, read_json(file)).model_config()


class _Reader:
    """config.json, with accessors whose errors name the file, the key, its value and the allowed values."""

    def __init__(self, file: Path, raw: dict[str, Any]):
        self.file, self.raw = file, raw
        self.architecture = self._architecture()

    def refuse(self, key: str, allowed: str) -> ConversionError:
        return ConversionError(self.file, f"{key}={json.dumps(self.raw.get(key))}: {allowed}")

    def _architecture(self) -> str:
        names, kind = self.raw.get("architectures"), self.raw.get("model_type")
        if not isinstance(kind, str) or (kind not in _MODEL_TYPES and not names):  # AutoConfig needs it too
            raise self.refuse("model_type", f"allowed: {', '.join(_MODEL_TYPES)}")
        if not names:
            return _MODEL_TYPES[kind]
        allowed = (*_DEFAULTS, *_OPENRLHF_NAMES)
        if not isinstance(names, list) or len(names) != 1 or names[0] not in allowed:
            raise self.refuse("architectures", f"allowed: {' or '.join(json.dumps([name]) for name in allowed)}")
        if names[0] in _OPENRLHF_NAMES and kind not in _MODEL_TYPES:
            raise self.refuse("model_type", f"allowed: {', '.join(_MODEL_TYPES)}")
        if names[0] in _DEFAULTS and (not kind or not names[0].lower().startswith(kind)):
            raise self.refuse("model_type", f"does not match architectures={json.dumps(names)}")
        return names[0]

    @property
    def head(self) -> Head:
        classifier = self.architecture.endswith("ForSequenceClassification")
        return "value" if classifier or self.architecture in _OPENRLHF_NAMES else "lm"

    @property
    def defaults(self) -> dict[str, Any]:
        name = self.architecture
        return _DEFAULTS[_MODEL_TYPES[self.raw["model_type"]] if name in _OPENRLHF_NAMES else name]

    def labels(self) -> int:
        """Number of outputs of a classifier; transformers assumes two."""
        labels = self.raw.get("id2label")
        return len(labels) if isinstance(labels, dict) else self.raw.get("num_labels", 2)

    def number(self, key: str, kind: type[int] | type[float], default: Any = ...) -> Any:
        value: Any = self.raw.get(key, default)
        if value is ...:
            raise ConversionError(self.file, f"{key} is missing; allowed: a positive number")
        if value is None and default is None:
            return None
        if isinstance(value, bool) or not isinstance(value, (int, kind)) or not 0 < value < math.inf:
            raise self.refuse(key, f"allowed: a positive {'whole number' if kind is int else 'number'}")
        return kind(value)

    def rope_theta(self) -> float:
        """transformers takes the first that it has of rope_scaling, rope_parameters and the key itself. A file in which
        they differ is refused."""
        top = self.raw.get("rope_theta")
        thetas: dict[str, Any] = {} if top is None else {"rope_theta": top}
        for key in ("rope_parameters", "rope_scaling"):
            group = self.raw.get(key)
            if group is None:
                continue
            kind = group.get("rope_type", group.get("type", "default")) if isinstance(group, dict) else None
            if kind != "default" or any(isinstance(value, dict) for value in group.values()):
                raise self.refuse(key, 'allowed: rotary embeddings without scaling (rope_type "default")')
            for name, value in group.items():
                if name == "partial_rotary_factor" and value not in (None, 1):
                    raise self.refuse(key, "partial_rotary_factor must be 1")
                if name not in _ROPE_KEYS and value not in (None, 1):
                    raise self.refuse(key, f"{name} is not supported; allowed: {', '.join(_ROPE_KEYS)}")
            if group:
                thetas[key] = group.get("rope_theta", _DEFAULT_THETA if top is None else top)
        for key, theta in thetas.items():
            if isinstance(theta, bool) or not isinstance(theta, int | float) or not 0 < theta < math.inf:
                raise self.refuse(key, "rope_theta must be a positive number")
        if len(set(thetas.values())) > 1:
            raise ConversionError(self.file, f"rope_theta differs between {', '.join(thetas)}: {thetas}")
        return float(next(iter(thetas.values()), _DEFAULT_THETA))

    def sliding_window(self, layers: int) -> int | None:
        """As transformers' AutoModel reads it. What its versions or other programs read in another way is refused."""
        kinds = self.layer_kinds(layers)
        if kinds == {"full_attention"}:  # transformers then reads a Mistral as a Ministral, and ignores the window
            return None
        default = self.defaults.get("sliding_window")
        if default is None:
            self.check_llama_window(kinds)
            return None
        if self.raw.get("sliding_window", default) is None:
            if kinds:
                raise self.refuse("sliding_window", "allowed with layer_types of sliding_attention: a number of slots")
            return None
        window: int = self.number("sliding_window", int, default)
        for key, allowed in (("use_sliding_window", (None, True)), ("max_window_layers", (None, 0))):
            if self.raw.get(key) not in allowed:
                raise self.refuse(
                    key, f"with sliding_window={window}, programs disagree on its meaning; remove one of these two keys"
                )
        return window

    def check_llama_window(self, kinds: set[str]) -> None:
        """transformers ignores a Llama's window, but not in the cache of generation. A long one changes nothing."""
        window = self.raw.get("sliding_window")
        longest = self.number("max_position_embeddings", int, self.defaults["max_position_embeddings"])
        if window is not None and not (isinstance(window, int) and window >= longest):
            raise self.refuse("sliding_window", f"a Llama has no window; allowed: null, or {longest} or more")
        if kinds:
            raise self.refuse("layer_types", 'a Llama has no window; allowed: "full_attention" for all layers')

    def layer_kinds(self, layers: int) -> set[str]:
        """The kinds of attention in layer_types: at most one; empty if the file names none."""
        kinds = self.raw.get("layer_types")
        if kinds is None:
            return set()
        if not isinstance(kinds, list) or len(kinds) != layers:
            raise self.refuse("layer_types", f"allowed: a list with one entry per layer, {layers}")
        if not all(isinstance(kind, str) and kind in _LAYER_KINDS for kind in kinds):
            raise self.refuse("layer_types", f"allowed: {' or '.join(dict.fromkeys(_LAYER_KINDS.values()))}")
        if len(names := {_LAYER_KINDS[kind] for kind in kinds}) > 1:
            raise self.refuse("layer_types", "all layers must be of one kind")
        return names

    def check_features(self) -> None:
        check_keys(self.file, self.raw)
        if self.raw.get("hidden_act", "silu") not in ("silu", "swish"):
            raise self.refuse("hidden_act", 'allowed: "silu"')
        if self.architecture.endswith("ForSequenceClassification") and (labels := self.labels()) != 1:
            raise ConversionError(
                self.file, f"{self.architecture} has {labels} labels (id2label); allowed: 1, the reward"
            )
        if not isinstance(self.raw.get("tie_word_embeddings", False), bool):
            raise self.refuse("tie_word_embeddings", "allowed: true or false")

    def model_config(self) -> ModelConfig:
        self.check_features()
        defaults = self.defaults
        width, heads = self.number("hidden_size", int), self.number("num_attention_heads", int)
        head_dim = self.number("head_dim", int, None)
        if head_dim is None and width % heads:
            raise self.refuse("hidden_size", f"without head_dim it must be a multiple of num_attention_heads={heads}")
        kv_heads = self.raw.get("num_key_value_heads", defaults["num_key_value_heads"])
        layers = self.number("num_hidden_layers", int)
        try:
            return ModelConfig(
                vocab_size=self.number("vocab_size", int),
                hidden_size=width,
                intermediate_size=self.number("intermediate_size", int),
                num_layers=layers,
                num_heads=heads,
                num_kv_heads=heads if kv_heads is None else self.number("num_key_value_heads", int, kv_heads),
                head_dim=head_dim or width // heads,
                rope_theta=self.rope_theta(),
                rms_norm_eps=self.number("rms_norm_eps", float, 1e-6),
                sliding_window=self.sliding_window(layers),
                tie_embeddings=self.raw.get("tie_word_embeddings", False),
                max_position_embeddings=self.number(
                    "max_position_embeddings", int, defaults["max_position_embeddings"]
                ),
                initializer_range=self.number("initializer_range", float, 0.02),
                head=self.head,
            )
        except ValueError as error:
            raise ConversionError(self.file, f"{error}") from error


def hf_config(
    config: ModelConfig,
    dtype: Any,
    *,
    bos_id: int | None = 1,
    eos_id: int | list[int] | None = 2,
    pad_id: int | None = None,
    layout: Layout = "transformers",
    reward: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """config.json of `MistralForCausalLM`, with the keys of transformers 4 and runtimes that follow it (rope_theta at
    the top, torch_dtype) and those of transformers 5 (rope_parameters, dtype).

    A reward model is a `MistralForSequenceClassification` with one label. Its reward is read at the last token that is
    not `pad_token_id`, so that id must not be EOS: it is `pad_id` if that is allowed, otherwise 0 (`<unk>`), with which
    sentencepiece never ends a text. In OpenRLHF's layout the class and the head have OpenRLHF's names.

    Args:
        dtype: of the stored tensors.
        reward: `mean` and `std` of a reward model's rewards, and `normalize_reward`, under OpenRLHF's keys.
    """
    name = jnp.dtype(dtype).name
    extra: dict[str, Any] = {} if pad_id is None else {"pad_token_id": pad_id}
    if config.head == "value":
        extra = {
            "id2label": {"0": "reward"},
            "label2id": {"reward": 0},
            "pad_token_id": _reward_pad(config, eos_id, pad_id),
            **{key: value for key, value in (reward or {}).items() if key != "normalize_reward"},
        }
    architecture = _MODEL_NAMES[config.head]
    if config.head == "value" and layout == "openrlhf":
        architecture = _OPENRLHF_NAMES[0]
        head = VALUE_HEADS[layout].removesuffix(".weight")
        # Later versions need the head's name. Older ones know one name only, and fail without normalize_reward.
        extra |= {"value_head_prefix": head, "normalize_reward": bool((reward or {}).get("normalize_reward"))}
    return {
        "architectures": [architecture],
        "model_type": "mistral",
        "vocab_size": config.vocab_size,
        "hidden_size": config.hidden_size,
        "intermediate_size": config.intermediate_size,
        "num_hidden_layers": config.num_layers,
        "num_attention_heads": config.num_heads,
        "num_key_value_heads": config.num_kv_heads,
        "head_dim": config.head_dim,
        "hidden_act": "silu",
        "max_position_embeddings": config.max_position_embeddings,
        "initializer_range": config.initializer_range,
        "rms_norm_eps": config.rms_norm_eps,
        "rope_theta": config.rope_theta,
        "rope_parameters": {"rope_theta": config.rope_theta, "rope_type": "default"},
        "sliding_window": config.sliding_window,
        "attention_dropout": 0.0,
        "tie_word_embeddings": config.tie_embeddings,
        "use_cache": True,
        "bos_token_id": bos_id,
        "eos_token_id": eos_id,
        "torch_dtype": name,
        "dtype": name,
        **extra,
    }


def _reward_pad(config: ModelConfig, eos_id: int | list[int] | None, pad_id: int | None) -> int:
    ends = eos_id if isinstance(eos_id, list) else [eos_id]
    if pad_id is not None and 0 <= pad_id < config.vocab_size and pad_id not in ends:
        return pad_id
    return next(i for i in range(len(ends) + 1) if i not in ends)
