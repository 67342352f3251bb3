"""Texts on which a tokenizer.json must give the ids of the sentencepiece model that it imitates."""

# ruff: noqa: RUF001 (letters that look alike are meant)

import random
import unicodedata
from collections.abc import Iterable, Iterator, Sequence

from janus_jax.text.sentencepiece_normalizer import DOOR, NEWER, SPACE, STAND_IN, WALL

EXOTIC = {
    "the noncharacters U+DFFFE, U+EFFFE and U+EFFFF": [f"a{c}b" for c in (STAND_IN, WALL, DOOR)],
    "decomposed letters of scripts that Unicode 13 and later added": [
        "\U000105d2\u0307", "\U00011382\U000113c9", "\U00011935\U00011930", "\U0001611e\U0001611e",
        "\U00016d67\U00016d67",
    ],
}  # fmt: skip
"""Texts that may differ, by kind. `corpus` has none of them."""

_SPACES = [
    *map(chr, [0x20, 0x9, 0xA, 0xB, 0xC, 0xD, 0x85, 0xA0, 0x1680, *range(0x2000, 0x2010), 0x2028, 0x2029, 0x202F])
]
_SPACES += [
    "\u205f",
    "\u2060",
    "\u3000",
    "\ufeff",
    "\r\n",
    SPACE,
    "  ",
    "    ",
    SPACE * 2,
    "\0",
    "\x01",
    "\x7f",
    "\xad",
]

_TEXTS = """
The quick brown fox jumps over the lazy dog. It's 12:30, isn't it? $1,234.56 + 7% = 1e-9; (see p. 42)
Příliš žluťoučký kůň úpěl ďábelské ódy. Zwölf Boxkämpfer jagen Viktor quer über den großen Sylter Deich.
Ξεσκεπάζω την ψυχοφθόρα βδελυγμία. ᾳ ᾇ ᾨ Σίσυφος. Съешь же ещё этих мягких французских булок, да выпей чаю.
Tiếng Việt: Nguyễn Thị Ánh học ở trường đại học. İstanbul'da ışık. Ærøskøbing, œuvre, ﬁnance, ǆ, ŉ, ſt.
שלום עולם, אֵיךְ שָׁלוֹם. مرحبا بالعالم، السَّلَامُ عَلَيْكُمْ ﷺ ﻻ. سلام دنیا می‌خواهم
नमस्ते दुनिया, क्षत्रिय क़लम। আমি বাংলায় গান গাই। தமிழ் மொழி. తెలుగు. ಕನ್ನಡ ಕೋ. മലയാളം കൊ. සිංහල
สวัสดีชาวโลก น้ำ ເຂົ້າ ນ້ຳ བོད་སྐད། မြန်မာ ဦ ភាសាខ្មែរ ქართული Հայերեն
你好，世界。这是一个测试！ 日本語の文章です。ガギグゲゴ ｶﾞｷﾞ ㍍ ㌔ ㈱ ①② Ａｂｃ１２３！～〜
한국어 문장입니다. ㄱㅏㄱ ㅋㅋㅋ ㅠㅠ
각 각
👩‍👩‍👧‍👦 👍🏽 🇩🇪🇫🇷 ❤️ 🏴󠁧󠁢󠁥󠁮󠁧󠁿 1️⃣ ©®™ ½ ⅓ x² H₂O … ″ ‼ ℃ № Å Ω ﬃ 𝔘𝔫𝔦𝔠𝔬𝔡𝔢 𝟙𝟚𝟛 𐍈 𒀀
def f(x: int) -> str:\n\treturn f"{x!r}"  # 0x1F & ~y || z\n\n    if a[i] == b->c && !d: { /* ... */ }
{"key": [1, 2.5, null], "html": "<p class='a'>&amp;</p>"}\\n https://example.com/a_b?c=d&e=%20#f user@host.org
aaaaaaaaaaaaaaaaa ababababab abababa ---------- ========= .......... 00000000 1234567890123 !!!??? ((((())))) \\\\\\\\
"""

_CONTROL_LIKE = ["<s>", "</s>", "<unk>", "<pad>", "<mask>", "[INST]", "[/INST]", "<|im_start|>", "<|im_end|>", "<0x0A>",
                 "<0xE2>", "<0x0a>", "<<SYS>>", "[CLS]", "<|endoftext|>", "<s", "s>", "<extra_id_0>"]  # fmt: skip


def corpus(pieces: Sequence[str], symbols: Sequence[str] = ()) -> Iterator[str]:
    """The same texts each time, for a vocabulary: `pieces` of all types, among them the user-defined `symbols`."""
    rng = random.Random(0)
    fixed = list(_fixed())
    yield from fixed
    words = [word for text in fixed for word in text.split()][:400]
    special = [*_CONTROL_LIKE, *symbols, *symbols]
    plain = [piece.replace(SPACE, " ") for piece in pieces]
    for symbol in [*symbols[:200], *_CONTROL_LIKE]:
        yield from (symbol, symbol * 2, f"a{symbol}", f"{symbol}b", f"a{symbol}b", f" {symbol} ", f"a  {symbol}  b")
        yield from (
            f"{symbol}\u0301",
            f"{symbol}\n{symbol}",
            f"{symbol}{SPACE}a",
            symbol[:-1],
            symbol[1:],
            f"<{symbol}>",
        )
        yield from (f"{rng.choice(special)}{rng.choice(plain)}{symbol}{rng.choice(plain)}" for _ in range(3))
    yield from _unicode()
    yield from _marks(rng)
    yield from plain
    yield from (piece for piece in pieces if SPACE in piece[1:])
    for _ in range(6000):
        yield rng.choice(plain) + rng.choice(plain)
    for _ in range(6000):
        parts = rng.choices((plain, words, _SPACES, special), (4, 2, 3, 2), k=rng.randint(3, 9))
        yield "".join(map(rng.choice, parts))
    for _ in range(20):
        yield "".join(rng.choice(rng.choice((plain, words, _SPACES, special))) for _ in range(600))


def sampled_corpus(vocabulary: Iterable[str], symbols: Sequence[str] = ()) -> Iterator[str]:
    """The corpus with every seventh token of a vocabulary, for tokenizers whose tokens are compared by name too."""
    return corpus(sorted(vocabulary)[::7], symbols)


def _fixed() -> Iterator[str]:
    yield ""
    for text in _TEXTS.strip().split("\n"):
        for form in ("NFC", "NFD", "NFKC", "NFKD"):
            yield unicodedata.normalize(form, text)
        yield text.upper()
        yield text.replace("\\n", "\n").replace("\\t", "\t")
    for space in _SPACES:
        for run in (space, space * 2, space * 5, f" {space} ", f"{space} {space}"):
            yield from (run, f"{run}a", f"a{run}", f"a{run}b", f"{run}a{run}b{run}", f"é{run}世{run}")
        yield from (f"{space}{other}x{other}{space}" for other in _SPACES)
    yield _TEXTS
    yield _TEXTS * 3


def _unicode() -> Iterator[str]:
    """All characters of the planes that have many scripts, and some of large alike ranges, isolated and in a row."""
    alike = [
        (0x3400, 0x4DC0),
        (0x4E00, 0xA000),
        (0xAC00, 0xD7B0),
        (0xE000, 0xF900),
        (0x13000, 0x14700),
        (0x16800, 0x1AFF0),
    ]
    alike += [(0x20000, 0xE0000), (0xE1000, 0x10FFFF)]
    codes, start = list[int](), 0
    for first, last in alike:
        codes += [*range(start, first), *range(first, last, 331 if first >= 0x20000 else 23)]
        start = last
    ends = [plane + end for plane in range(0, 0x110000, 0x10000) for end in (0xFFFE, 0xFFFF)]
    exotic = NEWER | {WALL, DOOR, STAND_IN}
    characters = [chr(i) for i in [*codes, *ends] if not 0xD800 <= i < 0xE000 and chr(i) not in exotic]
    forms = [unicodedata.normalize("NFD", c) for c in characters]
    decomposed = [form for c, form in zip(characters, forms, strict=True) if c != form and not exotic & set(form)]
    for kind, size in ((characters, 64), (decomposed, 16)):
        for i in range(0, len(kind), size):
            yield " ".join(kind[i : i + size])
            if i // size % 2:
                yield "".join(kind[i : i + size])


def _marks(rng: random.Random) -> Iterator[str]:
    """Letters with any number of marks in any order, jamo, joiners."""
    marks = [c for c in map(chr, range(0x20000)) if unicodedata.category(c)[0] == "M" and c not in NEWER]
    latin = [
        *"aeiouAEIOUsSdDzZ",
        *map(chr, range(0xC0, 0x250)),
        *map(chr, range(0x370, 0x3FF)),
        *map(chr, range(0x410, 0x450)),
    ]
    jamo = [
        *map(chr, [*range(0x1100, 0x1200), *range(0x3131, 0x318F), *range(0xFFA1, 0xFFDD), *range(0xAC00, 0xD7A4, 97)])
    ]
    kana = [*map(chr, range(0x3040, 0x3100)), *map(chr, range(0xFF66, 0xFFA0)), "\u3099", "\u309a", "\uff9e", "\uff9f"]
    joining = [
        "\u200d",
        "\u200c",
        "\ufe0f",
        "\U0001f3fb",
        "\U0001f1e6",
        "\U0001f469",
        "❤",
        "\U000e0067",
        "\u0600",
        "\u2460",
    ]
    common = [*map(chr, range(0x300, 0x346)), "\u0345", "\u0338"]
    for _ in range(3000):
        pools = rng.choice(([latin, common], [latin, common, common], [jamo], [kana], [joining, marks], [latin, marks]))
        yield "".join(rng.choice(rng.choice(pools)) for _ in range(rng.randint(2, 12)))
