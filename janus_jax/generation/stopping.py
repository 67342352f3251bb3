"""Where an answer ends: bounds of its length, stop ids, and stop strings that may lie across several tokens."""

import dataclasses
from collections.abc import Sequence
from typing import no_type_check

from janus_jax.config.mistakes import join
from janus_jax.errors import ConfigError

_MOST_TOKENS = 2**31 - 1


@no_type_check  # it checks values itself
@dataclasses.dataclass(frozen=True)
class StoppingOptions:
    """Where an answer ends.

    Raises:
        ConfigError: a value that is not allowed; one line for each.
    """

    max_new_tokens: int = 256
    """Tokens of an answer at most, the id that ends it included."""
    min_new_tokens: int = 0
    """Tokens before which no id may end the answer."""
    stop: Sequence[str] = ()
    """Texts that end the answer, which does not show them. A single one may be given as it is."""
    stop_ids: Sequence[int] = ()
    """Ids that end the answer, besides those of the model."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "stop", (self.stop,) if isinstance(self.stop, str) else self.stop)
        faults, most = [], _MOST_TOKENS
        if not _is_whole(self.max_new_tokens, 1):
            faults.append(f"max_new_tokens = {self.max_new_tokens!r}: allowed: a whole number from 1 to {most}")
        elif _is_whole(self.min_new_tokens, 0):
            most = self.max_new_tokens
        if not _is_whole(self.min_new_tokens, 0, most):
            reason = f"a whole number from 0 to {most}" + (", max_new_tokens" if most < _MOST_TOKENS else "")
            faults.append(f"min_new_tokens = {self.min_new_tokens!r}: allowed: {reason}")
        for name, fits, allowed in (
            ("stop", _is_text, "text that is not empty"),
            ("stop_ids", lambda value: _is_whole(value, 0), f"whole numbers from 0 to {_MOST_TOKENS}"),
        ):
            values = getattr(self, name)
            if not isinstance(values, list | tuple):
                faults.append(f"{name} = {values!r}: allowed: a list of {allowed}")
                continue
            faults += [f"{name} has {value!r}: allowed: {allowed}" for value in values if not fits(value)]
            object.__setattr__(self, name, tuple(values))
        if faults:
            raise ConfigError(join("stopping", faults))

    def require_ids_below(self, vocab_size: int) -> None:
        """Raises ConfigError for a stop id that the model does not have."""
        if wrong := [number for number in self.stop_ids if number >= vocab_size]:
            raise ConfigError(f"stop_ids has {wrong[0]}: allowed: ids of the model, from 0 to {vocab_size - 1}")


def _is_whole(value: object, least: int, most: int = _MOST_TOKENS) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and least <= value <= most


def _is_text(value: object) -> bool:
    """Whether it is text that UTF-8 can hold: an answer has no other."""
    return isinstance(value, str) and value != "" and not any("\ud800" <= character <= "\udfff" for character in value)


class StopStrings:
    """Cuts a text, which comes in pieces, before the stop string that is complete first.

    Of several that end at the same place the longest counts. How the text is divided into pieces changes nothing.
    """

    def __init__(self, stops: Sequence[str]):
        self._stops = stops
        self._held = ""
        self.matched: str | None = None
        """The stop string that has come; what follows it is left out."""

    def push(self, text: str) -> str:
        """The next piece that may be shown: without what may be the beginning of a stop string."""
        if self.matched is not None:
            return ""
        text = self._held + text
        ends = [(start + len(stop), start, stop) for stop in self._stops if (start := text.find(stop)) >= 0]
        if ends:
            _, cut, self.matched = min(ends)
        else:
            cut = next(at for at in range(len(text) + 1) if self._may_begin(text[at:]))
        self._held = "" if ends else text[cut:]
        return text[:cut]

    def finish(self) -> str:
        """What was held back when the text is at its end."""
        held, self._held = self._held, ""
        return held

    def _may_begin(self, tail: str) -> bool:
        return not tail or any(stop.startswith(tail) for stop in self._stops)
