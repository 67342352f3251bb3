"""Compiled programs on disk, so that a second start compiles less. JAX keeps them; this bounds and mends them.

JAX's key holds the program, its options, devices and versions. It writes a program under a lock, and last the time of
its use: a process that is killed in between leaves a program that cannot be read, that nothing replaces, and that
ends the search for programs to delete.
"""

import contextlib
import os
import sys
from pathlib import Path
from typing import Any

from janus_jax.errors import first_line

MOST_BYTES = 10 << 30
"""Of all programs. JAX deletes those that were not used for the longest time."""

_LOCK, _PROGRAM, _USED = ".lockfile", "-cache", "-atime"  # JAX's names
_LOCK_WAIT_S = 5.0


def keep(directory: str | os.PathLike[str]) -> bool:
    """Has JAX keep compiled programs in a directory; returns whether it does.

    What the user has set by JAX's own variables stays: `JAX_COMPILATION_CACHE_DIR`,
    `JAX_COMPILATION_CACHE_MAX_SIZE`, `JAX_ENABLE_COMPILATION_CACHE`. Of several processes, JAX has only process 0
    write. A directory that cannot be written is not used, and a note on stderr says so.
    """
    import filelock
    import jax

    settings: Any = jax.config  # its attributes are made at run time
    if not settings.jax_enable_compilation_cache or settings.jax_compilation_cache_dir is not None:
        return False
    try:
        os.makedirs(directory, exist_ok=True)
        with filelock.FileLock(Path(directory) / _LOCK, timeout=_LOCK_WAIT_S):
            _delete_cut(Path(directory))
    except filelock.Timeout:
        pass  # another process is busy there
    except OSError as error:
        reason = (error.strerror or first_line(error)).lower()
        print(f"note: {os.fspath(directory)}: {reason}; compiled programs are not kept (JANUS_CACHE)", file=sys.stderr)
        return False
    jax.config.update("jax_compilation_cache_dir", os.fspath(directory))
    if settings.jax_compilation_cache_max_size == -1:
        jax.config.update("jax_compilation_cache_max_size", MOST_BYTES)
    return True


def _delete_cut(directory: Path) -> None:
    """Deletes programs whose writing did not end, and times of programs that are gone."""
    names = set(os.listdir(directory))
    for name in names:
        for own, other in ((_PROGRAM, _USED), (_USED, _PROGRAM)):
            if name.endswith(own) and name.removesuffix(own) + other not in names:
                with contextlib.suppress(FileNotFoundError):
                    os.unlink(directory / name)
