"""JSON that a user gives, and settings compared as JSON."""

import json
from collections import Counter
from collections.abc import Container, Mapping
from typing import Any

_SHOWN = 60


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


def json_kind(value: Any) -> str:
    """What a value is called in JSON."""
    if value is None or isinstance(value, bool):
        return json.dumps(value)
    kinds = {str: "a string", list: "an array", dict: "an object"}
    return kinds.get(type(value), "a number")


def difference(
    before: Mapping[str, Any], now: Mapping[str, Any], free: Container[str] = ()
) -> tuple[str, str, str] | None:
    """The first key with another value, and its values before and now as JSON, shortened; a missing one is null.

    Args:
        free: keys that may differ.
    """
    now = json.loads(json.dumps(now))
    for name in [*now, *(key for key in before if key not in now)]:
        if name not in free and before.get(name) != now.get(name):
            return name, *_shown(before.get(name), now.get(name))
    return None


def _shown(before: Any, now: Any) -> tuple[str, str]:
    """Both as JSON; long ones from a little before where they part."""
    texts = json.dumps(before), json.dumps(now)
    differing = (at for at, (a, b) in enumerate(zip(*texts, strict=False)) if a != b)
    parting = next(differing, min(map(len, texts)))
    start = max(0, parting - _SHOWN // 3) if max(map(len, texts)) > _SHOWN else 0

    def part(text: str) -> str:
        return f"{'...' * bool(start)}{text[start : start + _SHOWN]}{'...' * (len(text) > start + _SHOWN)}"

    return part(texts[0]), part(texts[1])


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    value = dict(pairs)
    if len(value) != len(pairs):
        key = next(key for key, count in Counter(key for key, _ in pairs).items() if count > 1)
        values = ", ".join(json.dumps(given)[:40] for name, given in pairs if name == key)
        raise ValueError(f"names the key {ascii(key)[:80]} twice ({values}); keep one")
    return value
