"""The server around the endpoints: its socket, and an end that lets running answers finish."""

import asyncio
import contextlib
import ipaddress
import logging
import math
import os
import re
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterator, Mapping

import uvicorn

from janus_jax.errors import ConfigError
from janus_jax.serving.app import Service

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
            addresses = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
        except (OSError, UnicodeError) as error:
            raise ConfigError(f"--host {host}: is no address of this machine ({_reason(error)})") from error
        family, _, _, _, address = min(addresses, key=lambda one: one[0])  # IPv4 first
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


def serve(
    service: Service,
    listener: Listener,
    *,
    grace: float,
    ready: Callable[[Callable[[], None]], None] = lambda stop: None,
) -> bool:
    """Answers until SIGINT or SIGTERM; returns whether the generating thread has ended too.

    Args:
        grace: seconds that running answers have to finish after the signal. A second signal ends them at once.
        ready: called when requests are taken, with a function that does what a signal does, for any thread.
    """
    logging.getLogger("uvicorn.error").setLevel(logging.CRITICAL)  # it calls a client that reads nothing our error
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
        timeout_graceful_shutdown=math.ceil(grace) + 5,
    )
    service.worker.start()
    server = _Server(config, service, grace, ready)
    asyncio.run(server.serve(sockets=[listener.socket]))
    return service.worker.end(5.0)


class _Server(uvicorn.Server):
    """Ends in order: new requests are refused; running ones may finish, or get an error when their time is over."""

    def __init__(
        self, config: uvicorn.Config, service: Service, grace: float, ready: Callable[[Callable[[], None]], None]
    ):
        super().__init__(config)
        self._service, self._grace, self._ready = service, grace, ready

    def stop(self) -> None:
        self.force_exit = self.should_exit
        self.should_exit = self._service.ends = True

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """uvicorn's own handlers would end the process by the signal."""
        numbers = (signal.SIGINT, signal.SIGTERM) if threading.current_thread() is threading.main_thread() else ()
        before = [signal.signal(number, lambda *_: self.stop()) for number in numbers]
        try:
            yield
        finally:
            for number, handler in zip(numbers, before, strict=True):
                signal.signal(number, handler)

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        self._ready(self.stop)

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        ending = asyncio.create_task(self._end())
        await super().shutdown(sockets)
        await ending

    async def _end(self) -> None:
        worker, until = self._service.worker, time.monotonic() + self._grace
        while worker.texts and time.monotonic() < until and not self.force_exit:
            await asyncio.sleep(0.05)
        await asyncio.to_thread(worker.end, 0)
