"""What models are asked: files of text with `{name}` for what is filled in. A user's directory may replace them."""

import dataclasses
import hashlib
import json
import re
from pathlib import Path

from janus_jax.data.columns import filled
from janus_jax.errors import ConfigError
from janus_jax.storage.endpoint_requests import Messages

OWN = Path(__file__).parent
NEEDED = {
    "subdimensions": ("dimension", "count"),
    "preferences": ("dimension", "subdimension", "count"),
    "descriptions": ("dimension", "subdimension", "preferences", "count"),
    "system": ("preferences",),
    "rubric": ("preference", "description"),
    "repair": ("fault",),
}
"""Prompt -> what NAME.txt cannot do without."""
_MAY = {
    "subdimensions": ("meaning", "existing"),
    "preferences": ("meaning", "existing"),
    "descriptions": ("meaning",),
    "system": ("examples",),
    "rubric": ("examples",),
    "repair": (),
}
"""Prompt -> what else is filled in."""
_PLACEHOLDER = re.compile(r"\{\{(\w+)\}\}|\{[ \t]*([^\W\d]\w*)[ \t]*\}")
"""`{{name}}`, which stands for `{name}` as it is, or `{name}`. Other braces, as of JSON, are text."""
_EXAMPLES = {"system": "systems.txt", "rubric": "rubrics.json"}

MEANINGS = {
    "style": "how an answer is written",
    "background_knowledge": "what the reader knows already",
    "informativeness": "what an answer tells, and how much of it",
    "harmlessness": "how an answer keeps from doing harm",
}
"""Dimension -> what it is about, for prompts."""


@dataclasses.dataclass(frozen=True)
class Prompt:
    """One prompt and the examples that it may show."""

    name: str
    text: str
    examples: tuple[str, ...] = ()

    @property
    def digest(self) -> str:
        """16 digits, which rows made with it name."""
        whole = json.dumps([self.text, *self.examples])
        return hashlib.sha256(whole.encode()).hexdigest()[:16]

    @property
    def quoted(self) -> list[str]:
        """What the text has in quotation marks: keys, and texts that stand for others in the form of an answer."""
        return re.findall(r'"([^"{}\n]+)"', self.text)

    def fill(self, **values: object) -> Messages:
        """The messages of a request. Braces in the values stay as they are."""

        def filled_in(match: re.Match[str]) -> str:
            return str(values[match[2]]) if match[2] in values else f"{{{match[1]}}}" if match[1] else match[0]

        return [{"role": "user", "content": _PLACEHOLDER.sub(filled_in, self.text)}]

    @property
    def shows_examples(self) -> bool:
        return any(match[2] == "examples" for match in _PLACEHOLDER.finditer(self.text))


def read_prompt(name: str, directory: str | None = None) -> Prompt:
    """NAME.txt of a directory, or ours if it has none; in the same way systems.txt or rubrics.json with examples.

    Raises:
        ConfigError: a file cannot be read, is empty, lacks a placeholder, or has an unknown one; examples are of
            another form.
    """
    path, whole = _read(directory, f"{name}.txt")
    text, allowed, seen = whole.strip(), NEEDED[name] + _MAY[name], set[str]()
    for match in _PLACEHOLDER.finditer(whole):
        if match[2] is not None and match[2] not in allowed:
            line = whole.count("\n", 0, match.start()) + 1
            others = ", ".join(f"{{{one}}}" for one in allowed)
            how = f"allowed: {others}; {{{{{match[2]}}}}} stands for the text {{{match[2]}}}"
            raise ConfigError("prompts", f"{path}:{line}: unknown placeholder {match[0]}; {how}")
        seen.add(match[2])
    for one in NEEDED[name]:
        if one not in seen:
            raise ConfigError("prompts", f"{path} has no {{{one}}}, which it needs")
    if (file := _EXAMPLES.get(name)) is None:
        return Prompt(name, text)
    path, content = _read(directory, file)
    if name == "system":
        examples = [one.strip() for one in re.split(r"^---+\s*$", content, flags=re.MULTILINE)]
        return Prompt(name, text, tuple(filter(None, examples)))
    try:
        examples = json.loads(content)
        texts = [text for one in examples for text in (one["criteria"], *one["score_descriptions"].values())]
        if not isinstance(examples, list) or not all(isinstance(one, str) and filled(one) for one in texts):
            raise ValueError("no list of rubrics")
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        what = "allowed: a JSON list of objects with criteria and score_descriptions"
        raise ConfigError("prompts", f"{path}: {what}") from error
    return Prompt(name, text, tuple(json.dumps(one, ensure_ascii=False) for one in examples))


def require_known(directory: str | None) -> None:
    """Refuses a directory that is none, or that holds a file no prompt has, or a prompt that cannot be used.

    Raises:
        ConfigError: names it.
    """
    if directory is None:
        return
    if not Path(directory).expanduser().is_dir():
        raise ConfigError("prompts", f"{directory}: is not a directory")
    allowed = {f"{name}.txt" for name in NEEDED} | set(_EXAMPLES.values())
    for path in sorted(Path(directory).expanduser().iterdir()):
        if path.suffix in (".txt", ".json") and path.name not in allowed:
            raise ConfigError("prompts", f"{path}: is no prompt; allowed: {', '.join(sorted(allowed))}")
    for name in NEEDED:
        read_prompt(name, directory)


def meaning(dimension: str) -> str:
    """What a dimension is about, in a few words."""
    return f"{MEANINGS.get(dimension, f'wishes that concern {spoken(dimension)}')}."


def spoken(dimension: str) -> str:
    """The name of a dimension in a sentence."""
    return dimension.replace("_", " ")


def _read(directory: str | None, file: str) -> tuple[Path, str]:
    own = OWN / ("prompts" if file.removesuffix(".txt") in NEEDED else "assets") / file
    theirs = own if directory is None else Path(directory).expanduser() / file
    path = theirs if theirs.exists() else own
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        why = error.strerror if isinstance(error, OSError) else "not UTF-8"
        raise ConfigError("prompts", f"{path}: cannot be read: {why}") from error
    if not text.strip():
        raise ConfigError("prompts", f"{path}: is empty")
    return path, text
