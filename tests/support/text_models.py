"""Directories of tiny models that read and write text."""

import dataclasses
from pathlib import Path

from janus_jax.checkpoint.hf.read import save_hf
from janus_jax.text.chat_format import ChatFormat
from janus_jax.text.template import TEMPLATES
from janus_jax.text.tokenizer import load_tokenizer, save_hf_tokenizer
from tests.support import torch_models
from tests.support.models import SMALL, random_params
from tests.support.tokenizers import byte_level


def _with_tokenizer(path: Path, template: str) -> Path:
    tokenizer = load_tokenizer(byte_level(path.parent / f"{path.name}_t", ("<|im_start|>", "<|im_end|>"), bos="<s>"))
    save_hf_tokenizer(tokenizer, path, chat_template=ChatFormat(TEMPLATES[template], tokenizer).chat_template)
    return path


def language_model(path: Path, template: str = "chatml") -> Path:
    """A random language model with 400 ids that reads up to 128 tokens."""
    torch_models.mistral(vocab_size=400).save_pretrained(path)
    return _with_tokenizer(path, template)


def reward_model(path: Path, template: str = "chatml", longest: int = 256, ids: int = 400) -> Path:
    """A random reward model."""
    config = dataclasses.replace(SMALL, vocab_size=ids, max_position_embeddings=longest, head="value")
    save_hf(random_params(config), config, path)
    return _with_tokenizer(path, template)
