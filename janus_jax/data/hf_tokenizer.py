"""Tokenizer files for an exported Hugging Face directory, as transformers, vllm and mistralrs read them."""

import json
from pathlib import Path
from typing import Any

from janus_jax.data.template import MISTRAL_INST
from janus_jax.data.tokenizer import HFTokenizer, SentencePieceTokenizer, Tokenizer


def save_hf_tokenizer(tokenizer: Tokenizer, directory: str | Path, *, chat_template: str | None = None) -> None:
    """Writes the tokenizer's files into `directory`, which is made if it is not there.

    A tokenizer that came from a Hugging Face directory is copied. A sentencepiece model is written as tokenizer.model
    and as an equal tokenizer.json with its config files (pad is EOS). Other readers turn a literal `<s>` in a text into
    id 1; on text without such literals they give the same ids as sentencepiece.

    Args:
        chat_template: Jinja text, the `chat_template` of the data's Template. None: the [INST] form for a sentencepiece
            model, and what the directory already says for a copied one.
    """
    target = Path(directory)
    tokenizer.save(target)
    if isinstance(tokenizer, SentencePieceTokenizer):
        chat_template = chat_template or MISTRAL_INST.chat_template
        _write_from_sentencepiece(tokenizer, target)
    elif not isinstance(tokenizer, HFTokenizer):
        raise TypeError(f"no Hugging Face form of {type(tokenizer).__name__}")
    if chat_template is not None:
        path = target / "tokenizer_config.json"
        config = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
        _write_json(path, config | {"chat_template": chat_template})
        # transformers prefers this file over the key; older readers know the key alone
        (target / "chat_template.jinja").write_text(chat_template, encoding="utf-8")


def _write_from_sentencepiece(tokenizer: SentencePieceTokenizer, target: Path) -> None:
    """tokenizer.json with byte fallback and merges ranked by piece score; a pre-tokenizer would break spaces."""
    from tokenizers import AddedToken, decoders, normalizers, processors
    from tokenizers import Tokenizer as RustTokenizer
    from tokenizers.models import BPE
    from transformers.convert_slow_tokenizer import generate_merges

    processor = tokenizer.processor
    pieces = [processor.id_to_piece(i) for i in range(tokenizer.vocab_size)]
    vocabulary = {piece: i for i, piece in enumerate(pieces)}
    scores = {piece: processor.get_score(i) for i, piece in enumerate(pieces)}
    special = {
        f"{name}_token": pieces[i]
        for name, i in (("bos", tokenizer.bos_id), ("eos", tokenizer.eos_id), ("unk", tokenizer.unk_id))
        if i is not None
    }
    model = BPE(
        vocabulary,
        generate_merges(vocabulary, scores),
        unk_token=special.get("unk_token"),
        fuse_unk=True,
        byte_fallback=True,
        dropout=None,
    )
    rust = RustTokenizer(model)
    rust.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    rust.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    rust.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in special.values()])
    if tokenizer.bos_id is not None:
        bos = special["bos_token"]
        rust.post_processor = processors.TemplateProcessing(
            single=f"{bos} $A", pair=f"{bos} $A {bos}:1 $B:1", special_tokens=[(bos, tokenizer.bos_id)]
        )
    rust.save(str(target / "tokenizer.json"))
    special["pad_token"] = special["eos_token"]
    _write_json(target / "special_tokens_map.json", special)
    _write_json(
        target / "tokenizer_config.json",
        special
        | {
            "tokenizer_class": "PreTrainedTokenizerFast",
            "add_bos_token": tokenizer.bos_id is not None,
            "add_eos_token": False,
            "clean_up_tokenization_spaces": False,
        },
    )


def _write_json(path: Path, value: dict[str, Any]) -> None:
    path.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
