"""The normalizer of a sentencepiece model as steps of the `tokenizers` library, with the same result.

sentencepiece replaces, from left to right, the longest sequence of characters that its rules (the "charsmap") know.
`normalizers.Precompiled` takes the same rules but applies them to whole graphemes, and takes the shortest rule. So it
gets the rules of single characters alone, one character a grapheme. The long rules of the standard normalizers are
what NFC does (a base and its marks become one character), so NFC does them, and marks keep it from doing more:

1. A wall stands before all characters that could join the one before them.
2. Inside the sequences that a rule joins, the wall becomes a door.
3. Precompiled replaces single characters. 4. Doors go. 5. NFC joins what no wall parts. 6. Walls go.
"""

import functools
import itertools
import struct
import tempfile
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

WALL, DOOR, STAND_IN = "\U000efffe", "\U000effff", "\U000dfffe"
"""Noncharacters, which Unicode keeps out of text. A text that holds one gets other ids than from sentencepiece."""

SPACE = "\u2581"
"""What sentencepiece writes for a space."""

MOST_STAND_INS = 64
"""Rules and symbols that need a step of their own; more would make encoding slow."""

NEWER = frozenset(
    chr(i)
    for first, last in (
        (0x105C0, 0x105FF),
        (0x11380, 0x113FF),
        (0x11900, 0x1195F),
        (0x16100, 0x1613F),
        (0x16D40, 0x16D7F),
    )
    for i in range(first, last + 1)
)
"""Todhri, Tulu-Tigalari, Dives Akuru, Gurung Khema and Kirat Rai: NFC of `tokenizers` is older than they are."""


def rules(charsmap: bytes) -> dict[str, str]:
    """The rules in a `precompiled_charsmap`, which is a Darts double array and the strings that it points to."""
    if not charsmap:
        return {}
    (size,) = struct.unpack_from("<I", charsmap)
    units = np.frombuffer(charsmap, "<u4", size // 4, 4).astype(np.int64)
    strings = charsmap[4 + size :]
    children = (units >> 10) << ((units & 512) >> 6) ^ np.arange(len(units))  # the place of a child is this ^ its label
    children[0] = units[0] >> 10 << ((units[0] & 512) >> 6)
    labels = np.where(units >> 31, 0, units & 255)
    labelled = np.nonzero(labels)[0]
    parents = labelled ^ labels[labelled]
    order = np.argsort(parents, kind="stable")
    labelled, parents = labelled[order], parents[order]
    nodes, keys, result = children[:1], [b""], {}
    while keys:
        first, last = (np.searchsorted(parents, nodes, side) for side in ("left", "right"))
        counts = last - first
        parent = np.repeat(np.arange(len(nodes)), counts)
        places = labelled[np.arange(counts.sum()) + np.repeat(first - np.cumsum(counts) + counts, counts)]
        keys = [keys[i] + bytes((j,)) for i, j in zip(parent.tolist(), labels[places].tolist(), strict=True)]
        nodes = children[places]
        leaves = np.nonzero((units[places] >> 8) & 1)[0]
        for i, start in zip(leaves.tolist(), (units[nodes[leaves]] & 0x7FFFFFFF).tolist(), strict=True):
            result[keys[i].decode()] = strings[start : strings.index(b"\0", start)].decode()
    return result


def spaces(charsmap: bytes) -> list[str]:
    """The characters that become a space."""
    return [" ", *(source for source, target in _read(charsmap).single.items() if target == " ")] if charsmap else [" "]


def examples(charsmap: bytes) -> Iterator[str]:
    """Texts for the rules that are not those of NFC."""
    sources = list(_read(charsmap).odd) if charsmap else []
    for source, other in zip(sources, reversed(sources), strict=True):
        yield from (source, f"a{source}b", source + other, f"{other} {source}\u0301", source[:-1] + other)


class _Charsmap(NamedTuple):
    single: dict[str, str]
    """Rules of single characters."""
    odd: dict[str, str]
    """Longer rules that NFC does not do."""
    unchanged: set[str]
    """Characters that no rule replaces behind a door."""
    walled: str
    """Class of the characters that get a wall, beside marks."""
    inside: str
    """Pattern of what follows a wall that becomes a door."""


@functools.lru_cache(maxsize=8)
def _read(charsmap: bytes) -> _Charsmap:
    known = rules(charsmap)
    single = {source: target for source, target in known.items() if len(source) == 1}
    long = {source: target for source, target in known.items() if len(source) > 1 and not set(target) & NEWER}
    odd = _unlike_nfc(long, single, set())
    # Greek iota below in nmt_nfkc_cf: alone it becomes a letter, joined it does not
    unchanged = {source[-1] for source in odd if source[-1] in single}
    odd = _unlike_nfc(long, single, unchanged) if unchanged else odd
    joined = [source for source in long if source not in odd]
    walled = literal_class({c for source in joined for c in source[1:]} | _extending())
    return _Charsmap(single, odd, unchanged, walled, _inside(joined) if joined else "")


def steps(charsmap: bytes, symbols: Sequence[str] = ()) -> list[Any]:
    """Normalizers that do what `charsmap` does and leave the user-defined `symbols` alone."""
    from tokenizers import Regex, normalizers

    if not charsmap:
        return []
    single, odd, unchanged, walled, inside = _read(charsmap)
    before, after = _stand_ins(odd | {s: s for s in _unlike_nfc({s: s for s in symbols}, single, set())})
    hidden, shown = _hide(unchanged)
    # category M: what NFC may reorder. The others extend a grapheme, so Precompiled would see two characters as one.
    line = "|(?<=\\r)(?=\\n)" if "\r" in single else ""
    walls = [normalizers.Replace(Regex(rf"(?=[\p{{M}}{walled}])(?!\A){line}"), WALL)]
    if inside:
        kept = "".join(f"(?<!{literal(symbol)}{WALL})" for symbol in symbols)
        walls.append(normalizers.Replace(Regex(WALL + kept + inside), DOOR))
    nfc = [normalizers.Replace(DOOR, ""), normalizers.NFC()] if inside else []
    joined = [*nfc, normalizers.Replace(WALL, "")]
    return [*before, *walls, *hidden, *_single_steps(single), *shown, *joined, *after]


def _unlike_nfc(long: dict[str, str], single: dict[str, str], unchanged: set[str]) -> dict[str, str]:
    """The rules that are not NFC of their characters, which `single` replaces; `unchanged` ones only at the start."""
    from tokenizers import normalizers

    tail = {source: target for source, target in single.items() if source not in unchanged}
    parts = ("".join([single.get(source[0], source[0]), *(tail.get(c, c) for c in source[1:])]) for source in long)
    joined = normalizers.NFC().normalize_str("\0".join(parts)).split("\0")
    return {source: target for (source, target), nfc in zip(long.items(), joined, strict=False) if nfc != target}


def _hide(unchanged: set[str]) -> tuple[list[Any], list[Any]]:
    """Steps that hide characters behind a door from the rules of single characters, and steps that show them again."""
    from tokenizers import normalizers

    pairs = [(c, STAND_IN + chr(0x10FE00 + i)) for i, c in enumerate(sorted(unchanged))]
    return [normalizers.Replace(DOOR + c, DOOR + hidden) for c, hidden in pairs], [
        normalizers.Replace(hidden, c) for c, hidden in pairs
    ]


def _stand_ins(odd: dict[str, str]) -> tuple[list[Any], list[Any]]:
    """Steps that hide the sources behind a noncharacter and a private one, and steps that put the targets in place.

    Raises:
        ValueError: there are too many.
    """
    from tokenizers import Regex, normalizers

    if len(set(odd.values())) > MOST_STAND_INS:
        raise ValueError(f"{len(odd)} normalizer rules need a step of their own; allowed: {MOST_STAND_INS}")
    targets = defaultdict(list)
    for source, target in odd.items():
        targets[target].append(source)
    before, after = [], []
    longest_first = sorted(targets.items(), key=lambda item: -max(map(len, item[1])))
    for i, (target, sources) in enumerate(longest_first):
        hidden = STAND_IN + chr(0x10FF00 + i)
        before.append(normalizers.Replace(Regex(any_of(sources)), hidden))
        after.append(normalizers.Replace(hidden, target))
    return before, after


def _single_steps(single: dict[str, str]) -> list[Any]:
    from tokenizers import Regex, normalizers

    gone = [source for source, target in single.items() if not target]  # Precompiled panics if such a one comes first
    kept = {source: target for source, target in single.items() if target}
    return [
        *([normalizers.Replace(Regex(f"[{literal_class(gone)}]"), "")] if gone else []),
        *([normalizers.Precompiled(_compile(kept))] if kept else []),
    ]


def _extending() -> set[str]:
    """Characters but marks that extend a grapheme or that NFC joins to the one before."""
    ranges = [
        (0x1161, 0x11FF),
        (0x200C, 0x200D),
        (0xE33, 0xE33),
        (0xEB3, 0xEB3),
        (0xFF9E, 0xFF9F),
        (0x1F3FB, 0x1F3FF),
        (0xE0020, 0xE007F),
    ]
    return {chr(i) for first, last in ranges for i in range(first, last + 1)}


def _inside(joined: list[str]) -> str:
    """A pattern that matches right behind a wall that stands inside a sequence of `joined`, which all hold walls.

    Sequences are grouped (by what stands before and behind the wall), as the 200000 of Hangul would be too many.
    """
    places = defaultdict(lambda: defaultdict(set))  # (characters before but the first, behind) -> first characters
    for source in joined:
        for i in range(1, len(source)):
            places[source[1:i]][source[i:]].add(source[0])
    known = set(joined)
    alternatives = []
    for between, behind in places.items():
        groups = defaultdict(lambda: defaultdict(set))  # first characters -> next -> the rest
        for rest, first in behind.items():
            if len(rest) > 1:  # needed only where the shorter sequence is no rule
                first = {c for c in first if c + between + rest[0] not in known}
            if first:
                groups[frozenset(first)][rest[1:]].add(rest[0])
        for first, rests in groups.items():
            for rest, following in rests.items():
                ahead = f"[{literal_class(following)}]" + "".join(WALL + literal(c) for c in rest)
                alternatives.append((between, first, ahead))
    merged = defaultdict(set)  # the characters between, once more in groups
    for between, first, ahead in alternatives:
        merged[len(between), first, ahead].add(between)
    parts = []
    for (size, first, ahead), betweens in merged.items():
        columns = [{b[i] for b in betweens} for i in range(size)]
        if len(betweens) == np.prod([len(c) for c in columns], dtype=int):  # all combinations
            middles = ["".join(WALL + f"[{literal_class(c)}]" for c in columns)]
        else:
            middles = ["".join(WALL + literal(c) for c in between) for between in sorted(betweens)]
        parts += [f"(?={ahead})(?<=[{literal_class(first)}]{middle}{WALL})" for middle in middles]
    return f"(?:{'|'.join(parts)})"


def literal_class(characters: Iterable[str]) -> str:
    """The characters as they stand between brackets in a pattern."""
    codes = sorted(map(ord, characters))
    runs = [[i for _, i in run] for _, run in itertools.groupby(enumerate(codes), lambda pair: pair[1] - pair[0])]
    return "".join(f"\\x{{{run[0]:X}}}" + (f"-\\x{{{run[-1]:X}}}" if len(run) > 1 else "") for run in runs)


def literal(text: str) -> str:
    """`text` as a pattern."""
    return "".join(c if c.isascii() and c.isalnum() else f"\\x{{{ord(c):X}}}" for c in text)


def any_of(texts: Iterable[str]) -> str:
    """A pattern that matches the longest of the texts."""
    return "|".join(literal(text) for text in sorted(texts, key=lambda text: (-len(text), text)))


def _compile(single: dict[str, str]) -> bytes:
    import sentencepiece
    from sentencepiece import sentencepiece_model_pb2

    sentencepiece.SetMinLogLevel(1)  # warnings; at 0 it reports each table that it builds
    with tempfile.TemporaryDirectory() as directory:
        path = Path(directory) / "rules.tsv"
        hexed = [[" ".join(f"{ord(c):X}" for c in side) for side in rule] for rule in single.items()]
        path.write_text("".join(f"{source}\t{target}\n" for source, target in hexed))
        built = sentencepiece.SentencePieceNormalizer(rule_tsv=str(path))
    model = built.serialized_model_proto()
    proto = sentencepiece_model_pb2.ModelProto.FromString(model)  # pyright: ignore[reportAttributeAccessIssue]
    return proto.normalizer_spec.precompiled_charsmap
