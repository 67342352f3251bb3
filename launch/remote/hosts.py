"""The hosts of a launch over ssh: one shared connection a host, at most 16 at once, host keys checked.

gcloud pushes the key and says once how ssh reaches each worker. Those lines are kept per creation of the machines, so
that later commands need no gcloud.
"""

import contextlib
import dataclasses
import hashlib
import json
import os
import shlex
import subprocess
import tempfile
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any, Self

from launch.cloud.gcloud import end_group, interrupted
from launch.context import Context
from launch.errors import CloudError, HostError, Kind
from launch.records import printable
from launch.remote import lines

if TYPE_CHECKING:
    from launch.cloud.machines import Machines, Worker

CONNECTIONS = 16
"""At most so many connections at once."""
LONGEST_SOCKET = 103
"""Bytes that a path of a socket may have: 104 with its end on a Mac."""
PAUSE_S = 2.0
"""Before a lost connection is tried again."""
OPTIONS = ("BatchMode=yes", "ConnectTimeout=20", "ServerAliveInterval=15", "ServerAliveCountMax=4", "LogLevel=ERROR")
LOST = 255
"""ssh's own exit code: no connection, or a lost one."""
SHOWN = 5
"""An error shows so many hosts."""


@dataclasses.dataclass(frozen=True)
class Host:
    """A machine of the slice, and how to reach it."""

    number: int
    """Slice-major over all slices: the process id of a run."""
    slice: int
    index: int
    """Worker number in its slice."""
    node: str
    words: list[str]
    """Words of ssh with its target, or of gcloud, without the command."""
    socket: str | None = None
    """Of the shared connection."""
    iap: bool = False
    """Whether `words` are gcloud's."""

    @property
    def name(self) -> str:
        """As users read it."""
        return f"worker {self.number} ({self.node})"

    def line(self, command: str | None = None, *, options: Sequence[str] = ()) -> list[str]:
        """The words that run a shell command on the host, or open a shell.

        Args:
            options: of ssh; they win over ours.
        """
        if self.iap:
            flags = [f"--ssh-flag={option}" for option in options]
            return [*self.words, *flags, *([] if command is None else [f"--command={command}"])]
        return [self.words[0], *options, *self.words[1:], *([] if command is None else ["--", command])]


@dataclasses.dataclass(frozen=True)
class Answer:
    """How a command ended on a host."""

    host: Host
    code: int
    """Its exit code; 255: no connection; 124: out of time."""
    out: str
    err: str
    seconds: float
    at_s: float = 0.0
    """When it ended, by the workstation's clock."""

    @property
    def value(self) -> dict[str, Any] | None:
        """The JSON object on its last line; None without one."""
        lines = self.out.strip().splitlines()
        try:
            value = json.loads(lines[-1]) if lines else None
        except ValueError:
            return None
        return value if isinstance(value, dict) else None

    @property
    def is_not_set_up(self) -> bool:
        """Whether the host has no agent: the shell does not find it."""
        return self.code in (126, 127)

    def last(self, count: int = 1) -> str:
        """What it printed last, for an error message."""
        texts = [line for line in (self.err if self.err.strip() else self.out).splitlines() if line.strip()]
        if not texts:
            return "connection lost" if self.code == LOST else f"exit code {self.code}"
        return "; ".join(printable(line) for line in texts[-count:])


Body = bytes | Callable[[Host], bytes] | None


class Hosts:
    """Runs commands on hosts. Leaving the context ends the shared connections.

    Args:
        forget: drops the ssh lines that are kept, after a host has refused the key.
    """

    def __init__(self, context: Context, hosts: Sequence[Host], *, forget: Callable[[], None] = lambda: None):
        self.hosts = list(hosts)
        self._context, self._forget = context, forget
        self._running: set[subprocess.Popen[bytes]] = set()
        self._lock = threading.Lock()
        self._ended = False

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Ends the shared connections that nobody else uses now."""
        for host in self.hosts:
            if host.socket and os.path.exists(host.socket):
                with contextlib.suppress(OSError, subprocess.TimeoutExpired):
                    words = host.line(options=("-O", "stop"))
                    subprocess.run(words, capture_output=True, stdin=subprocess.DEVNULL, timeout=10, check=False)

    def each(
        self,
        command: str,
        *,
        stdin: Body = None,
        only: Iterable[Host | int] | None = None,
        timeout_s: float | None = 120,
        tries: int = 1,
    ) -> list[Answer]:
        """Runs a shell command on hosts, with the home directory as working directory.

        Args:
            stdin: what the command reads, for all hosts or by host. Secrets belong here, never into `command`.
            only: hosts, or their numbers; None: all.
            tries: how often a host is asked that cannot be reached or whose connection is lost. The command must do no
                harm if it runs again.
        Returns:
            One answer a host, in their order. Failures are answers too: `require` makes an error of them.
        """
        numbers = None if only is None else {item if isinstance(item, int) else item.number for item in only}
        chosen = [host for host in self.hosts if numbers is None or host.number in numbers]
        if self._context.dry_run:
            for host in chosen:
                self._context.say(shlex.join(host.line(command)))
            return [Answer(host, 0, "", "", 0.0, time.time()) for host in chosen]
        if not chosen:
            return []
        self._ended = False
        pool = ThreadPoolExecutor(min(CONNECTIONS, len(chosen)), "ssh")
        try:
            tasks = [pool.submit(self._ask, host, command, stdin, timeout_s, tries) for host in chosen]
            answers = [task.result() for task in tasks]
        except BaseException:
            self._end_all()
            pool.shutdown(cancel_futures=True)
            raise
        pool.shutdown()
        if any(answer.code == LOST and "Permission denied" in answer.err for answer in answers):
            self._forget()
        return answers

    def agent(
        self,
        name: str,
        message: dict[str, Any] | Callable[[Host], dict[str, Any]] | None = None,
        *,
        only: Iterable[Host | int] | None = None,
        timeout_s: float | None = 120,
    ) -> list[dict[str, Any]]:
        """Runs a command of the hosts' agent, which `setup` installs. Lost connections are tried again.

        Args:
            name: of the command.
            message: what it reads, for all hosts or by host.
        Returns:
            One answer a host, in their order; with `--dry-run` {}.
        Raises:
            HostError: hosts that answered with an error, or not at all.
        """

        def body(host: Host) -> bytes:
            return json.dumps((message(host) if callable(message) else message) or {}).encode()

        answers = self.each(f"janus/agent {shlex.quote(name)}", stdin=body, only=only, timeout_s=timeout_s, tries=3)
        if self._context.dry_run:
            return [{} for _ in answers]
        values, failed = [], []
        for answer in answers:
            value = answer.value
            if value is None or "error" in value:
                failed.append((answer.host, _why(answer, value)))
            values.append(value or {})
        if failed:
            raise HostError(_listed(failed, len(answers), name))
        return values

    def _ask(self, host: Host, command: str, stdin: Body, timeout_s: float | None, tries: int) -> Answer:
        body = stdin(host) if callable(stdin) else stdin
        for turn in range(max(1, tries)):
            answer = self._once(host, command, body, timeout_s)
            if answer.code != LOST or turn + 1 >= tries or self._ended:
                break
            time.sleep(PAUSE_S * (turn + 1))
        return answer

    def _once(self, host: Host, command: str, body: bytes | None, timeout_s: float | None) -> Answer:
        # Files instead of pipes: the shared connection of an old ssh keeps them open when the command has ended.
        start = time.monotonic()
        with tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as err, tempfile.TemporaryFile() as given:
            given.write(body or b"")
            given.seek(0)
            with self._lock:
                if self._ended:
                    return Answer(host, 130, "", "stopped", 0.0, time.time())
                words = host.line(command)
                try:
                    process = subprocess.Popen(words, stdin=given, stdout=out, stderr=err, start_new_session=True)
                except FileNotFoundError:
                    raise HostError(words[0], "is not installed on this workstation") from None
                self._running.add(process)
            try:
                code, late = process.wait(timeout_s), ""
            except subprocess.TimeoutExpired:
                end_group(process)
                code, late = 124, f"no answer within {timeout_s:.0f} s"
            finally:
                with self._lock:
                    self._running.discard(process)
            ended = time.time()
            texts = []
            for file in (out, err):
                file.seek(0)
                texts.append(file.read().decode("utf-8", "replace"))
        text = f"{texts[1]}\n{late}" if late else texts[1]
        return Answer(host, code, texts[0], text, time.monotonic() - start, ended)

    def _end_all(self) -> None:
        with self._lock:
            self._ended = True
            running = list(self._running)
        with ThreadPoolExecutor(CONNECTIONS) as pool:
            list(pool.map(end_group, running))


def connect(context: Context, machines: "Machines") -> Hosts:
    """The hosts of machines. Of machines that are not ready, those that are left: of several slices one may be gone.

    Raises:
        CloudError: gcloud refused.
        HostError: the first host of a node takes no key, or gcloud names other addresses than the API.
    """
    if not machines.ready and len(machines.nodes) > 1:
        return _what_is_left(context, machines)
    if context.settings.iap:
        return Hosts(context, [_through_iap(context, worker) for worker in machines.workers])
    path, stamp = lines.cache_file(context), _stamp(machines)
    given = lines.load(path, stamp)
    if given is None:
        interrupted.clear()
        with ThreadPoolExecutor(4) as pool:
            answers = pool.map(lambda node: lines.ask_gcloud(context, node), machines.nodes)
            given = dict(zip(machines.nodes, answers, strict=True))
        if not context.dry_run:
            lines.save(path, {**stamp, "lines": given})
    folder = lines.sockets()
    hosts = [_host(worker, given[worker.node], folder, stamp) for worker in machines.workers]
    return Hosts(context, hosts, forget=lambda: lines.remove(path))


def _what_is_left(context: Context, machines: "Machines") -> Hosts:
    hosts, refused = [], []
    for node in machines.nodes:
        workers = tuple(worker for worker in machines.workers if worker.node == node and worker.internal)
        if not workers:
            continue
        try:
            hosts += connect(context, dataclasses.replace(machines, nodes=(node,), workers=workers)).hosts
        except (CloudError, HostError) as error:
            refused.append(error)
            context.warn(f"{node}: cannot be reached, so the run may go on there: {error}")
    if not hosts:
        raise refused[0] if refused else HostError(machines.name, f"is {machines.state}, and no host has an address")
    return Hosts(context, hosts)


def _stamp(machines: "Machines") -> dict[str, Any]:
    """What lines are kept for: they are good for no other creation and no other addresses."""
    addresses = [[worker.node, worker.internal, worker.external] for worker in machines.workers]
    return {"created": machines.created, "token": machines.token, "addresses": addresses}


def reach(context: Context) -> Hosts:
    """The hosts of the launch in the settings.

    Raises:
        HostError: the machines are not ready.
        CloudError: there are none, or gcloud refused.
    """
    from launch.cloud import machines

    name, zone = context.settings.name, context.settings.zone
    seen = machines.find(context)
    if seen is None:
        raise CloudError(
            Kind.NOT_FOUND, f"{name} in {zone}", "no machines of that name; create them: python -m launch up"
        )
    if not seen.ready:
        raise HostError(f"{name} in {zone}", f"machines are not ready: {seen.state}, health {seen.health} {seen.error}")
    return connect(context, seen)


def require(answers: Sequence[Answer], what: str, *, last: int = 1) -> None:
    """Raises an error that names the hosts which failed, with their last lines.

    Raises:
        HostError: a host failed.
    """
    failed = [(answer.host, answer.last(last)) for answer in answers if answer.code]
    if failed:
        raise HostError(_listed(failed, len(answers), what))


def _listed(failed: Sequence[tuple[Host, str]], asked: int, what: str) -> str:
    rows = [f"{host.name}: {text}" for host, text in failed[:SHOWN]]
    if len(failed) == 1:
        return f"{what}: {rows[0]}"
    more = [f"and {len(failed) - SHOWN} more"] if len(failed) > SHOWN else []
    return f"{what}: {len(failed)} of {asked} hosts failed\n  " + "\n  ".join([*rows, *more])


def _why(answer: Answer, value: dict[str, Any] | None) -> str:
    if value is not None:
        return printable(str(value["error"]), 600)
    if answer.is_not_set_up:
        return "is not set up; python -m launch setup"
    return answer.last(2)


def _through_iap(context: Context, worker: "Worker") -> Host:
    words = lines.ssh(context, worker.node, str(worker.index), "--tunnel-through-iap", "--quiet")
    words.insert(1, "alpha")  # the flag is not in the released command
    return Host(worker.number, worker.slice, worker.index, worker.node, words, iap=True)


def _host(worker: "Worker", lines: Sequence[list[str]], folder: str | None, stamp: dict[str, Any]) -> Host:
    addresses = {worker.internal, worker.external}
    # gcloud counts workers in the order of the API's addresses, as we do; the address decides all the same.
    words = next((line for line in lines if line[-1].rpartition("@")[2] in addresses), None)
    if words is None:
        raise HostError(
            f"worker {worker.number} ({worker.node})",
            f"gcloud reaches none of its addresses {worker.external or '-'}, {worker.internal}",
        )
    options, socket = list(OPTIONS), None
    if folder is not None:
        unique = json.dumps([stamp, worker.node, worker.index, words])
        socket = os.path.join(folder, hashlib.sha256(unique.encode()).hexdigest()[:16])
        if len(os.fsencode(socket)) + 17 > LONGEST_SOCKET:  # ssh first makes one with 17 more letters
            socket = None
        else:
            options += ["ControlMaster=auto", f"ControlPath={socket}", "ControlPersist=60"]
    own = [word for option in options for word in ("-o", option)]
    full = [*words[:-1], *own, words[-1]]
    return Host(worker.number, worker.slice, worker.index, worker.node, full, socket)
