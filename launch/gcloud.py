"""The gcloud command: one place that runs it, prints it, and tells its errors apart."""

import contextlib
import dataclasses
import json
import os
import re
import shlex
import signal
import subprocess
from collections.abc import Callable, Sequence
from typing import Any

from launch.errors import CloudError, Kind

Say = Callable[[str], None]
"""Shows a line to the user."""


@dataclasses.dataclass(frozen=True)
class Result:
    """How a command ended."""

    code: int
    out: str
    err: str


Runner = Callable[[Sequence[str], str | None, float | None], Result]
"""Runs a command: words, text for stdin, seconds allowed."""


def run_command(words: Sequence[str], stdin: str | None = None, timeout_s: float | None = None) -> Result:
    """Runs a command in a process group of its own, and ends the whole group on a signal or time-out: gcloud leaves its
    ssh running otherwise.

    Raises:
        CloudError: the program is not installed.
    """
    try:
        process = subprocess.Popen(
            words,
            stdin=subprocess.DEVNULL if stdin is None else subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            errors="replace",
            start_new_session=True,
        )
    except FileNotFoundError:
        raise CloudError(
            Kind.UNKNOWN, words[0], "is not installed; see https://cloud.google.com/sdk/docs/install"
        ) from None
    try:
        out, err = process.communicate(stdin, timeout=timeout_s)
    except subprocess.TimeoutExpired:
        end_group(process)
        return Result(124, "", f"no answer within {timeout_s:.0f} s")
    except BaseException:
        end_group(process)
        raise
    return Result(process.returncode, out, err)


def end_group(process: "subprocess.Popen[Any]") -> None:
    """Ends a process that leads its own group, with everything that it started."""
    for number, patience_s in ((signal.SIGTERM, 3.0), (signal.SIGKILL, 10.0)):
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, number)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(patience_s)


class Gcloud:
    """gcloud for one project and zone.

    Args:
        dry_run: print commands that change something instead of running them.
    """

    def __init__(self, project: str, zone: str, say: Say, *, dry_run: bool = False, runner: Runner = run_command):
        self.project, self.zone, self.dry_run = project, zone, dry_run
        self._say, self._run = say, runner

    def tpu(self, *words: str) -> list[str]:
        """The words of `gcloud compute tpus ...` here."""
        return ["gcloud", "compute", "tpus", *words, f"--zone={self.zone}", f"--project={self.project}"]

    def read(self, words: Sequence[str], *, timeout_s: float | None = 300) -> Any:
        """Runs a command that changes nothing, with `--format=json`; its answer, None if it is empty.

        Raises:
            CloudError: gcloud failed.
        """
        result = self._run([*words, "--format=json"], None, timeout_s)
        require(result, words)
        return json.loads(result.out) if result.out.strip() else None

    def change(self, words: Sequence[str], *, stdin: str | None = None, timeout_s: float | None = 900) -> Result:
        """Runs a command that changes something; with `dry_run`, prints it.

        Raises:
            CloudError: gcloud failed.
        """
        if self.dry_run:
            self._say(shlex.join(words))
            return Result(0, "", "")
        result = self._run(list(words), stdin, timeout_s)
        require(result, words)
        return result


def require(result: Result, words: Sequence[str]) -> None:
    """Raises the error that gcloud printed, if it failed."""
    if result.code:
        kind = kind_of(result.err)
        raise CloudError(
            kind, f"{kind.value}: {said(result.err) or f'exit code {result.code}'} (command: {shlex.join(words)})"
        )


_KINDS = (
    (Kind.SERVICE_DISABLED, r"SERVICE_DISABLED|API has not been used|API .{0,80}is disabled"),
    (
        Kind.STOCK_OUT,
        r"no more capacity|out of capacity|stockout|resource pool exhausted|insufficient capacity|"
        r"not enough (resources|capacity)|There is no more capacity",
    ),
    (Kind.QUOTA, r"RESOURCE_EXHAUSTED|[Qq]uota (limit|exceeded)|QUOTA_EXCEEDED|HTTPError 429|\bquota\b"),
    (
        Kind.CREDENTIALS,
        r"UNAUTHENTICATED|do not currently have an active account|invalid_grant|Reauthentication|"
        r"access token|credentials",
    ),
    (Kind.PERMISSION, r"PERMISSION_DENIED|HTTPError 403|does not have permission"),
    (Kind.EXISTS, r"ALREADY_EXISTS|HTTPError 409"),
    (Kind.NOT_FOUND, r"NOT_FOUND|HTTPError 404|matched no objects|\bwas not found\b|not found: 404"),
    (
        Kind.UNAVAILABLE,
        r"UNAVAILABLE|INTERNAL|HTTPError 50\d|crashed|Connection refused|no answer within|"
        r"server encountered|temporarily|Max retries",
    ),
    (Kind.INVALID, r"INVALID_ARGUMENT|FAILED_PRECONDITION|Invalid|invalid|unrecognized|must be specified"),
)


def kind_of(text: str) -> Kind:
    """Which error gcloud printed. Its exit code says only server (1) or usage (2)."""
    return next((kind for kind, pattern in _KINDS if re.search(pattern, text)), Kind.UNKNOWN)


def said(text: str) -> str:
    """The message in gcloud's stderr, on one line."""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    start = next((number for number, line in enumerate(lines) if line.startswith("ERROR:")), None)
    if start is None:
        return lines[-1] if lines else ""
    return re.sub(r"^ERROR: (\([\w.-]+\) )?", "", " ".join(lines[start:]))[:600]
