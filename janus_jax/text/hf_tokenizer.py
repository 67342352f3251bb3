"""The tokenizer of a Hugging Face directory, read with the `tokenizers` library."""

import functools
import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from janus_jax.errors import DataError, first_line
from janus_jax.text.hf_files import (
    HF_FILES,
    chat_template_of,
    copy,
    declared_token,
    declared_tokens,
    read_json,
    write_json,
)


class Reader(Protocol):
    """Reads texts."""

    def encode(self, text: str) -> list[int]: ...


def stand_in(number: int) -> str:
    """What stands for a control token in a text: Unicode noncharacters, which no text should hold."""
    return f"\ufdd0{chr(0xFDD2 + number)}\ufdd1"


class HFTokenizer:
    """`tokenizer.json` of a Hugging Face directory, read with the `tokenizers` library.

    Special tokens in text stay text: `encode_special_tokens` makes the library split them like any other text. It
    covers the tokens marked `special`. Other added tokens keep their own ids (some models add words that way).

    tokenizer_config.json and special_tokens_map.json declare BOS and EOS, or else config.json does. With
    `add_bos_token: false` or `bos_token: null` in tokenizer_config.json, the model was trained without BOS, so `bos_id`
    is None. Tokens of
    tokenizer.json that the first two declare as special are special, as for transformers.
    """

    ignores_control_tokens = False

    def __init__(self, directory: str | Path, *, made: tuple[str, Mapping[str, int | None]] | None = None):
        """Reads a directory.

        Args:
            made: what stands for its tokenizer.json, if it has tokenizer.model alone, and the ids of `bos`, `eos` and
                `unk`, where no file declares them.
        """
        self.directory = Path(directory)
        self._made = None if made is None else made[0]
        self.path = path = self.directory / ("tokenizer.json" if made is None else "tokenizer.model")
        content = path.read_bytes() if made is None else made[0].encode()
        try:
            self._content = content.decode("utf-8")
            self._tokenizer = _rust_tokenizer(self._content)
        except Exception as error:  # the library raises bare Exception
            raise DataError(path, f"not a tokenizers file: {first_line(error)}") from error
        ids = self._tokenizer.get_vocab(with_added_tokens=True)
        before = self._content
        self._declare(ids)
        special = {name: _special_id(self.directory, name, ids) for name in ("bos", "eos", "unk")}
        if made is not None:
            special = {name: made[1].get(name) if number is None else number for name, number in special.items()}
        if special["eos"] is None:
            raise DataError(
                directory,
                "has no end-of-sequence token; set eos_token in tokenizer_config.json or "
                "special_tokens_map.json, or eos_token_id in config.json",
            )
        if read_json(self.directory / "tokenizer_config.json").get("add_bos_token") is False:
            special["bos"] = None
        self.bos_id, self.unk_id = special["bos"], special["unk"]
        self.eos_id: int = special["eos"]
        self.vocab_size = max(ids.values()) + 1
        facts = [self.bos_id, self.eos_id, *([] if self._content == before else [self._content])]
        self.fingerprint = hashlib.sha256(content + json.dumps(facts).encode()).hexdigest()
        self.chat_template = chat_template_of(self.directory)

    def _declare(self, ids: dict[str, int]) -> None:
        """Adds the tokens that have an id, but that only the files beside tokenizer.json say are special."""
        from tokenizers import AddedToken

        known = {token.content for token in self._tokenizer.get_added_tokens_decoder().values()}
        new = [
            AddedToken(token, **fields)
            for token, fields in declared_tokens(self.directory).items()
            if token in ids and token not in known
        ]
        if new:
            self._tokenizer.add_tokens(new)
            self._content = self._tokenizer.to_str()

    @functools.cached_property
    def _reader(self) -> "Reader":
        return self.with_marks(())

    def encode(self, text: str) -> list[int]:
        return self._reader.encode(text)

    def decode(self, ids: Sequence[int]) -> str:
        return self._tokenizer.decode([int(i) for i in ids], skip_special_tokens=True)

    def control_id(self, token: str) -> int | None:
        added = {one.content: number for number, one in self._tokenizer.get_added_tokens_decoder().items()}
        return added.get(token)

    def control_tokens(self) -> list[str]:
        return [one.content for one in self._tokenizer.get_added_tokens_decoder().values() if one.special]

    def vocabulary(self) -> dict[str, int]:
        control = set(self.control_tokens())
        vocabulary = self._tokenizer.get_vocab(with_added_tokens=True)
        return {token: number for token, number in vocabulary.items() if token not in control}

    def token(self, number: int) -> str | None:
        return self._tokenizer.id_to_token(number)

    def with_marks(self, marks: Sequence[str]) -> "Reader":
        """Other special tokens get a name that no text has: unigram and word models keep them in their vocabulary."""
        names = {token: f"\ufdef{number}\ufdef" for number, token in enumerate(self.control_tokens())}
        names |= {mark: stand_in(number) for number, mark in enumerate(marks)}
        description = json.loads(self._content)
        for token in description["added_tokens"]:
            token["content"] = names.get(token["content"], token["content"])
        model = description["model"]
        vocabulary = model.get("vocab")
        if isinstance(vocabulary, dict):
            model["vocab"] = {names.get(token, token): i for token, i in vocabulary.items()}
        elif vocabulary:  # of a unigram model
            model["vocab"] = [[names.get(token, token), score] for token, score in vocabulary]
        if model.get("unk_token"):
            model["unk_token"] = names.get(model["unk_token"], model["unk_token"])
        if model.get("merges"):
            pairs = (pair.split(" ", 1) if isinstance(pair, str) else pair for pair in model["merges"])
            model["merges"] = [pair for pair in pairs if names.keys().isdisjoint((*pair, "".join(pair)))]
        return RustReader(json.dumps(description), [stand_in(number) for number in range(len(marks))])

    def save(self, directory: str | Path) -> None:
        target = Path(directory)
        copy({self.directory / name: name for name in HF_FILES}, target)
        if self._made is not None:
            (target / "tokenizer.json").write_text(self._made, encoding="utf-8")
        # config.json also describes a model, so it is not copied: tokens that only it declares are saved by name
        declared = {**read_json(target / "special_tokens_map.json"), **read_json(target / "tokenizer_config.json")}
        special = {"bos_token": self.bos_id, "eos_token": self.eos_id, "unk_token": self.unk_id}
        missing = {
            key: self._tokenizer.id_to_token(i)
            for key, i in special.items()
            if i is not None and declared.get(key) is None
        }
        if missing:
            path = target / "special_tokens_map.json"
            write_json(path, read_json(path) | missing)


class RustReader:
    """A tokenizer.json in which some special tokens are read in texts; all other special tokens stay text."""

    def __init__(self, content: str, tokens: Iterable[str]):
        description, tokens = json.loads(content), set(tokens)
        for added in description["added_tokens"]:
            if added["content"] in tokens:
                added |= {"special": False, "single_word": False}  # a stand-in is never left in a text
        self._tokenizer = _rust_tokenizer(json.dumps(description))

    def encode(self, text: str) -> list[int]:
        return self._tokenizer.encode(text, add_special_tokens=False).ids


def _rust_tokenizer(content: str) -> Any:
    import tokenizers

    tokenizer = tokenizers.Tokenizer.from_str(content)
    tokenizer.encode_special_tokens = True
    tokenizer.no_padding()
    tokenizer.no_truncation()
    return tokenizer


def _special_id(directory: Path, name: str, ids: dict[str, int]) -> int | None:
    if (named := declared_token(directory, name)) is not None:
        file, token = named
        if token not in ids:
            raise DataError(file, f"{name}_token {token!r} is not in tokenizer.json")
        return ids[token]
    if name == "bos" and read_json(directory / "tokenizer_config.json").get("bos_token", "") is None:
        return None  # `null`, as Qwen writes it: no BOS, whatever config.json names
    declared = read_json(directory / "config.json").get(f"{name}_token_id")
    if isinstance(declared, list):  # Llama 3 style: several EOS ids; the first is the main one
        declared = declared[0] if declared else None
    if declared is not None and declared not in ids.values():
        raise DataError(directory / "config.json", f"{name}_token_id {declared!r} is not in tokenizer.json")
    return declared
