"""Tasks of lm-evaluation-harness: by name, from the hub or from local files. Imports that package (extra `eval`)."""

import difflib
import functools
import logging
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import lm_eval.tasks
import yaml
from lm_eval.api.group import Group
from lm_eval.api.task import Task
from lm_eval.tasks import TaskManager

from janus_jax.errors import ConfigError, DataError, first_line
from janus_jax.storage import staging
from janus_jax.storage.bucket import is_url

logging.getLogger("lm_eval").setLevel(logging.ERROR)  # it warns of defaults, and of tasks that stand for others

READERS = {".json": "json", ".jsonl": "json", ".parquet": "parquet", ".csv": "csv"}
"""Ending of a data file -> what `datasets` reads it with."""
_NAMED = re.compile(r"^(?:task|group):[ \t]*['\"]?([^\s'\"#]+)", re.MULTILINE)


class Tasks:
    """The tasks of some names, with their data.

    Args:
        names: of tasks, groups and tags.
        data_dir: local files of all of them; None: the hub.
        made: an empty directory for descriptions of the tasks that are read from local files.
        num_fewshot: examples before each document; None: as each task has it.

    Raises:
        ConfigError: a name is unknown, or a task is of a kind that is not supported.
        DataError: data of a task cannot be read, or the file that should hold it does not exist.
    """

    def __init__(self, names: Sequence[str], data_dir: Path | None, made: Path, num_fewshot: int | None = None):
        if twice := [name for name in names if list(names).count(name) > 1]:
            raise ConfigError(f"--tasks {','.join(names)}: names {twice[0]} twice")
        self.files: dict[str, list[str]] = {}
        """Task -> the local files with its data."""
        self._manager = manager = _manager(names)
        if unknown := [name for name in names if name not in manager.task_index]:
            close = difflib.get_close_matches(unknown[0], manager.all_tasks, n=3)
            close = close or [name for name in manager.all_tasks if unknown[0].lower() in name.lower()][:3]
            similar = f"; similar: {', '.join(close)}" if close else ""
            raise ConfigError(f"--tasks: lm_eval has no task {unknown[0]!r}{similar}")
        leaves = list(dict.fromkeys(leaf for name in names for leaf in self._leaves(name)))
        for leaf in leaves:
            _require_supported(leaf, _config(manager, leaf))
        if data_dir is not None:
            for leaf in leaves:
                self._from_files(leaf, data_dir, made, num_fewshot)
            local = TaskManager(include_defaults=False, include_path=str(made))
            manager.task_index.update({name: local.task_index[name] for name in self.files})
        self.tasks: dict[str, Task] = {}
        self.groups: dict[str, Group] = {}
        self.asked: list[Any] = []
        for name in names:
            loaded = self._load(name)
            if both := [task for task in loaded["tasks"] if task in self.tasks]:
                raise ConfigError(f"--tasks {','.join(names)}: {name} has {both[0]}, which another name has too")
            self.tasks |= loaded["tasks"]
            self.groups |= loaded.get("groups") or {}
        for name, task in self.tasks.items():  # whose description is code
            flags = {"doc_to_image": "MULTIMODAL", "unsafe_code": "UNSAFE_CODE"}
            _require_supported(name, {key: getattr(task, flag, False) for key, flag in flags.items()})

    def _load(self, name: str) -> Any:
        try:
            return self._manager.load([name])
        except Exception as error:  # of `datasets`, of the hub, or of the task's own code
            reason = f"{type(error).__name__}: {first_line(error)}"
            if own := [file for leaf in self._leaves(name) for file in self.files.get(leaf, ())]:
                raise DataError(f"task {name}", f"cannot be made of {', '.join(own)}: {reason}") from error
            sets = sorted({str(_config(self._manager, leaf).get("dataset_path")) for leaf in self._leaves(name)})
            raise DataError(
                f"task {name}",
                f"its data ({', '.join(sets)}) cannot be read from the Hugging Face hub: {reason}; --data-dir takes "
                "local files",
            ) from error

    def _leaves(self, name: str) -> Iterator[str]:
        """The tasks of a task, a group or a tag."""
        entry = self._manager.task_index.get(name)
        if entry is None:
            return
        if entry.kind.name in ("TASK", "PY_TASK"):
            yield name
        elif entry.kind.name == "TAG":
            yield from sorted(entry.tags)
        else:
            members = (entry.cfg or {}).get("task") or []
            for member in [members] if isinstance(members, str) else members:
                named = member if isinstance(member, str) else member.get("group") or member.get("task")
                yield from self._leaves(str(named))

    def _from_files(self, name: str, data_dir: Path, made: Path, num_fewshot: int | None) -> None:
        """Writes a description of a task that reads local files."""
        config = _config(self._manager, name)
        if "class" in config or config.get("custom_dataset"):
            raise ConfigError(f"task {name}: reads its data with code of its own, so --data-dir cannot give it")
        asked = config.get("test_split") or config.get("validation_split")
        if asked is None:
            raise ConfigError(f"task {name}: has neither test_split nor validation_split; choose another task")
        stems = [name, *_relatives(self._manager, name)]
        files = {asked: local_file(data_dir, [f"{stem}{part}" for stem in stems for part in ("", f".{asked}")])}
        if files[asked] is None:
            which = "/".join(str(config[key]) for key in ("dataset_path", "dataset_name") if config.get(key))
            raise DataError(
                f"task {name}",
                f"expected its data ({which}) in {data_dir / name}.jsonl (or .json, .parquet, .csv); no such file",
            )
        splits = {
            key: config[key] for key in ("training_split", "validation_split", "fewshot_split") if config.get(key)
        }
        for split in set(splits.values()) - {asked}:
            files[split] = local_file(data_dir, [f"{stem}.{split}" for stem in stems])
        from_split = (config.get("fewshot_config") or {}).get("split") or config.get("fewshot_split")
        from_split = from_split or config.get("training_split") or config.get("validation_split") or asked
        shots = config.get("num_fewshot") if num_fewshot is None else num_fewshot
        if shots and files.get(from_split) is None:
            raise DataError(
                f"task {name}",
                f"expected the split {from_split!r}, which its {shots} examples come from, in "
                f"{data_dir / name}.{from_split}.jsonl (or .json, .parquet, .csv); no such file",
            )
        present = {split: str(file) for split, file in files.items() if file is not None}
        readers = {READERS[Path(file).suffix] for file in present.values()}
        if len(readers) > 1:
            raise DataError(f"task {name}", f"its files have different endings: {', '.join(present.values())}")
        entry = self._manager.task_index[name]
        changes: dict[str, Any] = {"include": str(entry.yaml_path), "task": name, "dataset_name": None}
        changes |= {"dataset_path": readers.pop(), "dataset_kwargs": {"data_files": present}}
        changes |= {key: None for key, split in splits.items() if split not in present}
        if from_split not in present and not (config.get("fewshot_config") or {}).get("split"):
            changes["fewshot_split"] = asked  # examples are read even where none are asked for
        (made / f"{len(self.files)}.yaml").write_text(yaml.safe_dump(changes), encoding="utf-8")
        self.files[name] = list(present.values())


def _manager(names: Sequence[str]) -> TaskManager:
    """Of the directories that define these tasks, or of all: reading the 14,000 descriptions takes long."""
    places = _places()
    if all(name in places for name in names):
        some = TaskManager(include_defaults=False, include_path=sorted({str(places[name]) for name in names}))
        if all((entry := some.task_index.get(name)) and entry.kind.name == "TASK" for name in names):
            return some
    return TaskManager()


@functools.cache
def _places() -> dict[str, Path]:
    """Directories of the tasks and groups that the package names outright."""
    root, places = Path(lm_eval.tasks.__file__).parent, {}
    for file in sorted(root.glob("*/**/*.yaml")):
        text = file.read_text(encoding="utf-8", errors="replace")
        places |= {name: root / file.relative_to(root).parts[0] for name in _NAMED.findall(text)}
    return places


def _config(manager: TaskManager, name: str) -> dict[str, Any]:
    """A description, without what its functions are."""
    entry = manager.task_index.get(name)
    return (entry.cfg if entry is not None else None) or {}


def _relatives(manager: TaskManager, name: str) -> list[str]:
    """Tasks of the same file of descriptions whose data set is that of a task, which their file may hold as well."""
    entry, own = manager.task_index[name], _config(manager, name)
    if entry.yaml_path is None:
        return []
    included = entry.yaml_path.read_text(encoding="utf-8")
    related, file = [], entry.yaml_path
    while match := re.search(r"^include:[ \t]*['\"]?([^\s'\"#]+)", included, re.MULTILINE):
        file = file.parent / match[1]
        if not file.is_file():
            break
        included = file.read_text(encoding="utf-8")
        related += [
            other
            for other in _NAMED.findall(included)
            if all(_config(manager, other).get(key) == own.get(key) for key in ("dataset_path", "dataset_name"))
        ]
    return related


def local_directory(data_dir: str) -> Path:
    """Where the files of `--data-dir` lie, or their copies.

    Raises:
        ConfigError: it is no directory.
        StorageError: a bucket refuses, or holds nothing there.
    """
    if is_url(data_dir):
        return staging.files(data_dir, lambda name: Path(name).suffix in READERS)
    if not Path(data_dir).is_dir():
        raise ConfigError(f"--data-dir {data_dir}: is no directory")
    return Path(data_dir)


def local_file(directory: Path, stems: Sequence[str]) -> Path | None:
    """The first file with one of these names and a known ending."""
    candidates = (directory / f"{stem}{ending}" for stem in stems for ending in READERS)
    return next((path.resolve() for path in candidates if path.is_file()), None)


def _require_supported(name: str, config: Mapping[str, Any]) -> None:
    if config.get("doc_to_image") or config.get("doc_to_audio"):
        raise ConfigError(f"task {name}: shows images or plays sound; allowed: tasks of text alone")
    if config.get("unsafe_code"):
        raise ConfigError(
            f"task {name}: runs code that the model writes, which janus eval does not; use lm_eval in a sandbox"
        )
