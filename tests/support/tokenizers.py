"""Tokenizers made for tests."""

import json
from collections.abc import Sequence
from pathlib import Path

WORDS = "the quick brown fox don't naïve 世界 안녕 مرحبا नमस्ते 3.14 x*2 — é ﬁ 😀".split(" ")
WORDS += ["'", '"', "\\", "{{ }}", "{system}", "{% if %}", "# [x]"]
WORDS += ["\n", "\n\n", "\t", "", "e\u0301"]


def byte_level_directory(directory: Path) -> Path:
    """A small byte-level BPE with three special tokens and one ordinary added word, as a Hugging Face directory."""
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    special = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=300, special_tokens=special, initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator(["the bread rises and the bread bakes"] * 3, trainer)
    tokenizer.add_tokens([AddedToken("janusword", special=False)])
    directory.mkdir(parents=True, exist_ok=True)
    tokenizer.save(str(directory / "tokenizer.json"))
    return directory


def byte_level(
    directory: Path, special: Sequence[str] = (), bos: str | None = None, config: dict | None = None
) -> Path:
    """A byte-level BPE whose EOS is </s> or <|im_end|>, as Llama 3 and SmolLM2 have it."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    eos = "<|im_end|>" if "<|im_end|>" in special else "</s>"
    names = list(dict.fromkeys(filter(None, (bos, eos, *special))))
    trainer = trainers.BpeTrainer(
        vocab_size=400, special_tokens=names, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False
    )
    tokenizer.train_from_iterator([" ".join(WORDS)] * 4, trainer)
    directory.mkdir()
    tokenizer.save(str(directory / "tokenizer.json"))
    declared = {"tokenizer_class": "PreTrainedTokenizerFast", "eos_token": eos, "pad_token": eos}
    declared |= {"bos_token": bos} if bos else {}
    (directory / "tokenizer_config.json").write_text(json.dumps(declared | (config or {})))
    return directory


def metaspace(directory: Path, scheme: str) -> Path:
    """A BPE with sentencepiece's spaces, as converted tokenizers of Mistral have it; [INST] is a control token."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.BPE(unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme=scheme)
    tokenizer.decoder = decoders.Metaspace(prepend_scheme=scheme)
    names = ["<unk>", "<s>", "</s>", "[INST]", "[/INST]"]
    tokenizer.train_from_iterator(
        [" ".join(WORDS)] * 4, trainers.BpeTrainer(vocab_size=300, special_tokens=names, show_progress=False)
    )
    directory.mkdir()
    tokenizer.save(str(directory / "tokenizer.json"))
    declared = {"tokenizer_class": "PreTrainedTokenizerFast", "bos_token": "<s>", "eos_token": "</s>"}
    (directory / "tokenizer_config.json").write_text(json.dumps(declared | {"unk_token": "<unk>"}))
    return directory
