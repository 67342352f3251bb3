"""From continuations to the same rows with perplexities under a language model.

The perplexity of a continuation is exp of its mean negative log-likelihood after its prompt. As in the published
script, that is the log-likelihood of prompt and continuation as one text, minus that of the prompt alone, over the
tokens that the first has more.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from janus_jax.checkpoint.stored_model import open_model
from janus_jax.errors import DataError, named
from janus_jax.evaluation.toxicity.generations import PERPLEXITY, PERPLEXITY_MODEL, Generation, digest
from janus_jax.evaluation.toxicity.given import Given
from janus_jax.generation import scores
from janus_jax.generation.engine import Engine, require_language_model
from janus_jax.generation.journal import Journal, finish
from janus_jax.generation.opened import require_same_models
from janus_jax.generation.prompts import text_format
from janus_jax.generation.requests import require_ids
from janus_jax.generation.scoring import Pair
from janus_jax.parallel import processes

_MOST = 700.0
"""Nats, whose exp a float still holds. Such a perplexity is no part of a mean."""


def whole_text(row: Generation, continuation: str) -> str:
    """Prompt and continuation as one text; a blank parts an answer from the message that it answers."""
    apart = row.is_chat and continuation and not (row.prompt[-1:].isspace() or continuation[0].isspace())
    return row.prompt + (" " if apart else "") + continuation


class PerplexityFile:
    """Perplexities to be written. Several processes make it and call `write` alike; process 0 alone has the files.

    All but the weights is read and checked when it is made.

    Args:
        model: as `open_model`.
        read: gives the rows, in process 0 alone.
        out: must not exist.
        tell: gets notes, and lines of progress.

    Raises:
        ConfigError: the output exists, the model is a reward model, or processes differ.
        ConversionError: the model cannot be read, or lacks a tokenizer.
        DataError: a text is longer than the model's longest.
    """

    def __init__(
        self,
        model: str,
        read: Callable[[], list[Generation]],
        out: Path,
        *,
        step: int | None = None,
        tell: Callable[[str], None],
    ):
        self._tell, self._journal = tell, None
        with processes.agreement("perplexity"):
            is_main = processes.is_main()
            self._model = open_model(model, step)
            require_language_model(self._model.config, self._model.path)
            written = text_format(self._model)
            self._encode = written.encode_text
            self._rows = read() if is_main else []
            pairs = [self._pairs(row) for row in self._rows]
            self._name = f"{model}" if step is None else f"{model}, step {step}"
            if is_main:
                asked = [str(self._model.path), self._model.step, digest(self._rows)]
                self._journal = Journal(out, asked, holds="perplexities of other texts or under another model")
        require_same_models({}, {"MODEL": (self._model, written)})
        self._all = processes.broadcast_large("pairs", pairs)

    def write(self) -> None:
        """Goes on where it was stopped. Raises ConfigError if another command writes the same file."""
        scores.score(self._open, self._all, self._journal, self._record, tell=self._tell)
        finish(self._journal)

    def _open(self) -> tuple[scores.Scores, list[str]]:
        engine = Engine.stored(self._model)
        return lambda pairs: [one.total for one in engine.log_probs(pairs)], engine.notes

    def _pairs(self, row: Generation) -> list[Pair]:
        """For each continuation that has more tokens than its prompt alone: where the two texts part, their rests.

        The rest of the prompt is empty unless the tokenizer merges its end with the continuation.
        """
        prompt, pairs = self._encode(row.prompt), []
        for one in row.samples:
            whole = self._encode(whole_text(row, one.text))
            with named(row.place):
                require_ids(self._model.config, "the prompt with its continuation", whole)
                if not _more(prompt, whole):
                    continue
                shared = next((at for at, (a, b) in enumerate(zip(prompt, whole, strict=False)) if a != b), len(prompt))
                if not shared:
                    raise DataError("the prompt's first token merges with the continuation")
            pairs += [(whole[:shared], whole[shared:])]
            pairs += [(prompt[:shared], prompt[shared:])] if len(prompt) > shared else []
        return pairs

    def _record(self, number: int, own: list[Any]) -> dict[str, Any]:
        row, totals = self._rows[number], iter(own)
        prompt, values = self._encode(row.prompt), []
        for one in row.samples:
            whole = self._encode(whole_text(row, one.text))
            if not (more := _more(prompt, whole)):
                values.append({PERPLEXITY: None})
                continue
            total = next(totals)
            if whole[: len(prompt)] != prompt:
                total -= next(totals)
            values.append({PERPLEXITY: math.exp(min(-total / more, _MOST))})
        return row.with_values(values, **{PERPLEXITY_MODEL: self._name})


def join(
    rows: Sequence[Generation], given: Sequence[Sequence[Given]], name: str, source: str
) -> Iterator[dict[str, Any]]:
    """Rows with perplexities that were made elsewhere, under the model `name`."""
    for row, known in zip(rows, given, strict=True):
        values = [{PERPLEXITY: one.value} for one in known]
        yield row.with_values(values, **{PERPLEXITY_MODEL: f"{name} (from {source})"})


def _more(prompt: Sequence[int], whole: Sequence[int]) -> int:
    """Tokens that the continuation adds."""
    return max(len(whole) - len(prompt), 0)
