"""A recipe's file as keys and values: which tool it is for, and every key with its path.

YAML is read as the tools read it (YAML 1.1, without tags that build objects), shell scripts are read and never run.
"""

import dataclasses
import json
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import yaml

from janus_jax.config.imports import trl_keys
from janus_jax.config.imports.shell import Command, Script
from janus_jax.errors import ConfigError, first_line

Tool = Literal["axolotl", "openrlhf", "trl"]

_MOST_BYTES, _MOST_KEYS = 4_000_000, 5_000
_MARKS: dict[Tool, frozenset[str]] = {
    "axolotl": frozenset(
        "base_model datasets micro_batch_size sequence_len num_epochs lr_scheduler optimizer sample_packing rl "
        "val_set_size train_on_inputs rl_beta orpo_alpha pad_to_sequence_len adapter special_tokens".split()
    ),
    "openrlhf": frozenset(
        "pretrain train_batch_size micro_train_batch_size max_len max_epochs save_path zero_stage".split()
    ),
    "trl": frozenset(
        "model_name_or_path dataset_name per_device_train_batch_size num_train_epochs lr_scheduler_type optim "
        "max_length loss_type beta packing per_device_eval_batch_size max_steps dataset_train_split max_seq_length "
        "center_rewards_coefficient report_to eval_strategy max_completion_length".split()
    ),
}
_TRL_TRAINERS = {"sft": "sft", "dpo": "dpo", "orpo": "orpo", "reward": "rm", "rm": "rm"}
_SEVERAL = re.compile(r"(betas|modules|parameters|loss_type|loss_weights|report_to|metrics|label_names|columns)$")
"""Options that take several values."""
_LAUNCHERS = {"num_gpus", "nproc_per_node", "nproc-per-node", "num_processes", "ngpus"}
_VISIBLE = "CUDA_VISIBLE_DEVICES"
_NODES = {"num_nodes", "nnodes", "num_machines"}


_ENVIRONMENT = frozenset(["HOME", "USER", "PWD", "PATH", "TMPDIR"])
"""Variables that every shell has."""


@dataclasses.dataclass
class Source:
    """Keys and values of a recipe, in order. Keys of a command have no dashes in front."""

    path: str
    tool: Tool
    values: dict[str, Any]
    trainer: str = ""
    """What the command calls, like `train_dpo`, or the kind of a TRL trainer."""
    devices: int | None = None
    devices_keys: frozenset[str] = frozenset()
    """Those of `beside` that name the devices."""
    defects: list[str] = dataclasses.field(default_factory=list)
    beside: dict[str, Any] = dataclasses.field(default_factory=dict)
    """What surrounds the command: options of its launcher, variables that it does not use."""
    torn: dict[str, Any] = dataclasses.field(default_factory=dict)
    """Options that the shell does not pass on."""


def read(path: str, tool: Tool | None) -> Source:
    """Reads a file.

    Raises:
        ConfigError: no such file; neither a mapping nor a command; of none of the tools.
    """
    text = _text(path)
    suffix = Path(path).suffix.lower()
    if suffix in (".yaml", ".yml", ".json"):
        return _of_mapping(path, _mapping(path, text, suffix), tool)
    try:
        script = Script(text)
    except ConfigError as error:
        raise ConfigError(path, str(error)) from None
    commands = [(command, place) for command in script.commands if (place := _trainer_at(command)) is not None]
    if not commands:
        for name, value in script.variables.items():  # a here-document that nothing runs
            inner = Script(value)
            found_here = [(one, place) for one in inner.commands if (place := _trainer_at(one)) is not None]
            if found_here and name not in script.used:
                commands += found_here
    if len(commands) > 1:
        lines = " and ".join(str(command.line) for command, _ in commands)
        raise ConfigError(f"{path}: has training commands in lines {lines}; allowed: one. Keep one in the file")
    if commands:
        return _of_command(path, script, *commands[0], tool)
    values = _mapping(path, text, ".yaml", quiet=True)
    if values is None:
        trainers = "train_sft, train_rm or train_dpo of OpenRLHF, trl sft, trl dpo, trl reward"
        raise ConfigError(f"{path}: neither a YAML or JSON mapping nor a training command ({trainers})")
    return _of_mapping(path, values, tool)


def _text(path: str) -> str:
    try:
        with open(os.path.expanduser(path), "rb") as file:
            content = file.read(_MOST_BYTES + 1)
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read: {error.strerror}") from error
    if len(content) > _MOST_BYTES:
        raise ConfigError(f"{path}: is larger than 4 MB; allowed: a recipe")
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path}: is not UTF-8 text (byte {error.start})") from error


class _Loader(yaml.SafeLoader):
    """SafeLoader that notes keys that occur twice in a mapping."""

    def __init__(self, stream: str):
        super().__init__(stream)
        self.twice: list[str] = []

    def construct_mapping(self, node: Any, deep: bool = False) -> Any:
        names = [one.value for one, _ in node.value if isinstance(one, yaml.ScalarNode) and one.value != "<<"]
        self.twice += [name for name in dict.fromkeys(names) if names.count(name) > 1]
        return super().construct_mapping(node, deep)


def _mapping(path: str, text: str, suffix: str, *, quiet: bool = False) -> Any:
    loader = None
    twice: list[str] = []
    try:
        if suffix == ".json":
            values = json.loads(text)
        else:
            loader = _Loader(text)
            values, twice = loader.get_single_data(), loader.twice
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        if quiet:
            return None
        mark = getattr(error, "problem_mark", None)
        place = f"{path}:{mark.line + 1}" if mark is not None else path
        raise ConfigError(f"{place}: no valid {suffix[1:].upper()}: {first_line(error)}") from error
    if not isinstance(values, Mapping) or not values:
        if quiet:
            return None
        raise ConfigError(f"{path}: allowed: a mapping of keys to values")
    return {**values, **({_TWICE: twice} if twice else {})}


_TWICE = object()


def _of_mapping(path: str, values: dict[Any, Any], tool: Tool | None) -> Source:
    values = dict(values)
    twice = values.pop(_TWICE, [])
    names = {str(key) for key in values}
    counts = {one: len(names & marks) for one, marks in _MARKS.items()}
    best: Tool = max(_MARKS, key=lambda one: counts[one])
    defects = [f"{name} occurs twice: the last value counts" for name in twice]
    if tool is None and not counts[best]:
        first = "".join(f"{one}; " for one in defects[:8])
        raise ConfigError(f"{path}: {first}of which tool is it? allowed: --from axolotl, --from openrlhf or --from trl")
    source = Source(path, tool or best, flat(path, values))
    source.defects += defects
    return source


def flat(path: str, values: Any, prefix: str = "") -> dict[str, Any]:
    """Every key with its path. Lists of single values and empty mappings are values; so is `{name}`, which YAML reads
    as a mapping of one key to nothing."""
    flattened: dict[str, Any] = {}
    waiting: list[tuple[str, Any]] = [(prefix, values)]
    for _ in range(4 * _MOST_KEYS):  # a list may hold itself
        if not waiting:
            return flattened
        key, value = waiting.pop()
        below: list[tuple[str, Any]] = []
        if isinstance(value, Mapping) and not (key.endswith("_format") and set(value.values()) == {None}):
            below = [(f"{key}.{name}" if key else str(name), one) for name, one in value.items()]
        elif isinstance(value, list) and any(isinstance(one, Mapping | list) for one in value):
            below = [(f"{key}[{number}]", one) for number, one in enumerate(value)]
        waiting += reversed(below)
        if not below:
            while key in flattened:  # "a.b" beside a: {b: ...}
                key += "'"
            flattened[key] = value
        if len(flattened) + len(waiting) > _MOST_KEYS:
            break
    raise ConfigError(f"{path}: has more than {_MOST_KEYS:,} keys; allowed: a recipe")


def _trainer_at(command: Command) -> int | None:
    """Index of the word that names the trainer."""
    words = command.words
    for place, word in enumerate(words):
        if re.search(r"(^|[/.])train_(sft|rm|dpo)(\.py)?$", word):
            return place
        if os.path.basename(word) == "trl" and place + 1 < len(words) and words[place + 1] in _TRL_TRAINERS:
            return place + 1
        if re.search(r"(^|[/.])(sft|dpo|orpo|reward|reward_modeling)\.py$", word) and place < len(words):
            return place
        if re.fullmatch(r"trl\.(scripts|experimental)\.[\w.]*", word):
            return place
    return None


def _of_command(path: str, script: Script, command: Command, place: int, tool: Tool | None) -> Source:
    words = command.words
    name = re.sub(r"\.py$", "", words[place])
    name = re.split(r"[/.]", name)[-1].removesuffix("_modeling")
    of_command: Tool = "openrlhf" if name.startswith("train_") else "trl"
    source = Source(path, tool or of_command, {}, _TRL_TRAINERS.get(name, name))
    before, _ = _options(words[1:place])
    for key, value in before.items():
        if key not in ("m", "module"):
            source.beside[f"{words[0]} --{key}"] = value
    values, stray = _options(words[place + 1 :])
    source.values.update({key: value for key, value in values.items() if key != "config"})
    if source.tool == "trl":
        source.values = dict(_without_negation(*item) for item in source.values.items())
    source.defects += [f"`{word}` belongs to no option: the trainer stops" for word in stray]
    source.beside |= {f"word {word}": None for word in stray}
    for one in script.commands:
        if one.torn_by is not None:
            torn, _ = _options(one.words)
            source.torn |= torn
            names = ", ".join(f"--{key}" for key in torn)
            source.defects.append(f"{names}: not part of the command, which ends at the comment in line {one.torn_by}")
    text = "\n".join(words[1:])  # what other commands need is none of ours
    unset = [one for one in sorted(script.unset - _ENVIRONMENT) if re.search(rf"\$\{{?{one}\b", text)]
    source.defects += [f"${one} is set nowhere in the file" for one in unset if not one.isdigit()]
    source.defects += [f"{one} is not run here: its value is unknown" for one in sorted(script.executed) if one in text]
    source.beside |= {name: value for name, value in script.variables.items() if name not in script.used}
    source.devices, names = _devices(before, script.variables.get(_VISIBLE))
    if source.devices is None and "config_file" in before:
        source.devices, names = accelerate_devices(path, before["config_file"]), {"config_file"}
    if source.devices is not None:
        source.devices_keys = frozenset(one if one == _VISIBLE else f"{words[0]} --{one}" for one in names)
    if "config" in values:
        source = _with_config(source, values["config"])
    return source


def _without_negation(key: str, value: Any) -> tuple[str, Any]:
    """`--no_KEY` of a switch that is on by default as `KEY: false`."""
    name = key.removeprefix("no_")
    return (name, False) if name != key and name in trl_keys.ON and value is True else (key, value)


_SHIPPED = {"single_gpu": 1} | dict.fromkeys(("multi_gpu", "zero1", "zero2", "zero3", "fsdp1", "fsdp2"), 8)
"""Configurations of accelerate that TRL ships -> their devices."""


def accelerate_devices(recipe: str, name: Any, *, of_trl: bool = False) -> int | None:
    """The devices of an accelerate configuration, a file beside the recipe or in the working directory. None: it does
    not say, or there is none.

    Args:
        of_trl: whether it may be one that TRL ships, by its name.
    """
    for place in _places(recipe, name) if isinstance(name, str) else ():
        if place.is_file():
            values = _mapping(str(place), _text(str(place)), ".yaml", quiet=True) or {}
            number = 1 if str(values.get("distributed_type")).upper() == "NO" else values.get("num_processes")
            return number if isinstance(number, int) and number > 0 else None
    return _SHIPPED.get(str(name)) if of_trl else None


def _places(recipe: str, name: Any) -> tuple[Path, ...]:
    return Path(recipe).expanduser().parent / str(name), Path(str(name))


def _with_config(source: Source, name: Any) -> Source:
    """A command with `--config FILE`, whose options come before the file's keys."""
    for place in _places(source.path, name):
        if place.is_file():
            inner = flat(str(place), _mapping(str(place), _text(str(place)), place.suffix.lower() or ".yaml"))
            over = [key for key in inner if key in source.values]
            source.defects += [f"{key}: the command line overrides {place.name}" for key in over]
            source.values = {**inner, **source.values}
            source.beside["--config"] = str(name)
            return source
    raise ConfigError(f"{source.path}: --config {name}: no such file beside it or in the working directory")


def _options(words: Any) -> tuple[dict[str, Any], list[str]]:
    """Options of a command line, and words that belong to none. An option without a value is true; one that comes
    twice counts as its last."""
    options: dict[str, Any] = {}
    stray: list[str] = []
    key = None
    for word in words:
        if re.match(r"--?[A-Za-z]", word):
            name, equals, value = word.lstrip("-").partition("=")
            options.pop(name, None)
            options[name] = value if equals else True
            key = None if equals else name
        elif key is None:
            stray.append(word)
        elif options[key] is True:
            options[key] = word
        elif not _SEVERAL.search(key):
            stray.append(word)
        else:
            options[key] = [*(options[key] if isinstance(options[key], list) else [options[key]]), word]
    return options, stray


def _devices(launcher: Mapping[str, Any], visible: str | None) -> tuple[int | None, set[str]]:
    """The devices that a launcher is given, and the options (or the variable) that give them."""
    given, nodes = _LAUNCHERS & launcher.keys(), _NODES & launcher.keys()

    def number(names: set[str]) -> int | None:
        texts = [str(value) for key, value in launcher.items() if key in names]
        return int(texts[0]) if texts and texts[0].isdigit() else None

    one = number(_LAUNCHERS)
    if "num_processes" in launcher:
        return one, {"num_processes"}
    include = launcher.get("include", launcher.get("i"))
    if one is None and isinstance(include, str) and ":" in include:
        one = sum(len(host.partition(":")[2].split(",")) for host in include.split("@"))
        return one, {"include", "i"}
    if one is None and visible:
        one, given = len([part for part in visible.split(",") if part.strip()]), {_VISIBLE}
    return (None, set()) if one is None else (one * (number(_NODES) or 1), given | nodes)
