"""From prompts to a file of answers, the best ones first if a reward model scores them: `janus generate`."""

import dataclasses
import gc
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

from janus_jax.checkpoint.stored_model import StoredModel, open_model
from janus_jax.errors import named
from janus_jax.generation import best_of, memory
from janus_jax.generation.answers import answer
from janus_jax.generation.engine import require_language_model
from janus_jax.generation.journal import Journal, begin, finish
from janus_jax.generation.opened import ignored_settings, open_engine, require_same_models
from janus_jax.generation.prompt_file import PromptRow, notes
from janus_jax.generation.prompts import prompt_format, text_format
from janus_jax.generation.requests import AnswerOptions, check
from janus_jax.generation.scores import RewardScorer
from janus_jax.parallel import processes


class AnswerFile:
    """Answers to be written. Several processes make it and call `write` alike; process 0 alone has the files.

    All but the weights is read and checked when it is made.

    Args:
        model: as `open_model`.
        read: gives the prompts, in process 0 alone, and counts columns that are no part of them.
        out: the file of answers, which must not exist.
        template: of `model`, if its files name none.
        reward: a reward model, which chooses the best answer; as `open_model`.
        reward_template: as `template`.
        tell: gets notes, and lines of progress.

    Raises:
        ConfigError: an output exists, a model is of the wrong kind, the cache does not fit, or processes differ.
        ConversionError: a model cannot be read, or lacks tokenizer or template.
        DataError: "FILE:LINE: ..." for a prompt that cannot be answered.
    """

    def __init__(
        self,
        model: str,
        read: Callable[[Counter[str]], list[PromptRow]],
        out: Path,
        options: AnswerOptions,
        *,
        step: int | None = None,
        template: str | None = None,
        reward: str | None = None,
        reward_template: str | None = None,
        tell: Callable[[str], None],
    ):
        self._options, self._tell = options, tell
        self._journal = self._scored = self._scorer = None
        unread: Counter[str] = Counter()
        with processes.agreement("generate"):
            is_main = processes.is_main()
            self._rows = read(unread) if is_main else []
            self._model = open_model(model, step)
            require_language_model(self._model.config, self._model.path)
            self._written = text_format(self._model) if options.continues else prompt_format(self._model, template)
            ids = [self._ids(number) for number in range(len(self._rows))]
            asked = [*_named(self._model), dataclasses.asdict(options) | {"rows": None}, ids]
            if is_main:
                self._journal = Journal(out, asked)
            if reward is not None:
                with named("--reward"):
                    self._scorer = RewardScorer(open_model(reward), reward_template)
                best_of.require_readable(self._scorer, self._rows)
                asked += _named(self._scorer.stored)
                if is_main:
                    out = out.with_name(f"{out.name}.rewards")
                    self._scored = Journal(out, asked, holds="rewards of other answers")
        models = {"MODEL": (self._model, self._written)}
        if self._scorer is not None:
            models["--reward"] = (self._scorer.stored, self._scorer.written)
        require_same_models(_flat(options), models)
        ids = processes.broadcast_large("prompts", ids)
        self._requests = [options.request(number, own) for number, own in enumerate(ids)]
        self._note(unread)
        self._at_once = min(options.rows, options.n * len(ids))
        with processes.agreement("memory"):
            config, rows = self._model.config, f"--rows {self._at_once}"
            memory.require_for(config, self._requests, self._at_once, rows, cache_dtype=options.cache_dtype)

    def write(self) -> list[str]:
        """Answers, and scores the answers; goes on where it was stopped.

        Returns:
            The curve of rewards in lines, if a reward model chooses.

        Raises:
            ConfigError: another command writes the same file.
        """
        self._answer()
        if self._scorer is None:
            finish(self._journal)
            return []
        gc.collect()  # what cycles of references hold of the engine
        count = len(self._requests)
        return best_of.choose(self._scorer, self._journal, self._scored, rows=count, tell=self._tell)

    def _answer(self) -> None:
        """Its engine, weights and cache, is freed at the end."""
        options, tell = self._options, self._tell
        if left := begin(self._journal, len(self._requests), "prompts are answered", tell):
            dtype = options.cache_dtype
            engine = open_engine(self._model, self._written, rows=self._at_once, cache_dtype=dtype)
            for note in engine.notes:
                tell(f"note: {note}")
            answer(engine, self._rows, self._requests, left, self._journal, log_probs=options.log_probs, tell=tell)

    def _ids(self, number: int) -> list[int]:
        row = self._rows[number]
        with named(row.place):
            if self._options.continues:
                ids = self._written.encode_text(row.messages[-1]["content"])
            else:
                ids = self._written.encode(row.messages)
        check(self._model.config, row.place, self._options.request(number, ids))
        return ids

    def _note(self, unread: Counter[str]) -> None:
        for note in notes(self._rows, unread):
            self._tell(f"note: {note}")
        if settings := ignored_settings(self._model, self._options.sampling):
            self._tell(f"note: the model's generation_config.json names {settings}; only the options count here")


def _named(model: StoredModel) -> list[Any]:
    return [str(model.path), model.step]


def _flat(options: AnswerOptions) -> dict[str, Any]:
    """Option of the command -> value."""
    values = dataclasses.asdict(options)
    values |= values.pop("sampling") | values.pop("stopping")
    return {f"--{name.replace('_', '-')}": value for name, value in values.items()}
