"""Text to token ids: the embedded 32k Mistral sentencepiece model, or the tokenizer of any Hugging Face directory.

These tokenizers never turn text into a special id: a literal `<s>` or `</s>` that a user wrote stays text. Only the
data code adds BOS and EOS (`data/boundary.py`).
"""

import functools
import hashlib
import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

from janus_jax.errors import DataError
from janus_jax.storage import staging
from janus_jax.storage.bucket import is_url
from janus_jax.text.hf_files import (
    BESIDE_MODEL,
    HF_FILES,
    MADE_OF,
    chat_template_of,
    copy,
    declared_token,
    declared_tokens,
    made_of,
    read_json,
    write_json,
)
from janus_jax.text.hf_tokenizer import HFTokenizer, Reader, RustReader, stand_in
from janus_jax.text.sentencepiece_beside import (
    WRITE_JSON,
    UnusableTokenizer,
    added_tokens,
    pad_token,
    refuse_added,
    refuse_other_reading,
    with_added,
)
from janus_jax.text.sentencepiece_json import require_equal, tokenizer_json

EMBEDDED = Path(__file__).parent / "assets" / "tokenizer" / "tokenizer.model"
"""The Mistral v0.1/v0.2 sentencepiece model: 32000 pieces, bos 1, eos 2, unk 0 (NOTICE next to it)."""

_PLAIN_CLASSES = ("PreTrainedTokenizerFast", "TokenizersBackend")
_INPUTS = ["input_ids", "attention_mask"]
"""With the plain class transformers 4 returns `token_type_ids` too, unless told otherwise, which `generate` refuses."""
_KEPT = ("chat_template", "padding_side", "truncation_side", "model_max_length")
"""Keys beside a tokenizer.model that change no ids."""


@runtime_checkable
class Tokenizer(Protocol):
    """The interface that data code uses. `bos_id` is None if no BOS is added, `unk_id` if the vocabulary has none."""

    path: Path
    """The file that it was read from."""
    bos_id: int | None
    eos_id: int
    unk_id: int | None
    vocab_size: int
    """One more than the largest id."""
    fingerprint: str
    """sha256 over everything that affects the ids."""
    ignores_control_tokens: bool
    """Text after a control token is read as at the start of a text."""
    chat_template: str
    """The Jinja text of the tokenizer's own chat template; empty if it has none."""

    def encode(self, text: str) -> list[int]:
        """Ids of the text only: no BOS, no EOS, and no special id, whatever the text contains."""
        ...

    def decode(self, ids: Sequence[int]) -> str:
        """Text of the ids without special ids."""
        ...

    def control_id(self, token: str) -> int | None:
        """The id of a token that is not made of text: a control token or an added one; None if it is neither."""
        ...

    def control_tokens(self) -> list[str]:
        """What a server reads as control tokens wherever a text spells it."""
        ...

    def vocabulary(self) -> dict[str, int]:
        """The ids of all tokens but control tokens."""
        ...

    def token(self, number: int) -> str | None:
        """The spelling of an id; None if there is no such id."""
        ...

    def with_marks(self, marks: Sequence[str]) -> "Reader":
        """Reads texts as this tokenizer does, where `stand_in(i)` is the control token `marks[i]`.

        The marks themselves, spelled in a text, are text.
        """
        ...

    def save(self, directory: str | Path) -> None:
        """Writes files from which `load_tokenizer(directory)` makes an equal tokenizer."""
        ...


class SentencePieceTokenizer:
    """A sentencepiece model file. Its text pieces exclude control symbols, so no text can produce them.

    A tokenizer_config.json or special_tokens_map.json beside it counts as for transformers: `bos_token`, `eos_token`,
    `add_bos_token`, and pieces that it declares as special tokens, which are control symbols then. `add_eos_token` is
    for programs that tokenize single texts: training puts EOS after every response in any case.
    """

    ignores_control_tokens = True

    def __init__(self, path: str | Path):
        import sentencepiece

        self.path = Path(path)
        self.content = content = self.path.read_bytes()
        self.processor = sentencepiece.SentencePieceProcessor()
        try:
            self.processor.LoadFromSerializedProto(content)
        except RuntimeError as error:
            raise DataError(path, "not a sentencepiece model") from error
        bos, eos = own = [self.processor.bos_id(), self.processor.eos_id()]
        self.vocab_size: int = self.processor.vocab_size()
        self.added = added_tokens(self.path.parent, self.vocab_size)
        """Tokens that follow the pieces. BOS and EOS may be such tokens; no other method knows of them."""
        bos, eos = self._declared_end("bos", bos), self._declared_end("eos", eos)
        unk = self.processor.unk_id()
        self.bos_id = bos if bos >= 0 else None  # -1: the model has none
        self.unk_id = unk if unk >= 0 else None
        self.eos_id: int = eos
        if self.eos_id < 0:
            raise UnusableTokenizer(path, "has no end-of-sequence piece")
        self.special = self._declare_control()
        """Pieces that are control symbols only because a file beside the model declares them."""
        changes = json.dumps([bos, eos, self.special]).encode() if self.special or own != [bos, eos] else b""
        self.fingerprint = hashlib.sha256(content + changes).hexdigest()
        self.chat_template = chat_template_of(self.path.parent)

    def _declared_end(self, name: str, own: int) -> int:
        """The id of BOS or EOS; -1 for none."""
        directory = self.path.parent
        if name == "bos" and read_json(directory / "tokenizer_config.json").get("add_bos_token") is False:
            return -1
        if (named := declared_token(directory, name)) is None:
            return own
        file, token = named
        number = self.vocab_size + list(self.added).index(token) if token in self.added else self._id(token)
        if number is None:
            raise UnusableTokenizer(file, f"{name}_token {token!r} is not in tokenizer.model; {WRITE_JSON}")
        return number

    def _declare_control(self) -> list[str]:
        """Makes declared pieces control symbols; returns those that were none."""
        declared = (token for token, fields in declared_tokens(self.path.parent).items() if fields["special"])
        numbers = {token: number for token in declared if (number := self._id(token)) is not None}
        changed = []
        if numbers:
            model = self._model()
            for token, number in numbers.items():
                piece = model.pieces[number]
                if piece.type not in (piece.CONTROL, piece.UNKNOWN):
                    piece.type = piece.CONTROL
                    changed.append(token)
            if changed:
                self.content = model.SerializeToString()
                self.processor.LoadFromSerializedProto(self.content)
        return sorted(changed)

    def _id(self, token: str) -> int | None:
        number = self.processor.piece_to_id(token)
        return number if self.processor.id_to_piece(number) == token else None

    def encode(self, text: str) -> list[int]:
        return self.processor.encode(text)

    def decode(self, ids: Sequence[int]) -> str:
        return self.processor.decode([int(i) for i in ids])

    def control_id(self, token: str) -> int | None:
        if (number := self._id(token)) is None:
            return None
        piece = self._model().pieces[number]
        return number if piece.type in (piece.CONTROL, piece.USER_DEFINED) else None

    def control_tokens(self) -> list[str]:
        return [piece.piece for piece in self._model().pieces if piece.type in (piece.CONTROL, piece.UNKNOWN)]

    def vocabulary(self) -> dict[str, int]:
        control = set(self.control_tokens())
        pieces = map(self.processor.id_to_piece, range(self.vocab_size))
        return {piece: number for number, piece in enumerate(pieces) if piece not in control}

    def token(self, number: int) -> str | None:
        return self.processor.id_to_piece(number) if number < self.vocab_size else None

    def with_marks(self, marks: Sequence[str]) -> "Reader":
        """As the tokenizer.json of an export reads them, which servers use."""
        from janus_jax.text.sentencepiece_json import tokenizer_json

        stand_ins = {mark: stand_in(number) for number, mark in enumerate(marks)}
        model = self._model()
        for piece in model.pieces:
            piece.piece = stand_ins.get(piece.piece, piece.piece)
        return RustReader(tokenizer_json(model.SerializeToString(), name=str(self.path)), stand_ins.values())

    @property
    def adds_prefix_space(self) -> bool:
        """Whether the model puts a space before each text."""
        return self._model().normalizer_spec.add_dummy_prefix

    def _model(self) -> Any:
        from sentencepiece import sentencepiece_model_pb2

        return sentencepiece_model_pb2.ModelProto.FromString(self.content)  # type: ignore[reportAttributeAccessIssue]

    def save(self, directory: str | Path) -> None:
        beside = {self.path.parent / name: name for name in BESIDE_MODEL}
        copy({self.path: "tokenizer.model", **beside}, directory)


def load_tokenizer(path: str | Path | None = None) -> Tokenizer:
    """The embedded tokenizer (None), or that of a directory (gs:// too) with tokenizer.json or tokenizer.model.

    If a directory has both files, tokenizer.json is used, as servers do, unless `save_hf_tokenizer` made it of the
    other one.

    Raises:
        DataError: the directory does not exist, has neither file, or a file cannot be read.
    """
    if path is None:
        return SentencePieceTokenizer(EMBEDDED)
    if is_url(path):
        directory = staging.files(os.fspath(path), select=lambda name: name in (*HF_FILES, "config.json"))
    else:
        directory = Path(os.path.expanduser(path))
    if not directory.is_dir():
        reason = "is a file" if directory.exists() else "no such directory"
        raise DataError(f"tokenizer {path}: {reason}; allowed: a directory with tokenizer.json or tokenizer.model")
    has_json, has_model = (directory / "tokenizer.json").is_file(), (directory / "tokenizer.model").is_file()
    if not has_json and not has_model:
        raise DataError(f"tokenizer {path}: holds neither tokenizer.json nor tokenizer.model")
    if not has_json:
        return _of_model(directory)
    if has_model and _made_of_model(directory):
        return SentencePieceTokenizer(directory / "tokenizer.model")
    return HFTokenizer(directory)


def save_hf_tokenizer(
    tokenizer: Tokenizer,
    directory: str | Path,
    *,
    chat_template: str | None = None,
    pad_id: int | None = None,
    keep_class: bool = False,
) -> None:
    """Writes the tokenizer's files into `directory`, which is created if needed.

    A tokenizer from a Hugging Face directory is copied. A sentencepiece model is written as tokenizer.model and as an
    equivalent tokenizer.json with its config files (the pad token is EOS unless a file beside the model names one).
    Other programs that read them turn a literal `<s>` in a text into id 1; on text without such literals they give the
    same ids as sentencepiece.

    Args:
        chat_template: Jinja text, the `chat_template` of the data's Template. None: that of the tokenizer itself.
        pad_id: id of the pad token. None: EOS or the tokenizer's own pad token, as above.
        keep_class: leave the `tokenizer_class` that a Hugging Face directory names. Use it only beside a config.json.
    """
    target = Path(directory)
    tokenizer.save(target)
    if isinstance(tokenizer, SentencePieceTokenizer):
        _write_from_sentencepiece(tokenizer, target)
    elif isinstance(tokenizer, HFTokenizer):
        if not keep_class:
            _name_plain_class(target / "tokenizer_config.json")
    else:
        raise TypeError(f"{type(tokenizer).__name__} cannot be written as Hugging Face files")
    if chat_template is not None:
        path = target / "tokenizer_config.json"
        write_json(path, read_json(path) | {"chat_template": chat_template})
        # transformers prefers this file over the key; older readers know the key alone
        (target / "chat_template.jinja").write_text(chat_template, encoding="utf-8")
    if pad_id is not None:
        from tokenizers import Tokenizer as RustTokenizer

        pad_token = RustTokenizer.from_file(str(target / "tokenizer.json")).id_to_token(pad_id)
        for path in (target / "tokenizer_config.json", target / "special_tokens_map.json"):
            write_json(path, read_json(path) | {"pad_token": pad_token})


def _name_plain_class(path: Path) -> None:
    """Names the class that reads tokenizer.json as it is.

    Beside the config.json of an export transformers ignores all other classes. Without one, LlamaTokenizer and the like
    build a tokenizer of their own from its vocabulary, which gives other ids. What else the class decides is kept.
    """
    config = read_json(path)
    if (named := config.get("tokenizer_class")) not in (None, *_PLAIN_CLASSES):
        import transformers

        side = getattr(getattr(transformers, str(named), None), "padding_side", "right")
        kept = {"model_input_names": _INPUTS, "padding_side": side}
        write_json(path, kept | config | {"tokenizer_class": _PLAIN_CLASSES[0]})


def why_no_tokenizer_json(tokenizer: Tokenizer) -> str:
    """Why `save_hf_tokenizer` refuses a sentencepiece model; empty if it does not."""
    try:
        if isinstance(tokenizer, SentencePieceTokenizer):
            _equal_json(tokenizer)
    except DataError as error:
        return str(error.args[-1])
    return ""


def _equal_json(tokenizer: SentencePieceTokenizer) -> str:
    file = tokenizer.path.parent / "tokenizer.json"
    if file.is_file() and _made_of_model(tokenizer.path.parent):  # it was compared when it was written
        return file.read_text(encoding="utf-8")
    if tokenizer.content == EMBEDDED.read_bytes():
        return _embedded_json()
    content = tokenizer_json(tokenizer.content, name=str(tokenizer.path))
    require_equal(tokenizer.content, content, name=str(tokenizer.path))
    return content


@functools.cache
def _embedded_json() -> str:
    """A test compares it."""
    return tokenizer_json(EMBEDDED.read_bytes(), name=str(EMBEDDED))


def _made_of_model(directory: Path) -> bool:
    """Whether `save_hf_tokenizer` wrote a directory's tokenizer.json of its tokenizer.model."""
    written = read_json(directory / "tokenizer_config.json").get(MADE_OF)
    return written == made_of(directory / "tokenizer.model", directory / "tokenizer.json")


def _of_model(directory: Path) -> Tokenizer:
    """The tokenizer of a directory with tokenizer.model alone."""
    tokenizer = SentencePieceTokenizer(directory / "tokenizer.model")
    pad = pad_token(directory)
    refuse_added(directory, tokenizer, pad)
    refuse_other_reading(directory, tokenizer)
    own = {"bos": tokenizer.bos_id, "eos": tokenizer.eos_id, "unk": tokenizer.unk_id}
    if tokenizer.added.keys() <= {pad} and max(filter(None, own.values())) < tokenizer.vocab_size:
        return tokenizer
    return with_added(directory, _equal_json(tokenizer), tokenizer.added, own)


def _write_from_sentencepiece(tokenizer: SentencePieceTokenizer, target: Path) -> None:
    file = target / "tokenizer.json"
    file.write_text(_equal_json(tokenizer), encoding="utf-8")
    special = {
        f"{name}_token": tokenizer.processor.id_to_piece(i)
        for name, i in (("bos", tokenizer.bos_id), ("eos", tokenizer.eos_id), ("unk", tokenizer.unk_id))
        if i is not None
    }
    beside = {**read_json(target / "special_tokens_map.json"), **read_json(target / "tokenizer_config.json")}
    pad = beside.get("pad_token") if beside else special["eos_token"]
    special |= {} if pad is None else {"pad_token": pad}
    write_json(target / "special_tokens_map.json", special)
    write_json(
        target / "tokenizer_config.json",
        special
        | {
            "tokenizer_class": _PLAIN_CLASSES[0],
            "model_input_names": _INPUTS,
            "add_bos_token": tokenizer.bos_id is not None,
            "add_eos_token": False,
            "clean_up_tokenization_spaces": False,
            MADE_OF: made_of(tokenizer.path, file),
            **({"extra_special_tokens": tokenizer.special} if tokenizer.special else {}),
            **{key: beside[key] for key in _KEPT if key in beside},
        },
    )
