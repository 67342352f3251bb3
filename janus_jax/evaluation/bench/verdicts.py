"""The score in a judge's reply: the last explicit marker decides. What is in doubt is no score, and is asked again."""

import html
import json
import re
import unicodedata
from collections import Counter

_PLAIN = str.maketrans(  # quotes, dashes, slashes, tildes
    "\u2018\u2019\u201c\u201d\u2010\u2011\u2012\u2013\u2014\u2015\u2212\u2044\u2215\u00f7\u223c\u301c",
    "''\"\"-------///~~",
)
_WORDS = r"(?:results?|scores?|ratings?|grade)"
_OPEN = r"""[\s*_`"'(\[{<$|]*"""
_CLOSE = r"""[\s*_`"')\]}>$|]*"""
_FOR = r"(?:\s+(?:for|of|given to|assigned to)\s+[a-z][\w' ]{0,60}?)?"
_ASIDE = r"(?:\s*(?:\([^()\n]{0,40}\)|\[[^\[\]\n]{0,40}\]))?"
_STARTS = re.compile(
    rf"""
      [\[【]\s*(?:(?:final|overall)\s+)?{_WORDS}\b                     # [RESULT], [Score 4]
    | (?-i:\bRESULT\b)
    | <\s*(?:final_)?{_WORDS}\s*>                                      # <score>
    | \\boxed\s*(?=\{{)
    # Score:, "score":
    | (?<![\w/])(?<![a-z,;][ ](?=result))(?:final_|overall_)?{_WORDS}\b{_FOR}{_ASIDE}{_CLOSE}{_ASIDE}
      [*\s]*(?:->|=>|→|[:=])
    """,
    re.IGNORECASE | re.VERBOSE,
)
_PROSE = re.compile(rf"(?<![\w/]){_WORDS}\b{_CLOSE}(?P<verb>is|are|was|would be|should be|of)?\b", re.IGNORECASE)
_FILLER = re.compile(
    r"""(?:[\s*_`"'()\[\]{}<>$|:=#】]|->|=>|→|-(?=[\s*]|$)|\\boxed|\\text(?:bf)?\b|\\mathbf"""
    r"""|\b(?:the|an?|final|overall|integer|whole|number|numeric|scores?|results?|ratings?|grade|is|of|be|would|will|i|"""
    r"""give|assign|it|this|this\s+response|the\s+response|gets?|receives?|deserves?)\b(?!\s*response))*""",
    re.IGNORECASE,
)
_NUMBER = re.compile(r"(?P<value>[0-9]+(?:\.[0-9]+)?)")
_SCALE = re.compile(
    rf"{_CLOSE}(?:/|out\s+of|of|von|sur|de|su|av)(?!\s*(?:the|my)\b){_OPEN}(?P<of>[0-9]+(?:[.,][0-9]+)?)", re.IGNORECASE
)
_OTHER_SCALE = re.compile(  # whatever it ends at, if not 5
    r"(?:/|\bout of\b|\b(?:von|sur|de|su|av)\b|\bscale\b[^\d\n]{0,9}(?:[01][ ]?(?:-|to)[ ]?)?|\b[01][ ]?(?:-|to\b))[ ]?"
    r"(?!5\b|[01][ ]?(?:-|to\b))[0-9]+\b",
    re.IGNORECASE,
)
_MORE = re.compile(  # a range, a list or another number: the judge has not chosen
    r"""(?:[^\S\n]|[*_`"'()\[\]}>$|])*
    (?: (?:(?:-|~|/|,|;|&|\+|->|=>|→|\.\.+|\b(?:to|or|and|but)\b)[^\S\n]*
           (?:(?:an?|maybe|perhaps|possibly|even|almost|nearly|scores?|of)[^\S\n]+)*[*_`"'(\[{<$|]*)?[0-9]
      | [%+^?] | (?:vs|versus)\b | (?:points?[^\S\n]+)?\b(?:lower|higher|less|more|below|above)\b
      | \b(?:or|to)[^\S\n]+(?:one|two|three|four|five)\b )""",
    re.VERBOSE | re.IGNORECASE,
)
_HYPOTHETICAL = re.compile(
    r"[^\S\n]+(?:of[^\S\n]+(?:the|my)|answers?|responses?|would|should|could|requires?|means?|needs?)\b", re.IGNORECASE
)
_ENDS = re.compile(r"""[\s*_`"')\]}>$|]*(?:[.!;]?[\s*_`"')\]}>$|]*$|[.!;,)]|\n|\s+(?:because|since|as|due)\b)""")
_THOUGHT = re.compile(
    r"<(?P<tag>think|thinking|reasoning|thoughts?|scratchpad|analysis|seed:think)\b[^<>]*>.*?(?:</(?P=tag)\s*>|\Z)"
    r"|\[think\].*?(?:\[/think\]|\Z)|◁think▷.*?(?:◁/think▷|\Z)",
    re.DOTALL | re.IGNORECASE,
)
_THOUGHT_BEFORE = re.compile(  # whose beginning the chat template has, or which holds another
    r"\A.*(?:</(?:think|thinking|reasoning|thoughts?|scratchpad|seed:think)\s*>|\[/think\]|◁/think▷"
    r"|<\|channel\|>\s*final\s*<\|message\|>)",
    re.DOTALL | re.IGNORECASE,
)
_NOT_ITS_OWN = re.compile(  # of the scale, of the reference answer or of something else
    r"\b(?:max(?:imum|imal)?|min(?:imum|imal)?|highest|lowest|best|worst|top|possible|perfect|full|reference|previous|old"
    r"|earlier|initial|target|passing|threshold|baseline|confidence|bleu|rouge|f1|individual|sub|partial)"
    r"(?:\s+answer(?:'s)?)?(?:\s+has\s+an?)?[\s(*_\"'-]*(?:(?:possible|total|overall)\s+)?$",
    re.IGNORECASE,
)
_IF = re.compile(r"\b(?:if|when|unless|would|could|were|had)\b", re.IGNORECASE)
_UNITS = "one|two|three|four|five"
_HARMLESS = re.compile(
    rf"""(?:,[ ]?)?\(?\b(?:rather[ ]than|instead[ ]of|(?:and[ ])?not)[ ](?:an?[ ])?[1-5]\b(?![.,/-][0-9])\)?
    | \(an?[ ][1-5][ ]would\b[^()]*\)
    | \((?:{_UNITS})\)
    | \((?:[^()]*[ ])?rounded\b[^()]*\)
    | \(?(?:on[ ])?(?:an?[ ]|the[ ])?scale[ ](?:of|from)[ ](?:1|one)[ ]?(?:-|to)[ ]?(?:5|five)\b\)?
    | \(?(?:out[ ]of|max(?:imum)?:?)[ ](?:5|five)\b(?![.,][0-9])\)?""",
    re.VERBOSE | re.IGNORECASE,
)
_FOLLOWS = re.compile(  # anything else may say that the number is no score
    rf"""(?:{_CLOSE}(?:\\[)\]])?)*
    (?: $ | [.,;!:(\[<\#★⭐] | -(?![a-z]) | (?:stars?|points?)\b(?={_CLOSE}(?:$|[.,;!:(]))
      | (?:because|since|as|due|based|given)\b | (?:for|on|with)[ ](?![a-z]+[ ]*$) )""",
    re.VERBOSE | re.IGNORECASE,
)
_REASON = re.compile(rf"{_CLOSE}[,:-]?[ ]?(?:because|since|as|due|based|given)\b", re.IGNORECASE)
_TAKEN_BACK = re.compile(
    r"[\W_]*(?:no|not|if|unless|only|but|or|to|revised|reduced|lowered|raised|changed)\b", re.IGNORECASE
)
_OTHER_NUMBER = re.compile(
    r"[0-9%‰±]|\b(?:two|three|four|five|six|seven|eight|nine|ten|hundred|half|halves|third|quarters?|percent|pct)\b",
    re.IGNORECASE,
)
_GOES_ON = re.compile(r"\s*\n[\s*_(\[]*(?:/|\.[0-9]|(?:or|to|out of|of|max|and a half)\b)", re.IGNORECASE)


def score(reply: str, *, is_cut: bool = False) -> int | None:
    """The score in a reply, 1 to 5; None: it has none, or it is in doubt.

    [RESULT], [SCORE], `Score:`, "score": and the like are explicit markers; the last of them decides, also if no
    score follows it. Without any, a sentence such as "the overall score is 4" counts.

    Args:
        is_cut: the reply ends because it was too long, so that a number at its end may not be whole.
    """
    text = plain(reply)
    if is_cut and text[-1:].isdigit():
        return None
    if (fields := _object(text)) is not None:
        return _of_object(fields)
    markers = [match for match in _STARTS.finditer(text) if not _is_of_the_task(text, match)]
    if markers:
        before = text[text.rfind("\n", 0, markers[-1].start()) + 1 : markers[-1].end()]
        if _of_another_scale(markers[-1][0], before) or "[ ]" in before or "☐" in before:
            return None
        return _after(text, markers[-1].end())
    return _in_prose(text)


def plain(reply: str) -> str:
    """A reply without thoughts, marks without width and runs of blanks, in digits, quotes and dashes of ASCII."""
    answer = _THOUGHT_BEFORE.sub(" ", _THOUGHT.sub(" ", reply))
    text = unicodedata.normalize("NFKC", html.unescape(answer)).translate(_PLAIN).replace("\\_", "_")
    text = "".join(one for one in text if unicodedata.category(one) != "Cf")
    return re.sub(r"\s*\n\s*", "\n", re.sub(r"[^\S\n]+", " ", text)).strip()


def _is_of_the_task(text: str, match: re.Match[str]) -> bool:
    """Words such as "Reference answer (Score 5):" of the judge's own task, or "maximum score: 5"."""
    before = text[: match.start()]
    own = match[0][:1] in "[【<\\" and not before.lower().rstrip(" (").endswith("reference answer")
    return not own and _NOT_ITS_OWN.search(before[-60:]) is not None


def _of_another_scale(marker: str, before: str) -> bool:
    """Whether a marker, or the line up to its end, names a scale that does not end at 5."""
    aside = re.sub(r"\b[01] ?(?:-|to) ?5\b|\b(?:out of|max(?:imum)?|/) ?5\b|/ ?5\b", "", marker)
    named = ("scale" in before and _OTHER_SCALE.search(before)) or re.search(
        r"\b(?:out of|(?:6|7|8|9|\d\d+|six|seven|eight|nine|ten)[ -]points?)\b(?! ?5\b)", before, re.IGNORECASE
    )
    return bool(_OTHER_SCALE.search(marker) or named or re.search(r"[06-9%]|\d\d|percent|points", aside, re.IGNORECASE))


def _object(text: str) -> dict[str, object] | None:
    fenced = re.fullmatch(r"```\w*\s*(.*?)\s*```", text, re.DOTALL)
    try:
        value = json.loads(fenced[1] if fenced else text, object_pairs_hook=_fields)
    except (ValueError, RecursionError):
        return None
    return value if isinstance(value, dict) else None


def _fields(pairs: list[tuple[str, object]]) -> dict[str, object]:
    """An object; a key that it names twice has no value."""
    fields = dict(pairs)
    twice = {key for key, count in Counter(key for key, _ in pairs).items() if count > 1}
    return {key: None if key in twice else value for key, value in fields.items()}


def _of_object(fields: dict[str, object]) -> int | None:
    named = [value for key, value in fields.items() if re.fullmatch(rf"(?:final_|overall_)?{_WORDS}", key.lower())]
    if len(named) != 1 or isinstance(named[0], bool) or not isinstance(named[0], str | int | float):
        return None
    return _after(f"{named[0]}", 0)


def _after(text: str, start: int) -> int | None:
    """The score that stands behind a marker, with nothing but words such as `score of` between them."""
    at = filler.end() if (filler := _FILLER.match(text, start)) else start
    number = _NUMBER.match(text, at)
    if number is None or text[at - 1 : at] in ("-", ".") or re.search(r"\bthe\s*$", text[start:at], re.IGNORECASE):
        return None
    if re.search(r"-[*_`\"'(\[{$<]*$", text[start:at]):
        return None
    if listed := re.match(r"[*_ ]*([.):])\s", text[number.end() :]):  # the first of a list, not a score
        following = rf"\n[\s*_-]*{int(float(number['value'])) + 1}{re.escape(listed[1])}\s"
        if re.search(following, text[number.end() :]):
            return None
    signs = text[start:at].replace("->", "").replace("=>", "")
    if ">" in signs or ("<" in signs and not re.match(r"\s*>", text[number.end() :])):  # more or less than that
        return None
    return _checked(text, number)


def _checked(text: str, number: re.Match[str]) -> int | None:
    end = number.end()
    if scale := _SCALE.match(text, end):
        if scale["of"] != "5" or text[scale.end() : scale.end() + 1].isalnum():
            return None
        end = scale.end()
    value, following = number["value"], text[end : end + 1]
    if not re.fullmatch(r"[1-5](?:\.0+)?", value) or following.isalpha() or following.isdigit():
        return None
    if (
        re.match(rf"{_CLOSE}[.,:][^\S\n]?[0-9]", text[end:])
        or unicodedata.category(following or " ")[0] in "MN"
        or _MORE.match(text, end)
        or _HYPOTHETICAL.match(text, end)
        or _in_doubt(text, end)
    ):
        return None
    return int(float(value))


def _in_doubt(text: str, end: int) -> bool:
    """Whether the rest of the sentence, or the beginning of the next line, may mean another number."""
    whole = re.split(r"\n|[.!](?=[\s*_`\"')\]}>$|]|$)", text[end:], maxsplit=1)[0]
    rest = _HARMLESS.sub("", whole)
    if not _FOLLOWS.match(rest) or _TAKEN_BACK.match(rest) or re.search(r"(?:[-/,&+~]|\bor|\bto|\band)\s*$", rest):
        return True
    if _OTHER_SCALE.search(rest) or (not _REASON.match(rest) and _OTHER_NUMBER.search(rest)):
        return True
    return not rest.strip() and _GOES_ON.match(text, end + len(whole)) is not None


def _in_prose(text: str) -> int | None:
    """Of the last sentence such as `the score is 4`; `score of 4` and `score 4` only count at the end."""
    for match in reversed(list(_PROSE.finditer(text))):
        at = filler.end() if (filler := re.compile(_OPEN).match(text, match.end())) else match.end()
        if (number := _NUMBER.match(text, at)) is None:
            continue
        before = re.split(r"[\n.!?]\s", text[: match.start()])[-1]
        if _NOT_ITS_OWN.search(before) or _IF.search(re.sub(r"\bi would\b", "", before, flags=re.IGNORECASE)):
            return None
        if re.search(r"[<>]", text[match.start() : number.start()]):
            return None
        value, rest = _checked(text, number), number.end()
        if scale := _SCALE.match(text, rest):
            rest = scale.end()
        says = (match["verb"] or "").lower() in ("is", "was")
        fits = _ENDS.match(text, rest) if says else re.fullmatch(rf"{_CLOSE}[.!]?{_CLOSE}", text[rest:])
        return value if fits else None
    return None
