"""Answers in JSON: what models write around it is taken off, small faults are mended, and the form is checked."""

import json
import re
from typing import Any, TypeVar

from pydantic import BaseModel, ConfigDict, ValidationError

from janus_jax.data.columns import filled
from janus_jax.data.synthesize import gates
from janus_jax.data.synthesize.asking import Rejected

_FENCE = re.compile(r"```(?:json)?\s*\n(.*?)```", re.DOTALL | re.IGNORECASE)
_TRAILING = re.compile(r'"(?:[^"\\]|\\.)*"|,(\s*[}\]])')

Form = TypeVar("Form", bound="Answer")


class Answer(BaseModel):
    """The form of an answer in JSON."""

    model_config = ConfigDict(extra="ignore", strict=True)


def response_format(form: type[Answer], mode: str) -> dict[str, Any]:
    """Options of a request for a mode: json_schema, json_object or none."""
    if mode == "json_schema":
        schema = _closed(form.model_json_schema())
        return {"response_format": {"type": mode, "json_schema": {"name": "answer", "strict": True, "schema": schema}}}
    return {"response_format": {"type": mode}} if mode == "json_object" else {}


def _closed(schema: Any) -> Any:
    """The schema as OpenAI's strict mode needs it: no further keys, all keys required, no titles."""
    if isinstance(schema, list):
        return [_closed(one) for one in schema]
    if not isinstance(schema, dict):
        return schema
    made = {key: _closed(value) for key, value in schema.items() if key != "title" or not isinstance(value, str)}
    if made.get("type") == "object" and "properties" in made:
        made |= {"additionalProperties": False, "required": list(made["properties"])}
    return made


def read(text: str, form: type[Form]) -> tuple[Form, bool]:
    """The answer in a text, and whether the text had to be mended.

    Raises:
        Rejected: `refusal` in place of JSON, `bad_json` or `wrong_form`.
    """
    for number, candidate in enumerate(_candidates(text)):
        try:
            value = json.loads(candidate, strict=False)  # models write line breaks inside strings
        except (ValueError, RecursionError):
            continue
        try:
            return form.model_validate(value), number > 0
        except ValidationError as error:
            first = error.errors(include_url=False)[0]
            where = ".".join(map(str, first["loc"])) or "the whole"
            what = "is missing" if first["type"] == "missing" else "has another type"
            raise Rejected("wrong_form", f"{where} {what}") from error
    gates.refusal(text)
    raise Rejected("bad_json", text[:80])


def _candidates(text: str) -> list[str]:
    """The text, then what is left of it without a fence, without words around it, and without trailing commas."""
    tried = [text]
    if fenced := _FENCE.search(text):
        tried.append(fenced[1])
    inner = tried[-1]
    if (start := inner.find("{")) >= 0 and (end := inner.rfind("}")) > start:
        tried.append(inner[start : end + 1])
    tried.append(_without_trailing_commas(tried[-1]))
    return tried


def _without_trailing_commas(text: str) -> str:
    """Without commas before a closing bracket. Strings stay as they are."""
    return _TRAILING.sub(lambda match: match[0] if match[0].startswith('"') else match[1], text)


def texts(value: list[str]) -> list[str]:
    """The texts that show something, without blanks at their ends."""
    return [" ".join(one.split()) for one in value if filled(one)]
