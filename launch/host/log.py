"""What a command prints, on the host's disk: files of a bounded size, of which the oldest go."""

import contextlib
from pathlib import Path

SEGMENT_BYTES = 8 << 20
SEGMENTS = 8
_PREFIX = "log."


class Log:
    """Appends. Each file's name ends with the position of its first byte in the whole log."""

    def __init__(self, directory: Path):
        self._directory = directory
        self._start, self._size = _segments(directory)[-1] if _segments(directory) else (0, 0)
        self._file = _path(directory, self._start).open("ab", buffering=0)

    def write(self, data: bytes) -> None:
        """Appends to the newest file. A full disk loses the log, not the run."""
        with contextlib.suppress(OSError):
            self._size += self._file.write(data)
            if self._size >= SEGMENT_BYTES:
                following = _path(self._directory, self._start + self._size).open("ab", buffering=0)
                self._file.close()
                self._file, self._start, self._size = following, self._start + self._size, 0
                for start, _ in _segments(self._directory)[:-SEGMENTS]:
                    _path(self._directory, start).unlink()


def tail(directory: Path, lines: int) -> tuple[str, int]:
    """The newest lines, and the position after them."""
    segments = _segments(directory)
    data = b"".join(_path(directory, start).read_bytes() for start, _ in segments[-2:])
    end = segments[-1][0] + segments[-1][1] if segments else 0
    return b"".join(data.splitlines(keepends=True)[-lines:] if lines else []).decode(errors="replace"), end


def since(directory: Path, position: int, at_most: int = 1 << 20) -> tuple[str, int]:
    """Whole lines from a position on, and the position after them. A position beyond the end is of an earlier log."""
    segments = _segments(directory)
    if segments and position > sum(segments[-1]):
        position = 0
    segments = [(start, size) for start, size in segments if start + size > position]
    if not segments:
        return "", position
    position = max(position, segments[0][0])
    data = b""
    for start, _ in segments:
        with contextlib.suppress(OSError), _path(directory, start).open("rb") as file:
            file.seek(max(0, position - start))
            data += file.read(at_most - len(data))
        if len(data) >= at_most:
            break
    whole = data.rfind(b"\n") + 1 or (len(data) if len(data) >= at_most else 0)
    return data[:whole].decode(errors="replace"), position + whole


def _segments(directory: Path) -> list[tuple[int, int]]:
    """Position and size of every file."""
    segments = []
    for path in directory.glob(f"{_PREFIX}*"):
        with contextlib.suppress(OSError, ValueError):
            segments.append((int(path.name.removeprefix(_PREFIX)), path.stat().st_size))
    return sorted(segments)


def _path(directory: Path, start: int) -> Path:
    return directory / f"{_PREFIX}{start:015d}"
