"""What records hold that is allowed, but often a mistake: counted while building and inspecting, and said."""

import re

from janus_jax.data.schema import Record
from janus_jax.text.template import TEMPLATES

NOTES = {
    "template_marks": "hold marks of a template, such as [INST] or </s>, which are trained as text; "
    "was a template applied before?",
    "prompt_in_train": "have a prompt that split train has too",
    "no_margin": "have no margin while others have one; a missing margin counts as 0",
    "negative_margin": "have a negative margin, as if the rejected response were the better one",
    "control_characters": "hold control characters such as NUL, which are trained as text",
}
"""Note -> what the records do; after "N records"."""
_OF_ONE = {"hold": "holds", "have": "has"}

_OF_TEMPLATES = (mark for template in TEMPLATES.values() for mark in template.marks)
_OF_OTHERS = (r"<\|[A-Za-z_]{2,30}\|>", r"<\uff5c[^<>\uff5c]{2,30}\uff5c>", "<(?:<SYS>|start_of_turn|end_of_turn)>")
_MARKS = re.compile("|".join((*map(re.escape, sorted(set(_OF_TEMPLATES))), *_OF_OTHERS)))
CONTROL = re.compile("[\0-\x08\x0b\x0e-\x1f\x7f]")
"""Control characters, but for tab and line breaks."""
_STARTS, _ENDS = ("<s>", "<bos>"), ("</s>", "<eos>")


def said_of(note: str, count: int) -> str:
    """What so many records do, after their number; an unknown note of another version is itself."""
    verb, _, rest = NOTES.get(note, note).partition(" ")
    return f"{_OF_ONE.get(verb, verb) if count == 1 else verb} {rest}".rstrip()


def notes_of(record: Record) -> list[str]:
    """The notes that one record gets."""
    texts = [record.system, record.prompt, record.chosen, record.rejected or ""]
    notes = {
        "template_marks": any(map(holds_marks, texts)),
        "negative_margin": (record.margin or 0) < 0,
        "control_characters": any(map(CONTROL.search, texts)),
    }
    return [note for note, applies in notes.items() if applies]


def holds_marks(text: str) -> bool:
    """Whether a text holds a template's marks, begins with a BOS or ends with an EOS that is spelled out."""
    ends = text.lstrip().startswith(_STARTS) or text.rstrip().endswith(_ENDS)
    return ends or _MARKS.search(text) is not None
