"""A sentencepiece model as the text of a tokenizer.json that gives the same ids.

Compared are `SentencePieceProcessor.encode(text)` and `tokenizers.Tokenizer.encode(text, add_special_tokens=False)`
with `encode_special_tokens`: text never becomes a control piece. `require_equal` compares the two on many texts
(`sentencepiece_corpus.py`), so a model that the library cannot imitate is refused, by name and with an example.

These texts are known to differ, and are no reason to refuse. `require_equal` returns a note of each kind:

- with a unigram model: runs such as "aaaaaaaa", where "aaa a" and "a aaa" have the same score. sentencepiece adds
  scores as float32 and `tokenizers` as float64, so rounding decides.
- three noncharacters (U+DFFFE, U+EFFFE, U+EFFFF), which steps of the normalizer use. Unicode keeps them out of text.
- with an NFKC normalizer: decomposed letters of Todhri, Tulu-Tigalari, Dives Akuru, Gurung Khema and Kirat Rai.
"""

import functools
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator
from itertools import chain, islice
from typing import Any

from janus_jax.errors import DataError, first_line
from janus_jax.text import sentencepiece_normalizer as normalizer
from janus_jax.text.sentencepiece_corpus import EXOTIC, corpus
from janus_jax.text.sentencepiece_normalizer import SPACE, STAND_IN, any_of, literal, literal_class

UNIGRAM, BPE = 1, 2
"""`model_type` of a trainer_spec"""
NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = 1, 2, 3, 4, 5, 6
"""`type` of a piece"""

_BATCH = 4096
_TIE = 1e-5  # sentencepiece adds scores as float32
TIES = "segmentations of the same score"
Difference = tuple[str, list[int], list[int]]
"""A text, its ids from sentencepiece, its ids from tokenizer.json."""
_REMEDY = "bring the tokenizer.json that the model was published with and put it beside tokenizer.model"


def tokenizer_json(model: bytes, *, name: str) -> str:
    """The JSON text of a `tokenizers.Tokenizer` made to equal `model`; `require_equal` proves it.

    Args:
        model: content of a tokenizer.model file.
        name: the file's name, for errors.

    Raises:
        DataError: not a sentencepiece model, or one that `tokenizers` cannot imitate (word and char models, more than
            64 normalizer rules of one's own).
    """
    from tokenizers import AddedToken, Tokenizer, processors

    proto = _parse(model, name)
    kind = {UNIGRAM: _unigram, BPE: _bpe}.get(proto.trainer_spec.model_type)
    if kind is None:
        other = {3: "word", 4: "char"}.get(proto.trainer_spec.model_type, "other")
        raise DataError(name, f"a model of {other} pieces, but tokenizer.json can hold BPE and unigram only; {_REMEDY}")
    try:
        core, splits = kind(proto)
        rust = Tokenizer(core)
        rust.normalizer = _normalizer(proto)
        rust.pre_tokenizer = splits
    except Exception as error:  # the library raises bare Exception
        raise DataError(name, f"cannot become a tokenizer.json: {first_line(error)}; {_REMEDY}") from error
    rust.decoder = _decoder(proto)
    special = [piece.piece for piece in proto.pieces if piece.type in (CONTROL, UNKNOWN)]
    rust.add_special_tokens([AddedToken(piece, special=True, normalized=False) for piece in special])
    ids = {piece.piece: i for i, piece in enumerate(proto.pieces) if piece.type == CONTROL}
    bos = proto.trainer_spec.bos_piece
    if bos in ids:
        rust.post_processor = processors.TemplateProcessing(
            single=f"{bos} $A", pair=f"{bos} $A {bos}:1 $B:1", special_tokens=[(bos, ids[bos])]
        )
    return rust.to_str(pretty=True)


def first_difference(model: bytes, tokenizer_json: str, texts: Iterable[str]) -> Difference | None:
    """The first text that the two encode differently, with its ids from sentencepiece and from tokenizer.json."""
    return next(_differences(model, tokenizer_json, texts), None)


def _differences(model: bytes, tokenizer_json: str, texts: Iterable[str]) -> Iterator[Difference]:
    encode, imitate = _encoders(model, tokenizer_json)
    rest = iter(texts)
    while batch := list(islice(rest, _BATCH)):
        for text, expected, got in zip(batch, encode(batch), imitate(batch), strict=True):
            if expected != got:
                yield text, expected, got


def require_equal(model: bytes, tokenizer_json: str, *, name: str, texts: Iterable[str] | None = None) -> list[str]:
    """Refuses a tokenizer.json that gives other ids than `model`.

    Args:
        model: content of a tokenizer.model file.
        tokenizer_json: content of a tokenizer.json file.
        name: the file that gives other ids, for errors.
        texts: what to compare. None: `sentencepiece_corpus.corpus`.

    Returns:
        A note for each kind of text that gets other ids and is no reason to refuse.

    Raises:
        DataError: names a short text and its tokens from both.
    """
    proto = _parse(model, name)
    pieces = [piece.piece for piece in proto.pieces]
    difference, notes = _on_corpus(model, tokenizer_json) if texts is None else _worst(model, tokenizer_json, texts)
    if difference is not None:
        text = _shrunk(model, tokenizer_json, difference[0])
        _, expected, got = first_difference(model, tokenizer_json, [text]) or difference
        shown = [
            " ".join(pieces[i] if i < len(pieces) else str(i) for i in ids) or "no tokens" for ids in (expected, got)
        ]
        raise DataError(
            name,
            f"gives other tokens than tokenizer.model: {text!r} becomes {shown[1]!r} ({got}), but in tokenizer.model "
            f"{shown[0]!r} ({expected}); {_REMEDY}",
        )
    return [f"{name} gives other ids than tokenizer.model for texts with {note}" for note in notes]


@functools.lru_cache(maxsize=2)  # one process often writes the same tokenizer twice
def _on_corpus(model: bytes, tokenizer_json: str) -> tuple[Difference | None, list[str]]:
    proto = _parse(model, "")
    texts = corpus([piece.piece for piece in proto.pieces], _symbols(proto))
    rules = normalizer.examples(proto.normalizer_spec.precompiled_charsmap)
    difference, notes = _worst(model, tokenizer_json, chain(texts, rules))
    exotic = {kind: first_difference(model, tokenizer_json, examples) for kind, examples in EXOTIC.items()}
    return difference, notes + [f"{kind}, such as {example[0]!r}" for kind, example in exotic.items() if example]


def _worst(model: bytes, tokenizer_json: str, texts: Iterable[str]) -> tuple[Difference | None, list[str]]:
    """A difference that counts, and notes of those that do not."""
    proto = _parse(model, "")
    ties = list[str]()
    for text, expected, got in _differences(model, tokenizer_json, texts):
        if not _tie(proto, expected, got):
            return (text, expected, got), []
        ties.append(text)
    return None, [f"{TIES}, such as {min(ties, key=len)!r}"] if ties else []


def _tie(proto: Any, expected: list[int], got: list[int]) -> bool:
    if proto.trainer_spec.model_type != UNIGRAM:
        return False
    only = [Counter(expected) - Counter(got), Counter(got) - Counter(expected)]  # the others have scores of their own
    if any(proto.pieces[i].type not in (NORMAL, USER_DEFINED) for ids in only for i in ids):
        return False
    ours, theirs = (sum(proto.pieces[i].score for i in ids) for ids in (expected, got))
    return abs(ours - theirs) <= _TIE * abs(ours)


def _encoders(model: bytes, tokenizer_json: str) -> tuple[Any, Any]:
    from sentencepiece import SentencePieceProcessor
    from tokenizers import Tokenizer

    processor = SentencePieceProcessor()
    processor.LoadFromSerializedProto(model)
    rust = Tokenizer.from_str(tokenizer_json)
    rust.encode_special_tokens = True
    return processor.encode, lambda texts: [e.ids for e in rust.encode_batch_fast(texts, add_special_tokens=False)]


def _shrunk(model: bytes, tokenizer_json: str, text: str) -> str:
    """A part of the text that still differs, and that becomes equal if any of its characters goes."""
    encode, imitate = _encoders(model, tokenizer_json)
    size = len(text) // 2
    while size:
        start = 0
        while start < len(text):
            shorter = text[:start] + text[start + size :]
            if encode([shorter]) != imitate([shorter]):
                text = shorter
            else:
                start += size
        size //= 2
    return text


def _parse(model: bytes, name: str) -> Any:
    import sentencepiece
    from sentencepiece import sentencepiece_model_pb2

    try:
        sentencepiece.SentencePieceProcessor().LoadFromSerializedProto(model)
        return sentencepiece_model_pb2.ModelProto.FromString(model)  # pyright: ignore[reportAttributeAccessIssue]
    except Exception as error:  # protobuf's own, or RuntimeError
        raise DataError(name, "not a sentencepiece model") from error


def _symbols(proto: Any) -> list[str]:
    return [piece.piece for piece in proto.pieces if piece.type == USER_DEFINED]


def _normalizer(proto: Any) -> Any:
    """sentencepiece's order: charsmap, whitespace, dummy prefix. Only an empty text gets no prefix."""
    from tokenizers import Regex, normalizers

    spec, space = proto.normalizer_spec, SPACE if proto.normalizer_spec.escape_whitespaces else " "
    steps = normalizer.steps(spec.precompiled_charsmap, _symbols(proto))
    suffix = spec.add_dummy_prefix and proto.trainer_spec.treat_whitespace_as_suffix
    end = STAND_IN if suffix else ""
    if suffix:  # at first, for the charsmap may leave nothing of a text
        steps.insert(0, normalizers.Replace(Regex(r"\z"), end))
    if spec.remove_extra_whitespaces:
        steps.append(normalizers.Replace(Regex(rf"\A +| +(?= )|[ {space}]+(?={end}\z)"), ""))
        if suffix:  # spaces alone are nothing, not even a suffix
            blank = literal_class(normalizer.spaces(spec.precompiled_charsmap))
            steps.insert(0, normalizers.Replace(Regex(rf"\A[{blank}]+\z"), ""))
    if suffix:
        steps.append(normalizers.Replace(end, space))
    elif spec.add_dummy_prefix:  # at first if it may be, for the charsmap may leave nothing of a text
        steps.insert(len(steps) if spec.remove_extra_whitespaces else 0, normalizers.Prepend(space))
    if spec.escape_whitespaces:
        steps.append(normalizers.Replace(" ", SPACE))
    return normalizers.Sequence(steps)


def _decoder(proto: Any) -> Any:
    from tokenizers import decoders

    spec = proto.normalizer_spec
    fallback = [decoders.ByteFallback()] if proto.trainer_spec.byte_fallback else []
    start = 2**16 if spec.remove_extra_whitespaces else int(spec.add_dummy_prefix)
    suffix = spec.add_dummy_prefix and proto.trainer_spec.treat_whitespace_as_suffix
    strip = [decoders.Strip(" ", 0 if suffix else start, int(suffix))] if start or suffix else []
    return decoders.Sequence([decoders.Replace(SPACE, " "), *fallback, decoders.Fuse(), *strip])


def _bpe(proto: Any) -> tuple[Any, Any]:
    """The model and its pre-tokenizer, which parts user-defined symbols, or None."""
    from tokenizers import Regex, models, pre_tokenizers

    ids = {piece.piece: i for i, piece in enumerate(proto.pieces)}
    spec = proto.trainer_spec
    options = {"unk_token": spec.unk_piece, "fuse_unk": True, "byte_fallback": spec.byte_fallback}
    merges, symbols = _merges(proto), _symbols(proto)
    if not symbols:
        return models.BPE(ids, merges, **options), None
    # A symbol is a word by itself, and `ignore_merges` gives a word that is a piece the id of the piece.
    splits = [pre_tokenizers.Split(Regex(any_of(symbols)), "isolated")]
    parted = _part_words(models.BPE(ids, merges, **options), proto)
    if parted:
        splits.append(pre_tokenizers.Split(Regex(rf"\A(?:{'|'.join(parted)})"), "isolated"))
    return models.BPE(ids, merges, **options, ignore_merges=True), pre_tokenizers.Sequence(splits)


def _merges(proto: Any) -> list[tuple[str, str]]:
    """sentencepiece merges the pair of the best score, and of equal ones the first in the text.

    If both halves of X+Y+Z make the same piece, X+Y must rank first: a piece that begins with what it ends with.
    """
    scores = {piece.piece: piece.score for piece in proto.pieces if piece.type == NORMAL}
    ranked = []
    for piece, score in scores.items():
        halves = [i for i in range(1, len(piece)) if piece[:i] in scores and piece[i:] in scores]
        repeats = [i for i in halves if piece.startswith(piece[i:])]
        ranked += [(score, piece[:i], piece[i:]) for i in [*repeats, *(i for i in halves if i not in repeats)]]
    ranked.sort(key=lambda merge: -merge[0])
    return [(left, right) for _, left, right in ranked]


def _part_words(core: Any, proto: Any) -> list[str]:
    """Patterns of the start of words that are pieces but that merges do not make, such as control pieces."""
    from tokenizers import Tokenizer

    words = [piece.piece for piece in proto.pieces if piece.type != USER_DEFINED]
    encodings = Tokenizer(core).encode_batch(words)
    parted = {
        word: e.offsets for word, e in zip(words, encodings, strict=True) if len(e.ids) != 1 or e.tokens[0] != word
    }
    patterns = []
    for word, offsets in parted.items():
        for _, end in offsets:
            if 0 < end < len(word) and word[:end] not in parted and word[end:] not in parted:
                patterns.append(rf"{literal(word[:end])}(?={literal(word[end:])}\z)")
                break
    return patterns


def _unigram(proto: Any) -> tuple[Any, Any]:
    """The model and its pre-tokenizer, which breaks literal control pieces where no piece can span, or None."""
    from tokenizers import Regex, models, pre_tokenizers

    unk = next(i for i, piece in enumerate(proto.pieces) if piece.type == UNKNOWN)
    core = models.Unigram([(piece.piece, piece.score) for piece in proto.pieces], unk, proto.trainer_spec.byte_fallback)
    breaks = _breaks(proto)
    return core, pre_tokenizers.Split(Regex("|".join(breaks)), "merged_with_previous") if breaks else None


def _breaks(proto: Any) -> list[str]:
    """Patterns of the start of reserved pieces that end where no other piece can reach across."""
    holders = defaultdict(set)
    for piece in proto.pieces:
        if piece.type in (NORMAL, USER_DEFINED):
            for pair in zip(piece.piece, piece.piece[1:], strict=False):
                holders[pair].add(piece.piece)
    letters = {piece.piece for piece in proto.pieces if piece.type == NORMAL and len(piece.piece) == 1}
    all_bytes = [r"<(?=0x[0-9A-F]{2}>)"] if proto.trainer_spec.byte_fallback and ("<", "0") not in holders else []
    result = list(all_bytes)
    for piece in proto.pieces:
        text = piece.piece
        if piece.type not in (UNKNOWN, CONTROL, BYTE) or (piece.type == BYTE and all_bytes):
            continue
        for i in range(1, len(text)):
            # nothing may part two unknown characters, which are one id
            known = proto.trainer_spec.byte_fallback or text[i - 1] in letters or text[i] in letters
            if known and not any(_reaches(other, text, i) for other in holders[text[i - 1], text[i]]):
                before = f"(?<={literal(text[: i - 1])})" if i > 1 else ""
                result.append(f"{before}{literal(text[i - 1])}(?={literal(text[i:])})")
                break
    return result


def _reaches(other: str, text: str, place: int) -> bool:
    """Whether `other` may overlap an occurrence of `text` on both sides of its `place`."""
    for start in range(place - len(other) + 1, place):
        first, last = max(start, 0), min(start + len(other), len(text))
        if other[first - start : last - start] == text[first:last]:
            return True
    return False
