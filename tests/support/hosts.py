"""Commands of `janus` in two processes that stand for hosts. The processes start and meet once, and have no parents,
which would end them with a command."""

import contextlib
import json
import os
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path

from tests.support import processes

DEVICES = 2
"""Of each process."""

Words = Sequence[object]
Ended = tuple[int, str]
"""Exit code, and what a command wrote to stdout and stderr."""


def on_hosts(directory: Path, commands: Mapping[str, tuple[Words, Words]]) -> dict[str, tuple[Ended, Ended]]:
    """Runs each command in both processes, with the words of each; returns how it ended in each.

    Args:
        directory: an empty directory for what the processes write down.
        commands: words after `janus`, without those of the place; or `MODULE:` and words, to run a module.
    """
    texts = {name: [[*map(str, words)] for words in both] for name, both in commands.items()}
    (directory / "commands.json").write_text(json.dumps(texts))
    port = processes.free_port()
    processes.run(*(["-m", "tests.support.hosts", port, number, directory] for number in range(2)))
    first, second = (json.loads((directory / f"ended.{number}.json").read_text()) for number in range(2))
    return {name: (tuple(first[name]), tuple(second[name])) for name in commands}


def _run(words: Sequence[str], port: str, number: str) -> int:
    place = ["--coordinator", f"127.0.0.1:{port}", "--num-processes", "2", "--process-id", number]
    if words[0].endswith(":"):
        import runpy

        sys.argv = [*words]
        runpy.run_module(words[0].removesuffix(":"), run_name="__main__")
        return 0
    from janus_jax.cli.main import main

    sys.argv = ["janus", *words, *place, "--devices", str(DEVICES)]
    try:
        main()
    except SystemExit as done:
        return int(done.code or 0)
    raise AssertionError("main always exits")


def _all(port: str, number: str, directory: Path) -> None:
    from janus_jax.parallel import processes as meeting

    meeting.supervise = lambda options: None
    meeting.start(meeting.RuntimeOptions(f"127.0.0.1:{port}", 2, int(number), DEVICES))
    ended, errors = {}, os.dup(2)
    for name, both in json.loads((directory / "commands.json").read_text()).items():
        with tempfile.TemporaryFile("w+") as written:
            os.dup2(written.fileno(), 2)
            try:
                with contextlib.redirect_stdout(os.fdopen(os.dup(2), "w")) as out, out:
                    code = _run(both[int(number)], port, number)
            finally:
                sys.stderr.flush()
                os.dup2(errors, 2)
            written.seek(0)
            ended[name] = [code, written.read()]
        meeting.barrier("next", processes.TIMEOUT_S)
    (directory / f"ended.{number}.json").write_text(json.dumps(ended))


if __name__ == "__main__":
    _all(sys.argv[1], sys.argv[2], Path(sys.argv[3]))
