"""The gcloud command: one place that runs it, prints it, and tells its errors apart."""

import contextlib
import dataclasses
import json
import os
import re
import shlex
import signal
import subprocess
import threading
from collections.abc import Callable, Iterator, Sequence
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
    process = None
    try:
        with _uninterrupted():
            process = subprocess.Popen(
                words,
                stdin=subprocess.DEVNULL if stdin is None else subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
                errors="replace",
                start_new_session=True,
            )
            if threading.current_thread() is not threading.main_thread():
                _of_threads.add(process)
                if interrupted.is_set():  # before it was in the set
                    end_those_of_threads()
        out, err = process.communicate(stdin, timeout=timeout_s)
        return Result(process.returncode, out, err)
    except FileNotFoundError:
        remedy = "https://cloud.google.com/sdk/docs/install" if words[0] == "gcloud" else "install it with your system"
        raise CloudError(Kind.INVALID, words[0], f"is not installed on this workstation: {remedy}") from None
    except BaseException as error:
        if process is not None:
            end_group(process)
        if isinstance(error, subprocess.TimeoutExpired):
            return Result(124, "", f"no answer within {timeout_s:.0f} s")
        raise
    finally:
        if process is not None:
            _of_threads.discard(process)


_of_threads: set[subprocess.Popen[str]] = set()
interrupted = threading.Event()
"""A signal has come: threads start nothing more. Whoever starts threads clears it."""


def end_those_of_threads() -> None:
    """Ends commands for which other threads wait. A signal comes to the main thread alone, which waits for these."""
    interrupted.set()
    for process in tuple(_of_threads):
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGTERM)


@contextlib.contextmanager
def _uninterrupted() -> Iterator[None]:
    """Puts signals off until a process has started: nobody would end it otherwise."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    came: list[int] = []
    before = {
        number: signal.signal(number, lambda number, frame: came.append(number))
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
        if signal.getsignal(number) is not None
    }
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
        if came:
            signal.raise_signal(came[0])


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

    def show(self, line: str) -> None:
        """Shows what a dry run would do."""
        self._say(line)

    def read(self, words: Sequence[str], *, timeout_s: float | None = 300) -> Any:
        """Runs a command that changes nothing, with `--format=json`; its answer, None if it is empty.

        Raises:
            CloudError: gcloud failed.
        """
        out = self.text([*words, "--format=json"], timeout_s=timeout_s)
        return json.loads(out) if out.strip() else None

    def text(self, words: Sequence[str], *, stdin: str | None = None, timeout_s: float | None = 300) -> str:
        """As `read`, but what the command prints, as it is."""
        result = self._run(list(words), stdin, timeout_s)
        require(result, words)
        return result.out

    def change(self, words: Sequence[str], *, stdin: str | None = None, timeout_s: float | None = 900) -> Result:
        """Runs a command that changes something; with `dry_run`, prints it.

        Raises:
            CloudError: gcloud failed.
        """
        if self.dry_run:
            self.show(shlex.join(words))
            return Result(0, "", "")
        result = self._run(list(words), stdin, timeout_s)
        require(result, words)
        return result


def require(result: Result, words: Sequence[str]) -> None:
    """Raises the error that gcloud printed, if it failed."""
    if result.code:
        kind, command = kind_of(result.err), shlex.join(words)
        command = command if len(command) < 600 else f"{command[:600]} ..."  # `cat` names many objects
        raise CloudError(
            kind, f"{kind.value}: {message_of(result.err) or f'exit code {result.code}'} (command: {command})"
        )


_TEXTS = (
    (Kind.SERVICE_DISABLED, r"SERVICE_DISABLED|API has not been used|API .{0,80}is (disabled|not enabled)"),
    (Kind.UNAVAILABLE, r"(requests|queries) per (minute|second)"),  # a quota that fills again by itself
    (  # no network, as after a night's sleep; gcloud calls it a problem with credentials that are out of date
        Kind.UNAVAILABLE,
        r"Max retries exceeded|Failed to resolve|Unable to find the server|[Nn]ame resolution|"
        r"[Nn]etwork is unreachable|Connection (aborted|reset)",
    ),
    (
        Kind.STOCK_OUT,
        r"(?i)no more capacity|out of capacity|stock-?out|resource[ _]pool[ _]exhausted|insufficient .{0,20}capacity|"
        r"no (available )?capacity|not enough (resources|capacity)|not have enough resources",
    ),
    (
        Kind.INVALID,
        r"(?i)(location|projects?( instance)?|accelerator( ?type)?) \S+ ((is|was) )?not found|invalid (location|zone)|"
        r"received a bad request",
    ),
)
"""Messages that say more than the status beside them."""

_STATUS = {
    Kind.INVALID: "3 9 11 400 INVALID_ARGUMENT FAILED_PRECONDITION OUT_OF_RANGE",
    Kind.CHANGED: "412",
    Kind.NOT_FOUND: "5 404 NOT_FOUND",
    Kind.EXISTS: "6 409 ALREADY_EXISTS",
    Kind.PERMISSION: "7 403 PERMISSION_DENIED",
    Kind.QUOTA: "8 429 RESOURCE_EXHAUSTED",
    Kind.CREDENTIALS: "16 401 UNAUTHENTICATED",
    Kind.UNAVAILABLE: "4 10 13 14 500 502 503 504 DEADLINE_EXCEEDED ABORTED INTERNAL UNAVAILABLE",
}
"""Codes of google.rpc.Status, HTTP and their names."""
_KIND_OF_STATUS = {word: kind for kind, words in _STATUS.items() for word in words.split()}
_STATUS_IN_TEXT = re.compile(
    r"^ERROR: \([\w.-]+\) ([A-Z_]+): |\"code\": (\d+)|HTTPError (\d+)|'status': (\d+)|"
    r"\b([A-Z]+_[A-Z_]+|INTERNAL|UNAVAILABLE)\b"
)

_FALLBACKS = (
    (Kind.QUOTA, r"[Qq]uota (limit|exceeded)|[Qq]uota .{0,90}(exhausted|exceeded)"),
    (
        Kind.CREDENTIALS,
        r"do not currently have an active account|invalid_grant|[Rr]eauthentication|credentials|SSH agent|"
        r"problem refreshing your current auth|Unable to read file",
    ),
    (Kind.PERMISSION, r"does not have permission|Required \S+ permission|access to .{0,80}denied"),
    (Kind.NOT_FOUND, r"matched no objects|\b(was )?not found\b"),
    (Kind.UNAVAILABLE, r"crashed|Connection refused|no answer within|server encountered|temporarily"),
    (Kind.INVALID, r"[Ii]nvalid|unrecognized|must be specified|could not be answered"),
)


def kind_of(text: str) -> Kind:
    """Which error gcloud printed, or an operation or a queued resource has. gcloud's exit code says only server (1) or
    usage (2)."""
    text = _error(text)
    text = re.sub(r"(projects|gs:/)/[^\s'\"\]>]+", "NAME", text)  # names of resources say nothing about the error
    for kind, pattern in _TEXTS:
        if re.search(pattern, text):
            return kind
    for match in _STATUS_IN_TEXT.finditer(text):
        if kind := _KIND_OF_STATUS.get(match[match.lastindex or 0]):
            return kind
    return next((kind for kind, pattern in _FALLBACKS if re.search(pattern, text)), Kind.UNKNOWN)


def message_of(text: str) -> str:
    """The message in gcloud's stderr, on one line."""
    error = _error(text)
    if not error.startswith("ERROR:"):
        return error.splitlines()[-1].strip() if error else ""
    with contextlib.suppress(ValueError):  # an operation's error is JSON
        return json.loads(error[error.index("{") :])["message"]
    if inside := re.search(r'content <.*"message": ("(?:[^"\\]|\\.)*")', error, re.DOTALL):
        return json.loads(inside[1])
    error = error.partition("\n- '@type'")[0]  # details
    return re.sub(r"^ERROR: (\([\w.-]+\) )?", "", " ".join(error.split()))[:600]


def _error(text: str) -> str:
    """stderr from its error on, without the remark on whose credentials were used."""
    text = re.sub(r" ?This command is authenticated (with|as) .*", "", text)
    start = re.search(r"^ERROR:", text, re.MULTILINE)
    return text[start.start() if start else 0 :].strip()
