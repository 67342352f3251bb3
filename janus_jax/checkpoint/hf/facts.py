"""Metadata of a model beside its architecture and weights, which every conversion keeps."""

import dataclasses
import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from janus_jax.checkpoint.hf.config import read_json
from janus_jax.checkpoint.hf.config_keys import GENERATION
from janus_jax.checkpoint.hf.files import read_texts
from janus_jax.errors import ConversionError, DataError
from janus_jax.text.chat_format import ChatFormat
from janus_jax.text.hf_files import chat_template_of
from janus_jax.text.template_fit import replaced_template

TOKEN_IDS = ("bos_token_id", "eos_token_id", "pad_token_id")
CARD = "README.md"
_UNUSED_IDS = ("sep_token_id", "cls_token_id", "mask_token_id", "unk_token_id", "decoder_start_token_id")
"""Decoders of this kind have no use for them."""


@dataclasses.dataclass(frozen=True)
class ModelFacts:
    """Metadata that is not part of the architecture: two models of one shape may differ in all of it."""

    token_ids: dict[str, Any] = dataclasses.field(default_factory=dict)
    """Keys of `TOKEN_IDS` that config.json has: an id, a list of ids (EOS only), or null."""
    generation: dict[str, Any] = dataclasses.field(default_factory=dict)
    """generation_config.json; without it, the settings of generation that old files have in config.json."""
    reward: dict[str, Any] = dataclasses.field(default_factory=dict)
    """Reward statistics of a reward model under OpenRLHF's keys: `mean` and `std` of its rewards on held-out pairs, and
    `normalize_reward`."""
    base_model: str | None = None
    """Hub id of the model itself, or of the model that its training began with."""
    chat_template: str = ""
    """Jinja text of the chat template of the model itself, or of the model that its training began with; empty for
    none. An export of a run writes that of the run's data instead."""
    card: str | None = None
    """README.md of a Hugging Face directory."""
    texts: dict[str, str] = dataclasses.field(default_factory=dict)
    """Licences, notices and additional chat templates: name and content (`files.read_texts`)."""

    def after_training(self, reward: dict[str, Any]) -> "ModelFacts":
        """The facts of a model that training made from this one. Its special ids are those of the data's tokenizer.

        Args:
            reward: its own reward statistics; empty if it has none.
        """
        generation = {name: value for name, value in self.generation.items() if name not in TOKEN_IDS}
        kept: dict[str, Any] = {"base_model": self.base_model, "chat_template": self.chat_template, "texts": self.texts}
        return ModelFacts(generation=generation, reward=reward, **kept)

    def replaced_template(self, chat: ChatFormat) -> str:
        """What the chat template of an export replaces, in one line; empty if it writes the same or there was none.

        Args:
            chat: how training wrote conversations.
        """
        if self.chat_template:
            return replaced_template(chat, self.chat_template, self.base_model or "the model that training began with")
        return replaced_template(chat, chat.tokenizer.chat_template, "the tokenizer")

    @classmethod
    def of_directory(cls, directory: Path, *, reward: bool, base_model: str | None = None) -> "ModelFacts":
        """Reads config.json, generation_config.json, README.md and the licences of a Hugging Face directory.

        Args:
            reward: the directory holds a reward model.
            base_model: its id, if it comes from the hub.

        Raises:
            ConversionError: a file is not JSON, or a value is of the wrong kind; names file and key.
        """
        config, generation = directory / "config.json", directory / "generation_config.json"
        raw, settings = read_json(config), read_json(generation) if generation.is_file() else {}
        for file, values in (
            (config, raw),
            (generation, {} if reward else settings),
        ):  # a reward model generates nothing
            for name in TOKEN_IDS:
                if not _is_id(values.get(name), several=name == "eos_token_id"):
                    raise ConversionError(file, f"{name}={json.dumps(values[name])}: allowed: a token id or null")
            for name in filter(_names_ids, values):
                if not (reward and name == "pad_token_id"):  # a reward model gets another one, if it does not fit
                    _require_rows(file, name, values[name], raw.get("vocab_size"))
        card = directory / CARD
        return cls(
            token_ids={name: raw[name] for name in TOKEN_IDS if name in raw},
            generation=settings
            if generation.is_file()
            else {name: value for name, value in raw.items() if name in GENERATION and value is not None},
            reward=_reward_statistics(config, raw) if reward else {},
            base_model=base_model,
            chat_template=_chat_template(directory),
            card=card.read_text(encoding="utf-8", errors="replace") if card.is_file() else None,
            texts=read_texts(directory),
        )


def _chat_template(directory: Path) -> str:
    try:
        return chat_template_of(directory)
    except DataError:  # whoever needs the tokenizer reports its files
        return ""


def _names_ids(key: str) -> bool:
    """Whether a key of config.json or generation_config.json holds token ids."""
    return key.endswith(("_token_id", "_words_ids", "suppress_tokens")) and key not in _UNUSED_IDS


def _require_rows(file: Path, name: str, ids: Any, vocabulary: Any) -> None:
    """Refuses ids without a row in the embedding. transformers cannot load a model with such a padding id."""
    numbers = list(_numbers(ids))
    if min(numbers, default=0) < 0:
        raise ConversionError(
            file, f"{name}={json.dumps(ids)}: allowed: token ids, which are 0 or more; remove the key if it has none"
        )
    if isinstance(vocabulary, int) and max(numbers, default=0) >= vocabulary:
        raise ConversionError(
            file,
            f"{name}={json.dumps(ids)}: the embedding has no such row (vocab_size={vocabulary}); add rows with "
            "transformers' resize_token_embeddings(len(tokenizer)) and save the model again, or, if the token is not "
            "used, remove the key and the token",
        )


def _numbers(value: Any) -> Iterator[int]:
    """The whole numbers in a value and in lists in it."""
    if isinstance(value, list):
        for one in value:
            yield from _numbers(one)
    elif isinstance(value, int) and not isinstance(value, bool):
        yield value


def _is_id(value: Any, *, several: bool) -> bool:
    if several and isinstance(value, list):
        return bool(value) and all(_is_id(one, several=False) and one is not None for one in value)
    return value is None or (isinstance(value, int) and not isinstance(value, bool))


def _reward_statistics(file: Path, raw: dict[str, Any]) -> dict[str, Any]:
    statistics = {name: raw[name] for name in ("mean", "std", "normalize_reward") if raw.get(name) is not None}
    if ("mean" in statistics) != ("std" in statistics):
        present, missing = ("mean", "std") if "mean" in statistics else ("std", "mean")
        raise ConversionError(file, f"{present} without {missing}: reward statistics need both")
    for name in ("mean", "std"):
        value = statistics.get(name, 1.0)
        number = isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
        if not number or (name == "std" and value <= 0):
            allowed = "a finite number" if name == "mean" else "a positive number"
            raise ConversionError(file, f"{name}={json.dumps(value)}: allowed: {allowed} (reward statistics)")
    if not isinstance(normalize := statistics.get("normalize_reward", False), bool):
        raise ConversionError(file, f"normalize_reward={json.dumps(normalize)}: allowed: true or false")
    return statistics
