"""Options that several commands share: a command takes a dataclass, and gets an option for each of its fields."""

import dataclasses
import functools
import inspect
from collections.abc import Callable
from typing import Any, get_type_hints


class OptionGroup:
    """Base of a dataclass whose fields are options; their annotations are those of a command's parameters."""


def grouped(**defaults: Any) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Gives a command one option for each field of its parameters that are an `OptionGroup`, in their place.

    Args:
        defaults: of fields, in place of their own.
    """

    def decorate(command: Callable[..., None]) -> Callable[..., None]:
        parameters: list[inspect.Parameter] = []
        groups: dict[str, tuple[type[OptionGroup], list[str]]] = {}
        for one in inspect.signature(command).parameters.values():
            if isinstance(one.annotation, type) and issubclass(one.annotation, OptionGroup):
                options = _options(one.annotation, defaults)
                groups[one.name] = one.annotation, [option.name for option in options]
                parameters += options
            else:
                parameters.append(one.replace(kind=inspect.Parameter.KEYWORD_ONLY))

        @functools.wraps(command)
        def run(**given: Any) -> None:
            made = {name: group(**{key: given.pop(key) for key in fields}) for name, (group, fields) in groups.items()}
            command(**given, **made)

        vars(run)["__signature__"] = inspect.Signature(parameters)  # what typer reads
        run.__annotations__ = {one.name: one.annotation for one in parameters}
        return run

    return decorate


def _options(group: type[OptionGroup], defaults: dict[str, Any]) -> list[inspect.Parameter]:
    hints, made = get_type_hints(group, include_extras=True), []
    for one in dataclasses.fields(group):  # pyright: ignore[reportArgumentType]
        own = inspect.Parameter.empty if one.default is dataclasses.MISSING else one.default
        default = defaults.get(one.name, own)
        made.append(
            inspect.Parameter(one.name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=hints[one.name])
        )
    return made
