"""Requests as files for the batch API of a provider, and answers as it returns them (OpenAI's JSONL form)."""

import base64
import contextlib
import json
import os
import secrets
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, BinaryIO

from janus_jax.errors import DataError
from janus_jax.storage.bucket import os_errors
from janus_jax.storage.endpoint import Endpoint
from janus_jax.storage.endpoint_requests import BYTES_A_TOKEN, Estimate, Reply, Request, Sent, replies

MOST_REQUESTS, MOST_BYTES = 50_000, 190 << 20
"""Of one file; OpenAI takes at most 50,000 requests and 200 MB."""
_URL = "/v1/chat/completions"
_FAILED = "failed.jsonl"
_KEY_CHARS = 64


class BatchEndpoint(Endpoint):
    """Writes requests into files in place of sending them. What the journal has is answered as by `Endpoint`.

    A request that is in a file and has no answer yet is not written again. Files appear when the endpoint is closed.

    Args:
        directory: of the files `requests-001.jsonl`, ...
        options: as of `Endpoint`. No key is used.
    """

    def __init__(self, base_url: str, model: str, *, directory: Path, **options: Any):
        options["key_variable"] = None
        super().__init__(base_url, model, **options)
        self.directory, self._lines, self._name = directory, 0, ""
        self._file: BinaryIO | None = None
        self._sent: dict[str, Sent] = {}
        self._last: dict[str, tuple[str, str]] = {}  # key -> the newest file that has it, and its id there
        self._failed = set(_failed(directory))  # (file, key) of those that came back without an answer
        self._touched: set[str] = set()  # files of requests that answers were taken to
        self.written: list[Path] = []
        """Files of this process."""
        self.waits: Counter[str] = Counter()
        """By name of the file, older or written now: requests that were asked for and have no answer."""
        for path in sorted(directory.glob("requests-*.jsonl"), key=lambda path: _number(path.name)):
            for custom_id, request in _requests(path):
                self._sent[request.key] = request
                self._last[request.key] = path.name, custom_id
        for key, sent in self._sent.items():
            if self._outstanding(key):
                self._account.reserve(sent, 1)

    @property
    def waiting(self) -> int:
        """Requests that were asked for and have no answer."""
        return self.waits.total()

    @property
    def outstanding(self) -> int:
        """Requests in files that have no answer yet."""
        return sum(map(self._outstanding, self._sent))

    def _outstanding(self, key: str) -> bool:
        last = self._last.get(key)
        return last is not None and not self._is_answered(key) and (last[0], key) not in self._failed

    def _is_answered(self, key: str) -> bool:
        return self._journal.has(key, refusal=self._keep_refusals)

    def _was_asked(self, request: Request) -> bool:
        return super()._was_asked(request) or self._outstanding(request.key)

    def _flow(self, following: Callable[[], Request | None]) -> Iterator[Reply]:
        while (request := following()) is not None:
            if (record := self._known(request)) is not None:
                yield from replies(request, record)
                continue
            if not self._outstanding(request.key):
                if not self._account.affords(request):
                    raise self._poor(request)
                self._write(request)
                self._account.reserve(request, 1)
            self.waits[self._last[request.key][0]] += 1
            yield from _waiting(request)

    def _write(self, request: Request) -> None:
        custom_id = _custom_id(request.key)
        line = json.dumps({"custom_id": custom_id, "method": "POST", "url": _URL, "body": request.body}).encode()
        if self._file is not None and (self._lines >= MOST_REQUESTS or self._file.tell() + len(line) > MOST_BYTES):
            self._finish()
        with os_errors(self.directory):
            if self._file is None:
                self.directory.mkdir(parents=True, exist_ok=True)
                self._name = self._next_name()
                self._file = (self.directory / ".requests.incomplete").open("wb")
                self._lines = 0
            self._file.write(line + b"\n")
        self._lines += 1
        self._last[request.key] = self._name, custom_id
        self._sent[request.key] = Sent(request.key, request.most_prompt, request.limit)

    def _next_name(self) -> str:
        """Of a file that neither is nor was."""
        names = [path.name for path in self.directory.glob("requests-*.jsonl")] + [name for name, _ in self._failed]
        return f"requests-{max(map(_number, names), default=0) + 1:03d}.jsonl"

    def _finish(self) -> None:
        assert self._file is not None
        path = self.directory / self._name
        with os_errors(path):
            self._file.flush()
            os.fsync(self._file.fileno())
            self._file.close()
            os.rename(self._file.name, path)
        self._file = None
        self.written.append(path)

    def close(self) -> None:
        if self._file is not None:
            self._finish()
        super().close()

    def known(self, path: Path) -> tuple[int, int]:
        """How many answers a file has, and how many of them are to requests in the files of this directory.

        Raises:
            DataError: FILE:LINE is no answer of a batch.
        """
        counts = Counter(_key_of(custom_id) in self._sent for custom_id, *_ in _answers(path))
        return counts.total(), counts[True]

    def take(self, path: Path) -> Counter[str]:
        """Writes the answers of a file into the journal. One that is there already is not counted as paid again.

        A failure frees its request, which is then written into a next file with another id. So an old file of answers
        that is given again does not free the request that waits in the next file. An answer with a text always counts,
        also if it comes after a failure of its request.

        Returns:
            How many were `answered`, `failed`, `repeated`, and `without_request` in the files of this directory.

        Raises:
            DataError: FILE:LINE is no answer of a batch. The lines before it count; `known` looks at all lines first.
        """
        return Counter(self._take_one(*answer) for answer in _answers(path))

    def missing(self) -> dict[str, int]:
        """For each file of requests that answers were taken to, how many of its requests have none, if any."""
        counts = Counter(self._last[key][0] for key in self._sent if self._outstanding(key))
        return {name: counts[name] for name in sorted(self._touched) if counts[name]}

    def _take_one(self, custom_id: Any, status: Any, body: Any, failure: Any) -> str:
        key = _key_of(custom_id)
        if key is None or (request := self._sent.get(key)) is None:
            return "without_request"
        name, newest = self._last[key]
        waits, is_answer = self._outstanding(key), status == 200 and failure is None
        if self._is_answered(key) or not ((waits and custom_id == newest) or (is_answer and _has_text(body))):
            return "repeated"
        self._touched.add(name)
        if waits:
            self._account.reserve(request, -1)
        before = self._journal.end
        if is_answer:
            record = self._read(request, json.dumps(body))
            if record is not None and record["text"] is not None:
                return "answered"
        if self._journal.end == before:  # nothing was paid for
            why = json.dumps(failure) if failure is not None else f"status {status} without a chat completion"
            self._journal.add(key, {"failure": self._refusals.shown(why), "prompt_tokens": 0, "completion_tokens": 0})
        path = self.directory / _FAILED
        with os_errors(path), path.open("a", encoding="utf-8") as file:
            file.write("\n" + json.dumps([name, key]))  # not after half a line
        self._failed.add((name, key))
        return "failed"


class JournalEndpoint(Endpoint):
    """Answers what the journal has. Other requests wait: nothing is sent or written, and no key is used."""

    def __init__(self, base_url: str, model: str, **options: Any):
        super().__init__(base_url, model, **{**options, "key_variable": None})
        self._answered = self._prompt = self._most = 0
        self._left: set[bytes] = set()  # keys of the requests that would be sent

    def counts(self) -> Estimate:
        """Of the requests since the last call; of those without an answer, equal ones count once."""
        made = Estimate(len(self._left), self._answered, self._prompt, None, None, self._most)
        self._answered = self._prompt = self._most = 0
        self._left.clear()
        return made

    def _flow(self, following: Callable[[], Request | None]) -> Iterator[Reply]:
        while (request := following()) is not None:
            if (record := self._known(request)) is not None:
                self._answered += 1
                yield from replies(request, record)
                continue
            if (key := bytes.fromhex(request.key)) not in self._left:
                self._left.add(key)
                self._prompt -= -request.prompt_bytes // BYTES_A_TOKEN
                self._most += request.most_prompt
            yield from _waiting(request)


def _waiting(request: Request) -> Iterator[Reply]:
    for place, sample in request.places:
        yield Reply(place, sample, None, "", 0, 0, "", waiting=True)


def _number(name: str) -> int:
    """Of a file of requests: the thousandth comes after the last one with three digits."""
    return int(name.split("-")[1].split(".")[0])


def _custom_id(key: str) -> str:
    """A new id for a line of a request: some providers take no more than 64 characters."""
    return f"{base64.urlsafe_b64encode(bytes.fromhex(key)).decode().rstrip('=')}-{secrets.token_hex(4)}"


def _key_of(custom_id: Any) -> str | None:
    """The key of a request in the id of a line; None: it is no such id. Older versions wrote the key itself."""
    if not isinstance(custom_id, str) or len(custom_id) == _KEY_CHARS:
        return custom_id if isinstance(custom_id, str) else None
    with contextlib.suppress(ValueError):
        return base64.b64decode(f"{custom_id.rpartition('-')[0]}=", "-_", validate=True).hex()
    return None


def _has_text(body: Any) -> bool:
    try:
        return isinstance(body["choices"][0]["message"]["content"], str)
    except (KeyError, IndexError, TypeError):
        return False


def _answers(path: Path) -> Iterator[tuple[Any, Any, Any, Any]]:
    """(custom_id, status, body, failure) of each answer in a file of a batch API."""
    with os_errors(path), path.open("rb") as lines:
        for number, line in enumerate(lines, 1):
            if not line.strip():
                continue
            try:
                answer = json.loads(line)
                custom_id, response = answer["custom_id"], answer.get("response") or {}
                status, body = response.get("status_code", 200), response.get("body")
                failure = answer.get("error") or (body if status != 200 else None)
            except (ValueError, KeyError, TypeError, AttributeError) as error:
                what = "is no answer of a batch; allowed: objects with custom_id and response, or error"
                raise DataError(f"{path}:{number}", what) from error
            yield custom_id, status, body, failure


def _failed(directory: Path) -> Iterator[tuple[str, str]]:
    """(file of requests, key) of each."""
    path = directory / _FAILED
    if path.exists():
        with os_errors(path):
            for line in path.read_text(encoding="utf-8").splitlines():
                with contextlib.suppress(ValueError):  # a killed process wrote half of it
                    name, key, *_ = json.loads(line)  # older versions wrote more
                    yield name, key


def _requests(path: Path) -> Iterator[tuple[str, Sent]]:
    """Each with the id of its line."""
    with os_errors(path), path.open("rb") as lines:
        for number, line in enumerate(lines, 1):
            try:
                request = json.loads(line)
                if (key := _key_of(request["custom_id"])) is None:
                    raise ValueError("no id of ours")
                whole = Request(key, request["body"], [])
                yield request["custom_id"], Sent(key, whole.most_prompt, whole.limit)
            except (ValueError, KeyError, TypeError, AttributeError) as error:
                raise DataError(f"{path}:{number}", "is no request of a batch; this file may not be changed") from error
