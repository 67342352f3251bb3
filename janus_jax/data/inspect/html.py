"""Self-contained pages: a template with the style and the script of its folder inside. Nothing is loaded.

Texts of data are untrusted. Templates escape every value, what moves a cursor or reverses writing is spelled out, and
the page's policy allows its own script alone, by hash.
"""

import base64
import hashlib
from pathlib import Path
from typing import Any

import jinja2
from markupsafe import Markup

from janus_jax.data.inspect.token_text import visible

_SHARED = Path(__file__).parent / "assets"
_JOINERS = "\u200c\u200d"
"""Invisible, but part of how Persian and many emoji are written."""


def render(folder: Path, name: str, title: str, /, filters: dict[str, Any] | None = None, **values: Any) -> str:
    """The page of `name`.html, with `page.css`, the folder's own `name`.css, and `name`.js.

    Args:
        folder: holds these files; a template also includes those of `data/inspect/assets`.
        filters: more of them, for the template.
        values: what the template shows.
    """
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader([folder, _SHARED]),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        finalize=_printable,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.policies["json.dumps_kwargs"] = {"separators": (",", ":")}
    environment.filters |= {"number": "{:,}".format, "visible": visible} | (filters or {})
    styles = dict.fromkeys([_SHARED / "page.css", folder / f"{name}.css"])
    style = "".join(file.read_text(encoding="utf-8") for file in styles if file.exists())
    script = (folder / f"{name}.js").read_text(encoding="utf-8")
    return environment.get_template(f"{name}.html").render(
        title=title,
        style=Markup(style),
        script=Markup(script),
        script_hash=base64.b64encode(hashlib.sha256(script.encode()).digest()).decode(),
        **values,
    )


def _printable(value: Any) -> Any:
    """A text in which lines and tabs stay, and what cannot be seen is spelled out."""
    if not isinstance(value, str) or isinstance(value, Markup):
        return value
    return "".join(c if c.isprintable() or c in "\n\t" or c in _JOINERS else ascii(c)[1:-1] for c in value)
