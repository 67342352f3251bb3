"""Pictures of evaluations: one SVG file each, which needs no other file."""

import io
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

from janus_jax.storage.local import write_bytes

_NAME = 40
"""Characters of a name that are shown; of a longer one, both ends."""


def write(path: Path, size: tuple[float, float], draw: Callable[[Any], None]) -> None:
    """Writes a picture whole. The same numbers give the same bytes.

    Args:
        size: width and height in inches.
        draw: fills an empty figure.

    Raises:
        StorageError: it cannot be written.
    """
    import matplotlib
    from matplotlib.figure import Figure

    style: dict[Any, Any] = {"font.size": 10, "axes.titlesize": 10.5, "axes.titleweight": "bold"}
    style |= {"axes.spines.top": False, "axes.spines.right": False, "svg.hashsalt": "janus", "svg.fonttype": "none"}
    with warnings.catch_warnings(action="ignore"), matplotlib.rc_context(style):
        figure = Figure(figsize=size, layout="constrained")
        draw(figure)
        buffer = io.BytesIO()
        figure.savefig(buffer, format="svg", facecolor="white", metadata={"Date": None})
    write_bytes(path, buffer.getvalue())


def plain(name: str) -> str:
    """A name that matplotlib takes for no formula, whatever a file is called."""
    shown = "".join(c if c.isprintable() else "?" for c in name).replace("\\", "/").replace("$", r"\$")
    return shown if len(shown) <= _NAME else f"{shown[: _NAME // 2]}...{shown[-_NAME // 2 :]}"
