"""What an endpoint refuses, and what it says of it."""

import json
import re
from collections.abc import Mapping
from typing import Any

from janus_jax.errors import ConfigError
from janus_jax.storage.endpoint_requests import OWN_OPTIONS

_MESSAGE = 300  # characters of what a server says
_NOT_TAKEN = re.compile(
    r"support|unknown|unrecogni[sz]ed|unexpected|not (?:allowed|permitted|a valid)|extra|invalid (?:param|arg|option)",
    re.IGNORECASE,
)
_NO_MODEL = re.compile(r"not (?:a valid|found|exist|available)|(?:no such|unknown|invalid) model", re.IGNORECASE)
_TOO_LONG = re.compile(r"\bcontext\b|too (?:large|long|many)|exceed", re.IGNORECASE)


class RefusedRequestError(ConfigError):
    """The endpoint refuses whatever it is asked.

    Args:
        about: what is wrong: `key`, `model` (or the path of the URL), or empty if the endpoint does not say.
        parts: as `JanusError`.
    """

    def __init__(self, about: str, *parts: str):
        super().__init__(*parts)
        self.about = about


class RefusedOptionError(ConfigError):
    """The endpoint does not take an option of requests.

    Args:
        option: its name.
        parts: as `JanusError`.
    """

    def __init__(self, option: str, *parts: str):
        super().__init__(*parts)
        self.option = option


def detail(error: Any, name: str) -> object:
    """A value of the body of an error."""
    return error.body.get(name) if isinstance(error.body, dict) else None


def server_message(error: Any) -> str:
    """What a server says of an error: `message` as OpenAI has it, or what others have in its place."""
    body = error.body
    if isinstance(body, dict):
        body = next((body[name] for name in ("message", "error", "detail", "msg") if body.get(name)), body)
    text = body if isinstance(body, str) else json.dumps(body, ensure_ascii=False) if body else ""
    return " ".join(text.split())[:_MESSAGE] or "without a message"


def refused_option(error: Any, body: Mapping[str, Any]) -> str | None:
    """The option that an endpoint does not take, as its error says; of several the first one."""
    if _TOO_LONG.search(str(error)):  # for this conversation
        return None
    options = [name for name in body if name not in OWN_OPTIONS]
    if (param := detail(error, "param")) in options:
        return str(param)
    named = [match[0] for match in re.finditer(r"\w+", str(error)) if match[0] in options]
    return named[0] if named and _NOT_TAKEN.search(str(error)) else None


def names_model(error: Any, model: str) -> bool:
    """Whether an error is about the model, which some servers refuse as a bad request."""
    if _TOO_LONG.search(str(error)):  # for this conversation
        return False
    is_named = detail(error, "param") == "model" or detail(error, "code") == "model_not_found"
    text = server_message(error)
    return is_named or (model in text and bool(_NO_MODEL.search(text)))
