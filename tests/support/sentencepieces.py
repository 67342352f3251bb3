"""Tiny sentencepiece models, trained in a tenth of a second."""

import io
from typing import Any

import sentencepiece

LINES = [
    "The quick brown fox jumps over the lazy dog. naïve café, don't!",
    "def f(x):  return x*2 + 3.14",
    "こんにちは 世界 안녕하세요 مرحبا नमस्ते สวัสดี",
    "aaaa bbbb abababa 12345 <s> tag </s> [INST] hello world hello there whatever",
]


def trained(**options: Any) -> bytes:
    """Content of a tokenizer.model; `options` are those of SentencePieceTrainer."""
    content = io.BytesIO()
    usual = {"model_type": "bpe", "vocab_size": 420, "byte_fallback": True, "hard_vocab_limit": False}
    usual |= {"unk_id": 0, "bos_id": 1, "eos_id": 2, "pad_id": -1, "minloglevel": 2, "num_threads": 1}
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(LINES * 6), model_writer=content, **(usual | options)
    )
    return content.getvalue()
