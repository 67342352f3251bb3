"""Lists of messages, as chat formats write them: [{role, content}, ...] or [{from, value}, ...]."""

import itertools
from collections.abc import Callable, Mapping
from typing import Any, Literal

from janus_jax.data.columns import Columns, RecordError, filled, shown, text

ROLES = {"system": "system", "user": "user", "human": "user", "assistant": "assistant", "gpt": "assistant"}
"""Names of roles in the accepted formats -> role."""

_KEYS = (("role", "content"), ("from", "value"))
_NAMES = {"role": ("system", "user", "assistant"), "from": ("system", "human", "gpt")}
"""Key of a message's role -> names of the roles, in their order, that messages of that form have."""


def _allowed(ends: str, keys: tuple[str, str]) -> str:
    """What a list of messages may hold, in the words of its form."""
    system, user, assistant = _NAMES[keys[0]]
    roles, last = ("", user) if ends == "user" else (f", one {user}", assistant)
    return f"allowed: one {system} (optional){roles} and one {last} message in this order, each {{{', '.join(keys)}}}"


def is_messages(value: Any) -> bool:
    """Whether a value is a list, or one message."""
    return isinstance(value, list) or _keys(value) is not None


def read_messages(raw: Columns, column: str, ends: Literal["assistant", "user"]) -> dict[str, str]:
    """Role -> text of a column that holds a list of messages, or the last of them alone.

    Args:
        ends: role of the last message. The roles before it may be absent.

    Raises:
        RecordError: a message is malformed, or the messages are more than one exchange or in another order.
    """
    form, turns = _turns(raw, column, lambda form: _allowed(ends, form))
    allowed = _allowed(ends, form)
    names = dict(zip(_NAMES["role"], _NAMES[form[0]], strict=True))
    roles = [role for role, _, _ in turns]
    spoken = roles[roles[:1] == ["system"] :]
    if len(spoken) > 2 and "system" not in spoken and all(a != b for a, b in itertools.pairwise(spoken)):
        raise RecordError(
            "several_exchanges",
            f"column {column!r} is a conversation of {len(spoken)} messages; a record is one exchange: {allowed[9:]}",
        )
    for number, role in enumerate(roles):
        if role in roles[:number]:
            where = f"column {column!r}, message {number + 1}"
            raise RecordError("bad_messages", f"{where} is a second {names[role]} message; {allowed}")
    if roles[-1:] != [ends] or roles != [role for role in ("system", "user", "assistant") if role in roles]:
        given = ", ".join(names[role] for role in roles) or "none"
        raise RecordError("bad_messages", f"column {column!r} has the roles {given}; {allowed}")
    return {role: _content(role, where, content) for role, where, content in turns}


def ends_with_answer(value: Any) -> bool:
    """Whether the last message of a list is the assistant's."""
    last: Any = value[-1] if isinstance(value, list) and value else None
    return (keys := _keys(last)) is not None and ROLES.get(str(last[keys[0]])) == "assistant"


def read_conversation(raw: Columns, column: str, ends: Literal["assistant", "user"] = "user") -> list[dict[str, str]]:
    """Messages with `role` and `content`: a system message (optional), then user and assistant in turn.

    Args:
        ends: role of the last message.

    Raises:
        RecordError: a message is malformed, or the roles come in another order.
    """

    def allowed(form: tuple[str, str]) -> str:
        system, user, assistant = _NAMES[form[0]]
        last = user if ends == "user" else assistant
        return f"allowed: {system} (optional), then {user} and {assistant} in turn, {last} last"

    form, turns = _turns(raw, column, allowed)
    roles = [role for role, _, _ in turns]
    spoken = roles[roles[:1] == ["system"] :]
    if (
        not spoken
        or spoken != [("user", "assistant")[number % 2] for number in range(len(spoken))]
        or spoken[-1] != ends
    ):
        given = ", ".join(roles) or "none"
        raise RecordError("bad_messages", f"column {column!r} has the roles {given}; {allowed(form)}")
    return [{"role": role, "content": _content(role, where, content)} for role, where, content in turns]


def _turns(
    raw: Columns, column: str, allowed: Callable[[tuple[str, str]], str]
) -> tuple[tuple[str, str], list[tuple[str, str, Any]]]:
    """The form of a column's messages, and their roles, places and contents.

    Args:
        allowed: what messages of a form may be, for errors.
    """
    value = raw[column]
    messages = value if isinstance(value, list) else [value]
    form = _form(messages)
    turns: list[tuple[str, str, Any]] = []
    for number, message in enumerate(messages, 1):
        where, keys = f"column {column!r}, message {number}", _keys(message)
        if keys is None:
            raise RecordError("bad_messages", f"{where} is {shown(message)}; {allowed(form)}")
        role = message[keys[0]]
        if not isinstance(role, str) or role not in ROLES:
            raise RecordError("bad_messages", f"{where} has {keys[0]} {shown(role)}; {allowed(form)}")
        raw.ignore(column, message, keys)
        turns.append((ROLES[role], f"column {column!r}, {keys[1]} of message {number}", message[keys[1]]))
    return form, turns


def _content(role: str, where: str, content: Any) -> str:
    return "" if role == "system" and content is None else text(content, where, may_be_empty=role == "system")


def _form(messages: list[Any]) -> tuple[str, str]:
    """The keys of the first message that has any of them."""
    objects = [message for message in messages if isinstance(message, Mapping)]
    keys = [keys for message in objects for keys in _KEYS if any(filled(message.get(key)) for key in keys)]
    return keys[0] if keys else _KEYS[0]


def _keys(message: Any) -> tuple[str, str] | None:
    """The names of role and text in a message; None if it is no message."""
    if not isinstance(message, Mapping):
        return None
    named = [keys for keys in _KEYS if all(key in message for key in keys)]
    # a Parquet column has all keys in all messages, null where a message lacks them
    return next((keys for keys in named if filled(message[keys[0]])), named[0] if named else None)
