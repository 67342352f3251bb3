"""The account of an import: one verdict for each key of the foreign file, and the configuration made of them."""

import dataclasses
import json
import math
import re
import shlex
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Literal

from janus_jax.errors import ConfigError

Verdict = Literal["kept", "approximated", "by hand", "not needed", "not set", "ignored", "not supported", "unknown"]

VERDICTS: dict[Verdict, str] = {
    "kept": "means the same here",
    "approximated": "close, with the difference that is named",
    "by hand": "the value needs you: see `to do by hand`",
    "not supported": "changes the result and has nothing like it here",
    "unknown": "in no list of the tool's keys",
    "ignored": "the tool does not use it either",
    "not needed": "no effect on the result",
    "not set": "empty in the file",
}
"""In the order of the report. Every key of the file has one of them."""

REFUSED: tuple[Verdict, ...] = ("not supported", "unknown")
"""An import with keys of these kinds fails, unless it is forced."""

KINDS = {"simpo": "dpo"}
"""Objective -> the `--kind` of its data, where that has another name."""

_SECRET = re.compile(
    r"[A-Z_]*(KEY|TOKEN|SECRET|PASSWORD)$|"
    r".*(api_?key|(hub|hf|auth|access)_token|secret|password|use_wandb|wandb\.key)$"
)
_OFF = (None, False, 0, "", "none", "None", "no", "False", "false", "0")


@dataclasses.dataclass(frozen=True)
class Row:
    """A key of the file (or a default of the tool), its value, the verdict, our keys, and a remark."""

    key: str
    value: Any
    verdict: Verdict
    ours: str = ""
    note: str = ""


@dataclasses.dataclass(frozen=True)
class Build:
    """A data set that `janus data build` makes before training."""

    kind: str
    source: str
    out: str
    template: str | None = None
    more: str = ""
    """Further options."""

    def command(self, *, tokenizer: str | None, boundary: str, bos: bool) -> str:
        """The command. `tokenizer`: as a shell reads it; None: the embedded one."""
        words = ["janus", "data", "build", "--kind", self.kind, "--source", self.source, "--out", self.out]
        if self.template is not None and self.template != "mistral-inst":
            words += ["--template", self.template]
        if boundary != "separate":
            words += ["--boundary", boundary]
        words += [] if bos else ["--no-bos"]
        end = f" --tokenizer {tokenizer}" if tokenizer is not None else ""
        return f"{shlex.join(words)}{end}{f' {self.more}' if self.more else ''}"


class Ledger:
    """Collects verdicts while a tool's module walks through its keys. A key gets its first and only verdict once.

    Args:
        file: name of the file, for messages.
        tool: name and version, like `axolotl 0.21`.
        values: every key of the file, in order; nested ones with dots and indices.
        equal: whether compat switches that make the run equal to the tool's are to be set.
    """

    def __init__(self, file: str, tool: str, values: Mapping[str, Any], *, equal: bool = False):
        self.file, self.tool, self.values, self.equal = file, tool, dict(values), equal
        self.config: dict[str, Any] = {}
        self.rows: dict[str, Row] = {}
        self.defaults: list[Row] = []
        self.defects: list[str] = []
        self.by_hand: list[str] = []
        self.builds: list[Build] = []
        self.commands: list[str] = []
        self.devices: int | None = None
        """Devices that the file names."""

    def given(self, key: str) -> bool:
        """Whether the file gives the key a value."""
        return self.values.get(key) is not None

    def get(self, key: str, default: Any = None) -> Any:
        """The value, or the default if the key is absent or empty."""
        value = self.values.get(key)
        return default if value is None else value

    def on(self, key: str) -> bool:
        """Whether a switch is on, or a setting that can be off has a value."""
        value = self.values.get(key)
        return bool(value) and value not in _OFF

    def under(self, prefix: str) -> list[str]:
        """The key itself, and the keys below it."""
        return [key for key in self.values if key == prefix or key.startswith((f"{prefix}.", f"{prefix}["))]

    def judge(self, key: str, verdict: Verdict, ours: str = "", note: str = "") -> None:
        """The verdict on a key. A key that is empty or absent needs none, and a second verdict is not taken."""
        if key in self.values and key not in self.rows:
            value = self.values[key]
            if value is None:
                verdict, ours, note = "not set", "", ""
            self.rows[key] = Row(key, masked(key, value), verdict, ours, note)

    def write(self, ours: str, value: Any) -> None:
        """Sets a key of our configuration."""
        *sections, name = ours.split(".")
        place = self.config
        for section in sections:
            place = place.setdefault(section, {})
        place[name] = value

    def carry(
        self, keys: str | Sequence[str], ours: str, value: Any, *, verdict: Verdict = "kept", note: str = ""
    ) -> None:
        """Sets a key of ours, from keys of the file, or from the tool's default if the file gives none of them."""
        names = [keys] if isinstance(keys, str) else list(keys)
        self.write(ours, value)
        text = f"{ours} = {shown(value)}"
        if not any(self.given(name) for name in names):
            self.defaults.append(Row(names[0], value, verdict, text, note))
        for name in names:
            self.judge(name, verdict, text, note)

    def number(self, key: str, default: Any = None, *, low: float = 0, high: float = math.inf) -> Any:
        """A number, also one written as text (YAML 1.1 reads 5e-6 so).

        Raises:
            ConfigError: it is no finite number from `low` to `high`.
        """
        value = self.get(key, default)
        if value is None:
            return None
        try:
            number = math.nan if isinstance(value, bool) else float(value)
        except (TypeError, ValueError):
            number = math.nan
        if not low <= number <= high or math.isinf(number):
            limit = f" from {low:g} to {high:g}" if high < math.inf else f" of at least {low:g}"
            raise ConfigError(f"{self.file}: {key} = {shown(value)}: allowed: a number{limit}")
        return int(number) if isinstance(value, int) else number

    def whole(self, key: str, default: Any = None, *, low: int = 0) -> Any:
        """A whole number.

        Raises:
            ConfigError: it is another.
        """
        number = self.number(key, default, low=low)
        if number is not None and number != int(number):
            raise ConfigError(f"{self.file}: {key} = {shown(self.get(key))}: allowed: a whole number of at least {low}")
        return None if number is None else int(number)

    def word(self, key: str, default: str, allowed: Iterable[str]) -> str:
        """One of some words.

        Raises:
            ConfigError: it is another.
        """
        value, words = self.get(key, default), list(allowed)
        if value not in words:
            raise ConfigError(f"{self.file}: {key} = {shown(value)}: allowed: {', '.join(words)}")
        return value

    def not_needed(self, groups: Mapping[str, str]) -> None:
        """Reason -> keys that have no effect on the result. Keys below them are meant too."""
        for reason, names in groups.items():
            for name in names.split():
                for key in self.under(name):
                    self.judge(key, "not needed", note=reason)

    def name_devices(self, keys: Iterable[str], number: int, instead: int | None) -> None:
        """The verdict on keys that name the devices, and these. `instead`: of the command line, which counts first."""
        self.devices = number
        for key in keys:
            self.judge(key, *devices_row(number, instead))

    def unsupported(self, groups: Mapping[str, str], neutral: Mapping[str, Callable[[Any], bool]]) -> None:
        """Reason -> keys that change the result if they are on; `neutral` says which other values are off."""
        for reason, names in groups.items():
            for name in names.split():
                off = neutral.get(name, lambda value: value in _OFF or value in ([], {}))
                for key in self.under(name):
                    value = self.values[key]
                    note = "is off" if value in _OFF or value in ([], {}) else "is the default"
                    fits = key == name and off(value)
                    self.judge(key, *(("not needed", "", note) if fits else ("not supported", "", reason)))

    def rest(self, known: Iterable[str], what_it_does: str) -> None:
        """The verdict on all keys that have none yet: nothing knows them."""
        import difflib

        names = list(known)
        for key in self.values:
            near = [] if key in self.rows else difflib.get_close_matches(key, names, n=1)
            guess = f"; did you mean {near[0]}?" if near else ""
            if key not in self.rows and self.given(key):
                self.defects.append(f"{key}: {self.tool} has no such key and {what_it_does}{guess}")
            self.judge(key, "unknown", note=f"{self.tool} has no such key{guess}")

    @property
    def refused(self) -> list[Row]:
        """The keys for which an import fails."""
        return [row for row in self.rows.values() if row.verdict in REFUSED]


def devices_row(number: int, instead: int | None) -> tuple[Verdict, str, str]:
    """Verdict, our key and note of a key that names the devices. `instead`: of the command line."""
    if instead not in (None, number):
        return "not needed", "", f"--devices {instead} replaces it"
    return "kept", f"devices = {number}", "the batch is computed with them"


def masked(key: str, value: Any) -> Any:
    """The value as a report may show it: without passwords, tokens and API keys."""
    secret = (
        isinstance(value, str)
        and value.lower() not in ("true", "false", "")
        and _SECRET.match(key.rpartition(".")[2] if key.startswith("env.") else key)
    )
    return "***" if secret else value


def shown(value: Any) -> str:
    """A value in one short line, as YAML would write it."""
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str)
    text = text if text.isprintable() and text.strip() == text and text else json.dumps(text, ensure_ascii=True)
    return text if len(text) <= 80 else f"{text[:77]}..."
