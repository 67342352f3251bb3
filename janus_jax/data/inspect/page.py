"""The report as one self-contained page, rendered from `assets/page.html`.

Texts of data are untrusted. The template escapes every value, slots are JSON without `<` that the script only sets as
text, and the page's policy allows its own script alone, by hash.
"""

import base64
import hashlib
import re
from pathlib import Path

import jinja2
from markupsafe import Markup, escape

from janus_jax.data.inspect import wording
from janus_jax.data.inspect.facts import SplitFacts
from janus_jax.data.inspect.rows import ROLES, AnnotatedRow
from janus_jax.data.inspect.token_text import MORE_BYTES, TokenDecoder, visible

_ASSETS = Path(__file__).parent / "assets"
_SLOT_FIELDS = ("tokens", "targets", "weights", "position", "segment", "branch")


def page(target: str, splits: list[SplitFacts], rows: list[AnnotatedRow], decoder: TokenDecoder) -> str:
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
        slots=_slots(rows, decoder),
        style=Markup(style),
        script=Markup(script),
        script_hash=base64.b64encode(hashlib.sha256(script.encode()).digest()).decode(),
        wording=wording,
        roles=ROLES,
        more_bytes=MORE_BYTES,
    )


def _slot_text(text: str) -> Markup:
    """A token's text with its marks greyed; lines may break at spaces."""
    marked = re.sub("([·→])", r"<wbr><u>\1</u>", str(escape(visible(text))))
    return Markup(marked.replace("↵", "<u>↵</u>\n"))


def _slots(rows: list[AnnotatedRow], decoder: TokenDecoder) -> dict:
    """The fields that the script shows of each slot, and the text of each token id in them."""
    fields = [{name: getattr(row, name)[: row.used].tolist() for name in _SLOT_FIELDS} for row in rows]
    ids = {id for row in fields for name in ("tokens", "targets") for id in row[name]}
    return {"rows": fields, "token_texts": {id: visible(decoder.token(id)) for id in sorted(ids)}}
