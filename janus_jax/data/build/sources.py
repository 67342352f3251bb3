"""Which files of a source are read, and as which split. Files of a directory that are not read are counted."""

import hashlib
import os
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from janus_jax.config.split_names import SPLIT_WORDS, splits_in
from janus_jax.data.build.readers import ALLOWED, SUFFIXES, check_type, file_type
from janus_jax.data.dataset import SPLIT_NAME
from janus_jax.errors import DataError, first_line
from janus_jax.storage import staging
from janus_jax.storage.bucket import is_url

HUB_ALIASES = {
    "kaist-ai/Multifaceted-Collection-SFT": "kaist-ai/Multifaceted-Collection",
    "kaist-ai/Multifaceted-Collection-SFT-65k": "kaist-ai/Multifaceted-Collection-small",
}
"""Ids in published configurations -> the ids under which the hub has the data today."""

OVERRULE = "give --source train=FILE"
"""For messages: how a file is read as another split than its name says."""

_ABOUT_DATA = re.compile(r"readme|licen[cs]e|notice|citation|changelog|checksums?|md5sums?|sha256sums?|_success", re.I)
_METADATA = {"dataset_info.json", "dataset_infos.json", "dataset_dict.json", "state.json"}
_NOT_PAIRS = {"Anthropic/hh-rlhf": "red-team-attempts"}
"""Hub id -> a folder in it whose records are not pairs."""

_SHARD = re.compile(r"(?<!\d)(\d+)([-_. ]?of[-_. ]?)(\d+)(?!\d)", re.I)
_HASH = re.compile(r"-[0-9a-f]{16}(?=\.|$)")  # behind the numbers of shards that older versions of datasets wrote


def find_splits(
    source: str | os.PathLike[str], unread: Counter[str] | None = None, *, split: str | None = None
) -> dict[str, list[Path]]:
    """Split name -> files. The source is a file or a directory, local or on gs://, or a hub id.

    A word in a file's name (`train-00000-of-00003.parquet`, `rows_test.jsonl`) or in the name of its folder gives its
    split. If no name inside a directory does, the directory's own name may: `test/`. Otherwise the split is "train".

    Args:
        unread: Counts the files that are not read, by reason.
        split: The split that the source was given for. Its own name then says nothing; names inside a directory do.

    Raises:
        DataError: the source does not exist, holds no readable file, or lacks a file of a numbered set; a file names
            two splits; or some files name a split and others do not.
    """
    unread = Counter() if unread is None else unread
    text = os.fspath(source)
    if is_url(text):
        skipped: Counter[str] = Counter()

        def select(name: str) -> bool:
            reason = _why_unread(Path(name))
            if reason:
                skipped[reason] += 1
            return reason is None

        path, name = staging.files(text, select), Path(text)
        unread.update(skipped)
    else:
        path = Path(os.path.expanduser(text))
        name = path.absolute()
    if path.is_file():
        check_type(path)
        unread.update(_others_of_set(path))
        return {split or _split_of_source(name, is_file=True) or "train": [path]}
    if path.is_dir():
        return _directory_splits(path, unread, split or _split_of_source(name, is_file=False) or "train")
    if path.exists():
        raise DataError(text, "is neither a file nor a directory; a pipe can be written to a file first")
    if is_url(text) or is_absent(text):
        raise DataError(text, "no such file or directory")
    return _directory_splits(_download(text), unread, split or "train", leave_out=_NOT_PAIRS.get(text))


def is_absent(source: str) -> bool:
    """Whether a source is a path on this machine, and nothing is there. Others are a gs:// URL or a hub id."""
    path = Path(os.path.expanduser(source))
    if is_url(source) or path.exists():
        return False
    looks_like_id = re.fullmatch(r"[\w.-]+/[\w.-]+", source) and not source.startswith(".")
    return not looks_like_id or file_type(path) in SUFFIXES or path.parent.is_dir()


@staging.naming_urls()
def named_sources(source: str, validation: str | None = None) -> str | dict[str, str]:
    """A source, or split -> source, as a command line names them: PATH, or `SPLIT=PATH` to overrule names.

    Args:
        source: Of all splits that it has; with `validation`, or if it names a split, of one split: "train" or that.
        validation: Of the split "validation".

    Raises:
        DataError: Both are for one split, or `source` is for "train" and its names say other splits.
    """
    named: dict[str, str] = {}
    for text, default in ((source, "train"), *([] if validation is None else [(validation, "validation")])):
        prefix = None if os.path.exists(text) else re.match(f"({SPLIT_NAME})=(?=.)", text)
        split, path = (prefix[1], text[prefix.end() :]) if prefix else (default, text)
        if split in named:
            raise DataError(f"split {split} has two sources, {named[split]} and {path}; allowed: one")
        named[split] = path
    if named.get("train") != source:
        return named
    if validation is None:
        return source
    here = is_url(source) or os.path.exists(os.path.expanduser(source))
    if here and "train" not in (splits := find_splits(source)):
        raise DataError(source, f"its name says split {', '.join(splits)}; to train on a file of that, {OVERRULE}")
    return named


def refuse_shared_files(splits: Mapping[str, Sequence[Path]]) -> None:
    """Raises DataError if a file is a copy of another of its split, or is, or copies, a training file."""
    of_size: dict[int, list[tuple[str, Path]]] = {}
    for split in sorted(splits, key="train".__ne__):  # train first
        for path in splits[split]:
            alike = of_size.setdefault(path.stat().st_size, [])
            for owner, other in alike if path.stat().st_size else ():
                if owner in ("train", split) and (what := _sameness(path, other)):
                    needs = f"split {split} needs records of its own" if owner != split else "keep one of them"
                    raise DataError(path, f"{what} a file of split {owner}; {needs}")
            alike.append((split, path))


def _sameness(path: Path, other: Path) -> str | None:
    if path == other:
        return "is"
    if path.samefile(other):
        return f"is the same as {other},"
    return f"has the same content as {other}," if _digest(path) == _digest(other) else None


def _digest(path: Path) -> bytes:
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").digest()
    except OSError as error:
        raise DataError(path, f"cannot be read: {error.strerror or first_line(error)}") from error


def _directory_splits(
    directory: Path, unread: Counter[str], unnamed_split: str, *, leave_out: str | None = None
) -> dict[str, list[Path]]:
    files: list[Path] = []
    for path in _walk(directory, unread):
        inside = path.relative_to(directory)
        if leave_out in inside.parts:
            unread[f"of {leave_out}, which holds no pairs"] += 1
        elif not path.is_file():
            unread["that are pipes, sockets or devices"] += 1
        elif (reason := _why_unread(inside)) is None:
            files.append(path)
        elif reason:
            unread[reason] += 1
    if not files:
        beside = f"; files not read: {listed(unread)}" if unread else ""
        raise DataError(directory, f"holds no file of records; {ALLOWED}{beside}")
    files.sort()
    _check_shards(files)
    splits: dict[str, list[Path]] = {}
    unnamed = []
    for path in files:
        if (name := _split_of(path, directory)) is None:
            unnamed.append(path)
        else:
            splits.setdefault(name, []).append(path)
    if not splits:
        return {unnamed_split: files}
    if unnamed and (rows := directory / "collection").is_dir() and (directory / "provenance").is_dir():
        raise DataError(directory, f"is the output of a synthesis, which holds more than records; give {rows}")
    if unnamed:
        raise DataError(
            unnamed[0],
            "names no split, but other files beside it do; put train, validation or test into its name, or give it as "
            "a source of its own",
        )
    return splits


def _walk(directory: Path, unread: Counter[str]) -> Iterator[Path]:
    """All files below, through links too. What has several names comes once, a link after the file itself."""

    def refuse(error: OSError) -> None:
        raise DataError(error.filename, f"cannot be read: {error.strerror}") from error

    seen: dict[str, Path] = {}
    links: list[Path] = []

    def walk(top: Path) -> Iterator[Path]:
        for folder, folders, names in os.walk(top, onerror=refuse):
            here = Path(folder)
            seen[os.path.realpath(here)] = here
            inner = [
                path
                for path in (here / name for name in sorted(folders + names))
                if not (path.name.startswith(".") and (path.is_dir() or path.is_symlink()))
            ]
            links.extend(path for path in inner if path.is_symlink())
            folders[:] = [path.name for path in inner if path.is_dir() and not path.is_symlink()]
            for path in inner:
                if not path.is_symlink() and not path.is_dir():
                    seen[os.path.realpath(path)] = path
                    yield path

    yield from walk(directory)
    while links:
        path = links.pop(0)
        if not path.exists():
            raise DataError(path, f"is a link to {os.readlink(path)}, which does not exist")
        first = seen.get(os.path.realpath(path))
        if first is not None:
            if _split_of(path, directory) != _split_of(first, directory):
                raise DataError(path, f"is a link to {first}, but names another split")
            unread["linked to what is read already"] += 1
        elif path.is_dir():
            yield from walk(path)
        else:
            seen[os.path.realpath(path)] = path
            yield path


def _why_unread(path: Path) -> str | None:
    """None for a file of records; otherwise the reason, empty if there is nothing to say about the file."""
    kind = file_type(path)
    if path.name.startswith(".") and kind in SUFFIXES and not path.name.startswith("._"):
        return "hidden" if not any(part.startswith(".") for part in path.parts[:-1]) else ""
    if any(part.startswith(".") for part in path.parts) or path.name in _METADATA:
        return ""
    if kind == ".arrow" and path.name.startswith("cache-"):
        return "that datasets keeps as a cache"
    if kind in SUFFIXES:
        return None
    if kind == ".md" or _ABOUT_DATA.match(path.name):
        return ""
    return f"of type {kind if kind.isprintable() else ascii(kind)}" if kind else "without a suffix"


def listed(counts: Mapping[str, int], most: int = 12) -> str:
    """`2 of type .csv, 1 of type .txt`."""
    shown = [f"{count:,} {reason}" for reason, count in sorted(counts.items())]
    return ", ".join(shown[:most]) + (f" and {len(shown) - most} more kinds" if len(shown) > most else "")


def file_sets(files: Sequence[Path]) -> list[str]:
    """Names of the numbered sets (NAME-00000-of-00003) among files, below their common folder."""
    top = os.path.commonpath([path.parent for path in files])
    first: dict[tuple[Path, str, str], Path] = {}
    for path in files:
        if shard := _SHARD.search(path.name):
            first.setdefault(_set_of(path, shard), path)
    names = ((key, f"{key[1].rstrip('-_. ')}{key[2]}" or path.name) for key, path in first.items())
    return sorted(os.path.relpath(folder / name, top) for (folder, *_), name in names)


def _set_of(path: Path, shard: re.Match[str]) -> tuple[Path, str, str]:
    """The numbered set that a file is one of: its folder, and what stands before and after the numbers."""
    rest = path.name[shard.end() : len(path.name) - len(file_type(path))]
    return path.parent, path.name[: shard.start()], _HASH.sub("", rest)


def _others_of_set(path: Path) -> dict[str, int]:
    """Files of the numbered set that a single file is one of, as `unread` counts them."""
    shard = _SHARD.search(path.name)
    others = int(shard[3]) - 1 if shard else 0
    return {f"of the numbered set of {path.name}": others} if 0 < others < 100_000 else {}


def _check_shards(files: Sequence[Path]) -> None:
    """Raises DataError if a numbered set (NAME-00000-of-00003) lacks a file or has one twice."""
    sets: dict[tuple[Path, str, str], list[tuple[int, int, re.Match[str], Path]]] = {}
    for path in files:
        if shard := _SHARD.search(path.name):
            sets.setdefault(_set_of(path, shard), []).append((int(shard[1]), int(shard[3]), shard, path))
    for shards in sets.values():
        shards.sort(key=lambda shard: shard[:2])
        number, total, match, first = shards[0]
        for other_number, other_total, _, path in shards[1:]:
            if other_total != total:
                raise DataError(path, f"is one of {other_total} files, but {first.name} is one of {total}")
            if other_number == number:
                raise DataError(path, f"has the same number as {first.name}; keep one of them")
            number, first = other_number, path
        numbers = {shard[0] for shard in shards}
        from_one = 0 not in numbers and total in numbers
        wanted = range(from_one, total + from_one)
        if strange := sorted(numbers - set(wanted)):
            path = next(shard[3] for shard in shards if shard[0] == strange[0])
            raise DataError(path, f"has number {strange[0]} of a set of {total}")
        if missing := [number for number in wanted if number not in numbers]:
            name = first.name
            lacks = [f"{name[: match.start()]}{n:0{len(match[1])}d}{match[2]}{match[3]}" for n in missing[:3]]
            more = f" and {len(missing) - 3} more" if len(missing) > 3 else ""
            plural = "are" if len(missing) > 1 else "is"
            raise DataError(
                first.parent, f"{', '.join(lacks)}{more} {plural} missing; {len(numbers)} of {total} files are here"
            )


def _split_of(path: Path, directory: Path) -> str | None:
    """The split that the name of a file, or of the folders above it, says."""
    inside = path.relative_to(directory)
    parts = (*inside.parts[:-1], inside.name[: len(inside.name) - len(file_type(path))])
    named = {split: part for part in parts for split in splits_in(part)}
    if len(named) > 1:
        one, other = list(named)[:2]
        raise DataError(path, f"names two splits, {one} and {other}; allowed: one; rename it, or {OVERRULE}")
    return next(iter(named), None)


def _split_of_source(path: Path, *, is_file: bool) -> str | None:
    """The split that the name of a source says. A folder must be named by one word: `test/`, `split=dev/0.jsonl`."""
    if is_file and (named := _split_of(path, path.parent)):
        return named
    folder = (path.parent if is_file else path).name.lower()
    return SPLIT_WORDS.get(folder.removeprefix("split="))


def _download(hub_id: str) -> Path:
    import huggingface_hub

    name = HUB_ALIASES.get(hub_id, hub_id)
    try:
        snapshot = huggingface_hub.snapshot_download(
            name,
            repo_type="dataset",
            allow_patterns=[f"*{suffix}" for suffix in SUFFIXES],
            ignore_patterns=[f"{_NOT_PAIRS[name]}/*"] if name in _NOT_PAIRS else None,
        )
        return Path(snapshot)
    except Exception as error:  # without network, httpx, the hub's client and the system raise many types
        reason = first_line(error)
        raise DataError(
            hub_id,
            f"no such file here, and the data set {name} could not be downloaded from the Hugging Face hub: "
            f"{reason}; without network, give the path of a copy",
        ) from error
