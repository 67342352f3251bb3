"""From a file of responses to the same rows with scores: `janus score`."""

import hashlib
import json
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

from janus_jax.checkpoint.stored_model import open_model
from janus_jax.errors import ConfigError
from janus_jax.generation import scores
from janus_jax.generation.journal import Journal, finish
from janus_jax.generation.opened import require_same_models
from janus_jax.generation.response_file import read_responses
from janus_jax.parallel import processes


class ScoreFile:
    """Scores to be written. Several processes make it and call `write` alike; process 0 alone has the files.

    All but the weights is read and checked when it is made.

    Args:
        model: as `open_model`.
        responses: as `read_responses`.
        out: the file of scores, which must not exist.
        key: where scores stand; None: `Scorer.key`.
        template: of `model`, if its files name none.
        system: the system message of rows that have none.
        tell: gets notes, and lines of progress.

    Raises:
        ConfigError: the output exists, the key is blank, or processes differ.
        ConversionError: the model cannot be read, or lacks tokenizer or template.
        DataError: "FILE:LINE: ..." for a response that cannot be scored.
    """

    def __init__(
        self,
        model: str,
        responses: str,
        out: Path,
        *,
        key: str | None = None,
        step: int | None = None,
        template: str | None = None,
        system: str = "",
        tell: Callable[[str], None],
    ):
        self._tell, self._journal, unscored = tell, None, Counter[str]()
        with processes.agreement("score"):
            is_main = processes.is_main()
            stored = open_model(model, step)
            self._scorer = scorer = scores.scorer(stored, template)
            self._key = key = scorer.key if key is None else key
            if not key.strip():
                raise ConfigError("--key: is empty; allowed: a name")
            self._rows = read_responses(responses, key=key, system=system, unscored=unscored) if is_main else []
            pairs = [scorer.pairs(row) for row in self._rows]
            if is_main:
                contents = map(json.dumps, zip((row.raw for row in self._rows), pairs, strict=True))
                digests = [hashlib.sha256(content.encode()).hexdigest() for content in contents]  # all may be GiBs
                asked = [str(stored.path), stored.step, key, digests]
                self._journal = Journal(out, asked, holds="scores of other rows or of other options")
        require_same_models({"--key": key}, {"MODEL": (stored, scorer.written)})
        self._pairs = processes.broadcast_large("pairs", pairs)
        tell(f"note: {key!r} holds {scorer.kind} ({stored.path})")
        for column, count in unscored.items():
            tell(f"note: {column!r} of {count:,} rows is not scored, because they have other responses; it is kept")

    def write(self) -> None:
        """Scores; goes on where it was stopped. Raises ConfigError if another command writes the same file."""
        scores.score(self._scorer.open, self._pairs, self._journal, self._record, tell=self._tell)
        finish(self._journal)

    def _record(self, number: int, own: list[Any]) -> dict[str, Any]:
        return self._rows[number].with_scores(own, self._key)
