"""The server around the endpoints: its socket, and an end that lets running answers finish."""

import asyncio
import contextlib
import ipaddress
import logging
import os
import re
import signal
import socket
from collections.abc import Callable, Iterator, Mapping

import uvicorn

from janus_jax.errors import ConfigError
from janus_jax.serving.app import Service
from janus_jax.serving.worker import Worker

KEY = "JANUS_API_KEY"
_STALLED_MS = 60_000
"""After which the kernel gives up a client that reads nothing."""
_LOCAL = ("localhost", "127.0.0.1", "::1")


class Listener:
    """An address that is taken, before a device is.

    Raises:
        ConfigError: the address is none of this machine, is taken, or is open to other machines without a key.
    """

    def __init__(self, host: str, port: int, environment: Mapping[str, str] = os.environ):
        self.key = _key(environment)
        try:
            found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
        except (OSError, UnicodeError) as error:
            raise ConfigError(f"--host {host}: is no address of this machine ({_reason(error)})") from error
        family, _, _, _, address = min(found, key=lambda one: one[0])  # IPv4 first
        self.local = ipaddress.ip_address(str(address[0]).partition("%")[0]).is_loopback
        if not self.local and self.key is None:
            raise ConfigError(
                f"--host {host}: other machines could ask without a key; allowed: 127.0.0.1 (reach it with ssh -L "
                f"{port}:127.0.0.1:{port} MACHINE), or set {KEY}"
            )
        self.hosts = sorted({*_LOCAL, host.lower(), str(address[0])}) if self.local else None
        """Names that clients may use."""
        self.socket = socket.socket(family, socket.SOCK_STREAM)
        self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if hasattr(socket, "TCP_USER_TIMEOUT"):
            self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, _STALLED_MS)
        try:
            self.socket.bind(address)
            self.socket.listen(128)  # two servers could bind one port, but not listen on it
        except OSError as error:
            self.socket.close()
            raise ConfigError(f"--host {host} --port {port}: {_reason(error)}; choose another --port") from error
        shown = f"[{address[0]}]" if family == socket.AF_INET6 else address[0]
        self.url = f"http://{shown}:{self.socket.getsockname()[1]}"


def _key(environment: Mapping[str, str]) -> str | None:
    if (key := environment.get(KEY)) is None:
        return None
    if not re.fullmatch("[!-~]+", key):
        raise ConfigError(f"{KEY}: is empty or has blanks; allowed: printable ASCII characters, or no such variable")
    return key


def _reason(error: Exception) -> str:
    return (getattr(error, "strerror", None) or str(error)).lower()


def serve(service: Service, listener: Listener, *, grace: float, ready: Callable[[], None] = lambda: None) -> bool:
    """Answers until SIGINT or SIGTERM; returns whether the generating thread has ended too.

    Args:
        grace: seconds that running answers have to finish after the signal. A second signal ends them at once.
        ready: called when requests are taken.
    """
    logging.getLogger("uvicorn.error").setLevel(logging.CRITICAL)  # it calls a client that reads nothing our error
    return asyncio.run(_serve(service, listener, grace, ready))


async def _serve(service: Service, listener: Listener, grace: float, ready: Callable[[], None]) -> bool:
    worker = service.worker
    config = uvicorn.Config(
        service.application(listener.key, listener.hosts),
        loop="asyncio",
        http="h11",
        ws="none",
        lifespan="off",
        log_config=None,
        access_log=False,
        proxy_headers=False,
        server_header=False,
        limit_concurrency=2 * service.served.most_texts + 64,
        timeout_keep_alive=30,
        timeout_graceful_shutdown=round(grace) + 5,
    )
    server = _Server(config)
    stopped, at_once = asyncio.Event(), asyncio.Event()

    def stop() -> None:
        if stopped.is_set():
            at_once.set()
            server.force_exit = True
        stopped.set()
        server.should_exit = service.ends = True

    async def end() -> None:
        await stopped.wait()
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(asyncio.shield(asyncio.create_task(_idle(worker, at_once))), grace)
        await asyncio.to_thread(worker.end, 0)

    worker.start()
    with _signals(stop):
        ending = asyncio.create_task(end())
        told = asyncio.create_task(_when_started(server, ready))
        await server.serve(sockets=[listener.socket])
        told.cancel()
        stopped.set()
        at_once.set()
        await ending
    return await asyncio.to_thread(worker.end, 5.0)


async def _idle(worker: Worker, at_once: asyncio.Event) -> None:
    while worker.texts and not at_once.is_set():
        await asyncio.sleep(0.05)


async def _when_started(server: uvicorn.Server, ready: Callable[[], None]) -> None:
    while not server.started:
        await asyncio.sleep(0.01)
    ready()


class _Server(uvicorn.Server):
    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Leaves signals to us: uvicorn's own handlers would end the process by the signal."""
        yield


@contextlib.contextmanager
def _signals(stop: Callable[[], None]) -> Iterator[None]:
    """Inside, SIGINT and SIGTERM call `stop`."""
    loop, numbers = asyncio.get_running_loop(), (signal.SIGINT, signal.SIGTERM)
    before = [signal.getsignal(number) for number in numbers]
    for number in numbers:
        loop.add_signal_handler(number, stop)
    try:
        yield
    finally:
        for number, handler in zip(numbers, before, strict=True):
            loop.remove_signal_handler(number)
            signal.signal(number, handler)
