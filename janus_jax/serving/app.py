"""The endpoints: OpenAI's paths over one worker."""

import asyncio
import concurrent.futures
import contextlib
import hmac
import time
from collections.abc import Callable, Sequence
from typing import Any

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request as HTTPRequest
from starlette.responses import JSONResponse, Response
from starlette.routing import Route
from starlette.types import ASGIApp, Receive, Scope, Send

from janus_jax.generation.detokenizer import Detokenizer
from janus_jax.serving import asks
from janus_jax.serving.asks import Ask, Served
from janus_jax.serving.refusals import Refusal
from janus_jax.serving.replies import ChatReply, CompletionReply, Reply, as_event, as_events, as_json
from janus_jax.serving.token_texts import TokenTexts
from janus_jax.serving.worker import Job, Worker, ending, log_failure

MOST_BODY = 4 << 20
"""Bytes of a request's body."""
_BODY_TIMEOUT_S = 60.0
_REFUSING_S = 5.0
_MOST_DISCARDED = 64 << 20
"""Bytes of a body that is too large, read only so that the client gets to read why."""


class _ClientLeft(Exception):
    pass


class Service:
    """All that the endpoints need.

    Args:
        detokenizer: of the engine.
        timeout: seconds for the whole of a request.
    """

    def __init__(self, served: Served, worker: Worker, detokenizer: Detokenizer, timeout: float):
        self.served, self.worker, self.timeout, self.ends = served, worker, timeout, False
        self._detokenizer = detokenizer
        self._texts = TokenTexts(served.written.tokenizer, detokenizer)
        self._began = int(time.time())
        self._reading = concurrent.futures.ThreadPoolExecutor(1, "reading")  # a long prompt takes a while to tokenize

    def application(self, key: str | None, hosts: Sequence[str] | None) -> ASGIApp:
        """The ASGI application.

        Args:
            key: that clients must show; None: none.
            hosts: names that clients may call this server by; None: any.
        """
        routes = [
            Route("/health", self._health),
            Route("/v1/models", self._models),
            Route("/v1/models/{name:path}", self._model),
            Route("/v1/chat/completions", _Endpoint(self, asks.chat, ChatReply), methods=["POST"]),
            Route("/v1/completions", _Endpoint(self, asks.completion, CompletionReply), methods=["POST"]),
        ]
        app = Starlette(routes=routes, exception_handlers={HTTPException: _http_error, Refusal: _refused})
        app.router.redirect_slashes = False
        return _Guard(app, key, hosts)

    async def _health(self, request: HTTPRequest) -> Response:
        good = self.worker.alive and not self.ends
        state = {"status": "ok" if good else "ending", "texts": self.worker.texts, "most_texts": self.served.most_texts}
        return JSONResponse(state, 200 if good else 503)

    async def _models(self, request: HTTPRequest) -> Response:
        return JSONResponse({"object": "list", "data": [self._described()]})

    async def _model(self, request: HTTPRequest) -> Response:
        if (name := request.path_params["name"]) != self.served.name:
            what = f"model {name!r} is not served here; allowed: {self.served.name!r}"
            raise Refusal(what, 404, param="model", code="model_not_found")
        return JSONResponse(self._described())

    def _described(self) -> dict[str, Any]:
        name, window = self.served.name, self.served.window
        return {"id": name, "object": "model", "created": self._began, "owned_by": "janus_jax", "max_model_len": window}

    async def read(self, reader: Callable[[bytes, Served], Ask], content: bytes) -> Ask:
        return await asyncio.get_running_loop().run_in_executor(self._reading, reader, content, self.served)

    def reply(self, kind: type[Reply], ask: Ask) -> Reply:
        return kind(ask, self.served.name, self._texts, self._detokenizer)


class _Endpoint:
    """Reads a body, runs its job, and writes what comes."""

    def __init__(self, service: Service, reader: Callable[[bytes, Served], Ask], kind: type[Reply]):
        self._service, self._reader, self._kind = service, reader, kind

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        request = HTTPRequest(scope, receive)
        out = _Out(send)
        try:
            content = await _body(request)
            if self._service.ends:
                raise ending()
            work = asyncio.create_task(self._answer(content, out))
            left = asyncio.create_task(_left(receive))
            try:
                await asyncio.wait({work, left}, return_when="FIRST_COMPLETED", timeout=self._service.timeout)
                if not work.done():
                    work.cancel()
                    with contextlib.suppress(asyncio.CancelledError):
                        await work
                    if left.done():
                        return
                    what = f"took longer than {self._service.timeout:g} s"
                    raise Refusal(what, 504, code="timeout")
                work.result()
            finally:
                for task in (work, left):
                    task.cancel()
        except _ClientLeft:
            return
        except Refusal as refusal:
            await self._refuse(out, refusal)
        except Exception:
            log_failure()
            await self._refuse(out, Refusal("the server failed; its log says why", 500, code="internal_error"))

    async def _refuse(self, out: "_Out", refusal: Refusal) -> None:
        with contextlib.suppress(TimeoutError):  # a client that reads nothing would not read this either
            await asyncio.wait_for(out.refuse(refusal), _REFUSING_S)

    async def _answer(self, content: bytes, out: "_Out") -> None:
        worker = self._service.worker
        ask = await self._service.read(self._reader, content)
        reply = self._service.reply(self._kind, ask)
        scored = [(place, one.ids) for place, one in enumerate(ask.requests) if ask.scores and len(one.ids) > 1]
        job = Job(ask.requests if ask.makes else (), scored, ask.top or 0)
        if not job.done:
            worker.submit(job)
        try:
            first = reply.first()
            while news := await job.read():
                parts = [part for one in news for part in reply.parts(one)]
                await self._write(ask, reply, first + parts, out)
                first = []
            await self._write(ask, reply, first, out)
            if ask.stream:
                await out.stream((as_event(reply.last()) if ask.usage else b"") + b"data: [DONE]\n\n", more=False)
            else:
                await out.whole(200, as_json(reply.whole()))
        finally:
            worker.cancel(job)

    async def _write(self, ask: Ask, reply: Reply, parts: list[dict[str, Any]], out: "_Out") -> None:
        if not ask.stream:
            for part in parts:
                reply.add(part)
        elif content := as_events(map(reply.chunk, parts)):
            await out.stream(content)


class _Out:
    """The response: its status goes out with the first content, so that what fails before has its own."""

    def __init__(self, send: Send):
        self._send, self._begun = send, False

    async def whole(self, status: int, content: bytes, headers: dict[str, str] | None = None) -> None:
        await self._start(
            status, {"content-type": "application/json", "content-length": str(len(content)), **(headers or {})}
        )
        await self._send({"type": "http.response.body", "body": content})

    async def stream(self, content: bytes, more: bool = True) -> None:
        if not self._begun:
            await self._start(200, {"content-type": "text/event-stream; charset=utf-8", "cache-control": "no-cache"})
        await self._send({"type": "http.response.body", "body": content, "more_body": more})

    async def refuse(self, refusal: Refusal) -> None:
        """An error in place of the response, or at the end of a stream."""
        if not self._begun:
            await self.whole(refusal.status, as_json(refusal.body()), refusal.headers)
        else:
            await self.stream(as_event(refusal.body()), more=False)

    async def _start(self, status: int, headers: dict[str, str]) -> None:
        self._begun = True
        pairs = [(name.lower().encode(), value.encode()) for name, value in headers.items()]
        await self._send({"type": "http.response.start", "status": status, "headers": pairs})


async def _left(receive: Receive) -> None:
    """Returns when the client has left."""
    while (await receive())["type"] != "http.disconnect":
        pass


async def _body(request: HTTPRequest) -> bytes:
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    content = bytearray()
    try:
        async with asyncio.timeout(_BODY_TIMEOUT_S):
            size, more = 0, True
            if (declared := request.headers.get("content-length", "")).isdecimal() and int(declared) > _MOST_DISCARDED:
                raise _too_large()
            while more:
                message = await request.receive()
                if message["type"] == "http.disconnect":
                    raise _ClientLeft
                size, more = size + len(message.get("body", b"")), message.get("more_body", False)
                if size > _MOST_DISCARDED:
                    raise _too_large()
                if size <= MOST_BODY:
                    content += message.get("body", b"")
    except TimeoutError:
        what = f"the body did not come within {_BODY_TIMEOUT_S:g} s"
        raise Refusal(what, 408, code="timeout", headers={"connection": "close"}) from None
    if size > MOST_BODY:
        raise _too_large()
    if kind != "application/json":
        # A page in a browser may send other types to this machine without being asked.
        what = f"content-type is {kind or 'missing'}; allowed: application/json"
        raise Refusal(what, 415, code="unsupported_media_type")
    return bytes(content)


def _too_large() -> Refusal:
    what = f"the body is larger than {MOST_BODY >> 20} MiB"
    return Refusal(what, 413, code="body_too_large", headers={"connection": "close"})


class _Guard:
    """Lets requests through that call the server by its name and show the key."""

    def __init__(self, app: ASGIApp, key: str | None, hosts: Sequence[str] | None):
        self._app, self._hosts = app, None if hosts is None else frozenset(hosts)
        self._expected = None if key is None else f"Bearer {key}".encode()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and (refusal := self._refusal(scope)) is not None:
            await _Out(send).refuse(refusal)
        else:
            await self._app(scope, receive, send)

    def _refusal(self, scope: Scope) -> Refusal | None:
        headers = dict(reversed(scope["headers"]))
        host = _host(headers.get(b"host", b"").decode("latin-1"))
        if self._hosts is not None and host not in self._hosts:
            # Another site's name that leads to this machine: a page of it would be asking (DNS rebinding).
            what = f"host {host[:60]!r}: is no name of this server; allowed: {', '.join(sorted(self._hosts))}"
            return Refusal(what, 403, code="unknown_host")
        given = headers.get(b"authorization", b"")
        if self._expected is None or scope["path"] == "/health" or hmac.compare_digest(given, self._expected):
            return None
        what = "the API key is missing or wrong; send the header Authorization: Bearer KEY"
        return Refusal(what, 401, code="invalid_api_key", headers={"WWW-Authenticate": "Bearer"})


def _host(header: str) -> str:
    """The name in a Host header, without its port."""
    name, colon, port = header.rpartition(":")
    return (name if colon and port.isdecimal() else header).strip("[]").lower()


async def _refused(request: HTTPRequest, error: Exception) -> Response:
    assert isinstance(error, Refusal)
    return JSONResponse(error.body(), error.status, error.headers)


async def _http_error(request: HTTPRequest, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    what = f"{request.method} {request.url.path}: {error.detail}"
    headers = dict(error.headers or {})
    return await _refused(request, Refusal(what, error.status_code, code="unknown_url", headers=headers))
