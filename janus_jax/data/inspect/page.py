"""The report as one self-contained page, rendered from `assets/page.html`.

Slots are JSON without `<` that the script only sets as text.
"""

import re
from pathlib import Path

from markupsafe import Markup, escape

from janus_jax.data.inspect import html, wording
from janus_jax.data.inspect.facts import SplitFacts
from janus_jax.data.inspect.rows import ROLES, AnnotatedRow
from janus_jax.data.inspect.token_text import MORE_BYTES, TokenDecoder, visible

_SLOT_FIELDS = ("tokens", "targets", "weights", "position", "segment", "branch")


def page(target: str, splits: list[SplitFacts], rows: list[AnnotatedRow], decoder: TokenDecoder) -> str:
    """The whole page as text."""
    return html.render(
        Path(__file__).parent / "assets",
        "page",
        f"What training sees: {target}",
        {"slot_text": _slot_text},
        splits=splits,
        rows=rows,
        slots=_slots(rows, decoder),
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
