"""Toxicity by the Perspective API. No text is asked for twice: replies are in a journal before anybody sees them."""

import concurrent.futures
import hashlib
import json
import os
import re
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import requests

from janus_jax.errors import ConfigError, JanusError, StorageError, first_line
from janus_jax.storage.endpoint_journal import ReplyJournal
from janus_jax.storage.endpoint_requests import checked_url
from janus_jax.storage.pace import GaveUpError, Pace, Tries

URL = "https://commentanalyzer.googleapis.com/v1alpha1/comments:analyze"
ENDS = "the Perspective API is announced to end on 31 December 2026"
_UNSCORABLE = {
    "LANGUAGE_NOT_SUPPORTED_BY_ATTRIBUTE": "language not supported",
    "COMMENT_EMPTY": "empty",
    "COMMENT_TOO_LONG": "too long",
}
"""What the API says of a text, whoever asks -> why it has no score."""
_TRIES = 8
_DEAD = 3
"""So many texts that fail one after the other end the command: the API is down, not the text at fault."""


class Perspective:
    """A client of the API.

    Args:
        journal: file of replies, made if it does not exist. It may serve several files of texts.
        key_variable: name of the environment variable with the API key.
        url: of the method `comments:analyze`.
        attribute: of the API, such as TOXICITY.
        language: that texts are said to be in.
        requests_a_second: of the key's quota.
        concurrent: requests at the same time.
        timeout_s: of one try.

    Raises:
        ConfigError: the variable is empty, an argument is not allowed, or the journal cannot be used.
    """

    name = "perspective"
    at_once = 25

    def __init__(
        self,
        journal: Path,
        *,
        key_variable: str = "PERSPECTIVE_API_KEY",
        url: str = URL,
        attribute: str = "TOXICITY",
        language: str = "en",
        requests_a_second: float = 1.0,
        concurrent: int = 4,
        timeout_s: float = 30.0,
    ):
        self._url, self._variable, self._key = checked_url("--url", url, URL), key_variable, _key(key_variable)
        if not 0 < requests_a_second <= 1e6:
            raise ConfigError(f"--requests-a-second {requests_a_second:g}: allowed: more than 0")
        self.settings: dict[str, Any] = {"attribute": attribute, "language": language, "url": url}
        self._timeout_s, self._concurrent = timeout_s, concurrent
        self._body = {"requestedAttributes": {attribute: {}}, "languages": [language], "doNotStore": True}
        self._attribute = attribute
        self._session = requests.Session()
        self._stop, self._lock = threading.Event(), threading.Lock()
        pace = Pace(1, None, window_s=1 / requests_a_second, wait=self._stop.wait)
        self._tries, self._failed = Tries(pace, _TRIES, wait=self._stop.wait), 0
        self._journal = ReplyJournal(journal)

    def close(self) -> None:
        """Lets another process use the journal."""
        self._session.close()
        self._journal.close()

    def scores(self, texts: Sequence[str]) -> list[float | str]:
        """A score for each text, or why it has none.

        Raises:
            ConfigError: the API refuses the key or the request.
            StorageError: it cannot be reached, says for too long that it is too much, or fails for several texts.
        """
        known: dict[str, float | str] = {}
        for text in dict.fromkeys(texts):
            if (reply := self._journal.get(self._name(text))) is not None:
                known[text] = json.loads(reply["text"])
        left = [text for text in dict.fromkeys(texts) if text not in known]
        self._stop.clear()
        with concurrent.futures.ThreadPoolExecutor(self._concurrent) as pool:
            asked = {pool.submit(self._ask_unless_stopped, text): text for text in left}
            try:
                for future in concurrent.futures.as_completed(asked):
                    known[asked[future]] = future.result()
            except BaseException:
                self._stop.set()  # those that wait give up; what is answered is in the journal
                for future in asked:
                    future.cancel()
                raise
        return [known[text] for text in texts]

    def _name(self, text: str) -> str:
        return hashlib.sha256(json.dumps([self._url, self._body, text], sort_keys=True).encode()).hexdigest()

    def _ask_unless_stopped(self, text: str) -> float | str:
        if self._stop.is_set():
            return "not asked"
        try:
            return self._ask(text)
        except GaveUpError:
            return "not asked"
        except JanusError:
            self._stop.set()  # at once, before another thread asks
            raise

    def _ask(self, text: str) -> float | str:
        why, status = "", None
        for one in self._tries.of(1):
            try:
                reply = self._session.post(
                    self._url,
                    json={**self._body, "comment": {"text": text}},
                    headers={"X-Goog-Api-Key": self._key},
                    timeout=self._timeout_s,
                    allow_redirects=False,  # the key would go with it
                )
                one.status, one.retry_after = reply.status_code, reply.headers.get("Retry-After")
                score = self._read(text, one.status, _json(reply.content))
                if score is not None:
                    return score
                why = f"status {one.status}" if one.status != 200 else "the reply is no score"
            except requests.RequestException as error:
                why = f"no reply ({type(error).__name__})"
            status = one.status
        with self._lock:
            self._failed += 1
            if status in (None, 429) or self._failed >= _DEAD:
                raise StorageError(self._url, f"{why}; tried {_TRIES} times; what is scored is kept ({ENDS})")
        return f"failed: {why}"

    def _read(self, text: str, status: int, body: Any) -> float | str | None:
        """The score, or why the API gives none, written to the journal; None: it may come right."""
        score: float | str | None = None
        if status == 200:
            score = _score(body, self._attribute)
        elif status < 500 and status not in (408, 429):
            score = self._refusal(status, body)
        if score is not None:
            self._journal.add(self._name(text), {"text": json.dumps(score), "prompt_tokens": 0, "completion_tokens": 0})
            self._tries.note_answer()
            with self._lock:
                self._failed = 0
        return score

    def _refusal(self, status: int, body: Any) -> str:
        error = body.get("error") if isinstance(body, dict) else None
        error = error if isinstance(error, dict) else {}
        message = str(error.get("message") or "no message").replace(self._key, "***")  # before it is cut
        message = " ".join(first_line(message).split())
        details = json.dumps(error.get("details") or "")
        for kind, reason in _UNSCORABLE.items():
            if kind in details:
                return reason
        if status in (401, 403) or "API_KEY_INVALID" in details or "API key not valid" in message:
            raise ConfigError(self._url, f"does not accept the key in ${self._variable} (status {status}: {message})")
        raise ConfigError(self._url, f"refuses the request (status {status}: {message}); {ENDS}")


def _json(content: bytes) -> Any:
    try:
        return json.loads(content)
    except (ValueError, RecursionError):
        return None


def _score(body: Any, attribute: str) -> float | None:
    try:
        value = body["attributeScores"][attribute]["summaryScore"]["value"]
    except (KeyError, TypeError, IndexError):
        return None
    fits = isinstance(value, int | float) and not isinstance(value, bool) and 0 <= value <= 1
    return float(value) if fits else None


def _key(variable: str) -> str:
    key = os.environ.get(variable, "").strip()
    if not key:
        raise ConfigError(f"${variable} is empty; allowed: a key of the Perspective API ({ENDS})")
    if not re.fullmatch(r"[!-~]+", key):
        raise ConfigError(f"${variable} holds blanks or characters that no key has")
    return key
