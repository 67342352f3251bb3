"""JSON that a user gives."""

import json
from collections import Counter
from typing import Any


def json_fault(error: json.JSONDecodeError) -> str:
    """`not valid JSON`, where in the text, and why."""
    return f"not valid JSON at line {error.lineno}, character {error.colno}: {error.msg}"


def strict_json(content: str) -> Any:
    """The value of a JSON text. Python would keep the last value of a key that an object names twice.

    Raises:
        json.JSONDecodeError: it is not JSON.
        ValueError: an object names a key twice, or is nested too deeply; the message follows the name of the file.
    """
    try:
        return json.loads(content, object_pairs_hook=_object)
    except RecursionError:
        raise ValueError("is nested too deeply") from None


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    value = dict(pairs)
    if len(value) != len(pairs):
        key = next(key for key, count in Counter(key for key, _ in pairs).items() if count > 1)
        values = ", ".join(json.dumps(given)[:40] for name, given in pairs if name == key)
        raise ValueError(f"names the key {ascii(key)[:80]} twice ({values}); keep one")
    return value
