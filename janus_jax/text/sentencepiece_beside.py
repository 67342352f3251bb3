"""What the files beside a tokenizer.model say of it: tokens that follow its pieces, and what cannot be read."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from janus_jax.errors import DataError
from janus_jax.text.hf_files import declared_tokens, read_json
from janus_jax.text.hf_tokenizer import HFTokenizer

if TYPE_CHECKING:
    from janus_jax.text.tokenizer import SentencePieceTokenizer

WRITE_JSON = (
    "let transformers write a tokenizer.json (AutoTokenizer.from_pretrained(OLD).save_pretrained(NEW)) and name that "
    "directory"
)
"""A way out, for errors."""

_FLAGS = ("single_word", "lstrip", "rstrip", "special")


class UnusableTokenizer(DataError):
    """Sound files of a sentencepiece model that training cannot use: no EOS, or tokens that the model lacks."""


def added_tokens(directory: Path, size: int) -> dict[str, dict[str, bool]]:
    """The tokens that the files beside a tokenizer.model add behind it, by id, with the fields of AddedToken.

    transformers takes them from `added_tokens_decoder` of tokenizer_config.json or, without that, from
    added_tokens.json. Only those whose reading is certain are returned: without gaps in their ids, and looked for in
    the text as it is (`normalized: false`).

    Args:
        size: pieces of the model.
    """
    decoder = read_json(directory / "tokenizer_config.json").get("added_tokens_decoder")
    fields: dict[str, Any] = {}
    if isinstance(decoder, dict):
        fields = {one["content"]: one | {"id": number} for number, one in decoder.items() if _is_token(one)}
    else:
        declared = declared_tokens(directory)
        for token, number in read_json(directory / "added_tokens.json").items():
            fields[token] = {"normalized": token not in declared, **declared.get(token, {}), "id": number}
    try:
        new = sorted((int(one["id"]), token) for token, one in fields.items() if int(one["id"]) >= size)
    except (TypeError, ValueError):
        return {}
    known = all(fields[token].get("normalized", True) is False for _, token in new)
    if not known or [number for number, _ in new] != list(range(size, size + len(new))):
        return {}
    return {token: {flag: bool(fields[token].get(flag, False)) for flag in _FLAGS} for _, token in new}


def with_added(
    directory: Path, content: str, added: Mapping[str, Mapping[str, bool]], own: Mapping[str, int | None]
) -> HFTokenizer:
    """The tokenizer of a directory without tokenizer.json.

    Args:
        content: a tokenizer.json of the model alone.
        added: the result of `added_tokens`.
        own: ids of `bos`, `eos` and `unk`, where no file declares them.
    """
    from tokenizers import AddedToken, Tokenizer

    rust = Tokenizer.from_str(content)
    rust.add_tokens([AddedToken(token, normalized=False, **flags) for token, flags in added.items()])
    return HFTokenizer(directory, made=(rust.to_str(pretty=True), own))


def pad_token(directory: Path) -> str | None:
    beside = (read_json(directory / name) for name in ("special_tokens_map.json", "tokenizer_config.json"))
    pad = {key: value for one in beside for key, value in one.items()}.get("pad_token")
    return pad.get("content") if isinstance(pad, dict) else pad


def refuse_added(directory: Path, tokenizer: "SentencePieceTokenizer", pad: str | None) -> None:
    """A pad token may be new: no text becomes one."""
    ids = tokenizer.vocabulary() | {
        token: tokenizer.processor.piece_to_id(token) for token in tokenizer.control_tokens()
    }
    ids |= {token: tokenizer.vocab_size + place for place, token in enumerate(tokenizer.added)}
    path = directory / "tokenizer_config.json"
    config, beside = read_json(path), read_json(directory / "added_tokens.json")
    numbered = {token: str(number) for token, number in beside.items()}
    decoder = config.get("added_tokens_decoder")
    if isinstance(decoder, dict):
        numbered |= {one.get("content"): number for number, one in decoder.items() if isinstance(one, dict)}
    for token, number in numbered.items():
        if token != pad and token in ids and number != str(ids[token]):
            file = directory / "added_tokens.json" if token in beside else path
            raise UnusableTokenizer(file, f"gives {token!r} the id {number}, but in tokenizer.model it is {ids[token]}")
    if added := [token for token in beside if token not in ids and token != pad]:
        path = directory / "added_tokens.json"
    else:
        added = [token for token in declared_tokens(directory) if token not in ids and token != pad]
    if added:
        raise UnusableTokenizer(
            path,
            f"adds {', '.join(map(repr, added[:3]))}, which tokenizer.model does not know and which have no id there "
            f"that follows its pieces, or no normalized: false; {WRITE_JSON}",
        )


def refuse_other_reading(directory: Path, tokenizer: "SentencePieceTokenizer") -> None:
    """Settings beside tokenizer.model with which transformers reads texts in another way than the model says."""
    path = directory / "tokenizer_config.json"
    config, prefix = read_json(path), tokenizer.adds_prefix_space
    usual = {"add_prefix_space": prefix, "do_lower_case": False, "split_special_tokens": False, "sp_model_kwargs": {}}
    if prefix and config.get("legacy") is False:
        raise UnusableTokenizer(
            path,
            "has legacy: false, with which transformers reads a text behind <s> without the space that tokenizer.model "
            "puts before every text; if the model was trained as tokenizer.model reads (Llama 2, Mistral), set legacy: "
            f"true; if it was trained by transformers with legacy: false, {WRITE_JSON}",
        )
    other = [
        f"{key}: {json.dumps(config[key])}" for key, value in usual.items() if config.get(key) not in (None, value)
    ]
    for token, fields in declared_tokens(directory).items():
        flags = [
            flag for flag in ("lstrip", "rstrip", "single_word") if fields.get(flag) and token not in tokenizer.added
        ]
        other += [f"{token!r} with {flag}: true" for flag in flags]
    if other:
        raise UnusableTokenizer(
            path,
            f"has {', '.join(other)}, which tokenizer.model knows nothing of: texts would be read in another way; "
            f"remove that if the model was trained without it, or {WRITE_JSON}",
        )


def _is_token(fields: Any) -> bool:
    return isinstance(fields, dict) and isinstance(fields.get("content"), str)
