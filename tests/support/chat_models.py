"""A tiny random model that reads conversations, as a Hugging Face directory."""

from pathlib import Path
from typing import Any

from janus_jax.text.chat_format import ChatFormat
from janus_jax.text.template import CHATML
from janus_jax.text.tokenizer import load_tokenizer, save_hf_tokenizer
from tests.support import torch_models
from tests.support.tokenizers import byte_level


def chat_model(root: Path, **changes: Any) -> Path:
    """Writes it below an empty directory. It knows CHATML and 400 ids."""
    tokenizer = load_tokenizer(byte_level(root / "tokenizer", ("<|im_start|>", "<|im_end|>"), bos="<s>"))
    torch_models.mistral(vocab_size=400, **changes).save_pretrained(root / "hf")
    save_hf_tokenizer(tokenizer, root / "hf", chat_template=ChatFormat(CHATML, tokenizer).chat_template)
    return root / "hf"
