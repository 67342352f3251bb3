"""The report as one self-contained page, rendered from `assets/page.html`.

Texts of data are untrusted. The template escapes every value; slots travel as JSON without `<`, which the page only
ever shows as text; the page's policy allows its own script alone, by hash.
"""

import base64
import hashlib
import re
from pathlib import Path

import jinja2
from markupsafe import Markup, escape

from janus_jax.data.inspect import wording
from janus_jax.data.inspect.facts import SplitFacts
from janus_jax.data.inspect.rows import ROLES, ShownRow
from janus_jax.data.inspect.token_text import MORE_BYTES, Pieces, visible

_ASSETS = Path(__file__).parent / "assets"
_SLOT_FIELDS = ("tokens", "targets", "weights", "position", "segment", "branch")


def page(target: str, splits: list[SplitFacts], rows: list[ShownRow], pieces: Pieces) -> str:
    """The whole page as text."""
    style, script = ((_ASSETS / name).read_text(encoding="utf-8") for name in ("page.css", "page.js"))
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(_ASSETS),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.policies["json.dumps_kwargs"] = {"separators": (",", ":")}
    environment.filters |= {"number": "{:,}".format, "visible": visible, "slot_text": _slot_text}
    return environment.get_template("page.html").render(
        target=target,
        splits=splits,
        rows=rows,
        slots=_slots(rows, pieces),
        style=Markup(style),
        script=Markup(script),
        script_hash=base64.b64encode(hashlib.sha256(script.encode()).digest()).decode(),
        wording=wording,
        roles=ROLES,
        more_bytes=MORE_BYTES,
    )


def _slot_text(text: str) -> Markup:
    """A token's text with quiet marks; lines may break at spaces."""
    marked = re.sub("([·→])", r"<wbr><u>\1</u>", str(escape(visible(text))))
    return Markup(marked.replace("↵", "<u>↵</u>\n"))


def _slots(rows: list[ShownRow], pieces: Pieces) -> dict:
    """What the script shows of each slot, and the text of every token id in it."""
    fields = [{name: getattr(row, name)[: row.used].tolist() for name in _SLOT_FIELDS} for row in rows]
    ids = {id for row in fields for name in ("tokens", "targets") for id in row[name]}
    return {"rows": fields, "pieces": {id: visible(pieces.one(id)) for id in sorted(ids)}}
