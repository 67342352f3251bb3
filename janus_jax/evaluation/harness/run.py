"""Tasks of lm-evaluation-harness on a stored model, on all hosts: `janus eval`."""

import dataclasses
import gc
import hashlib
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from janus_jax.checkpoint.same_weights import file_facts, require_same_weights
from janus_jax.checkpoint.stored_model import open_model
from janus_jax.errors import ConfigError, DataError, JanusError, first_line
from janus_jax.evaluation.harness.texts import Texts
from janus_jax.evaluation.harness.together import Together
from janus_jax.evaluation.result_table import Table
from janus_jax.generation import memory
from janus_jax.generation.engine import Engine, require_language_model
from janus_jax.generation.journal import Journal
from janus_jax.parallel import processes
from janus_jax.parallel.same_everywhere import require_same

if TYPE_CHECKING:
    from janus_jax.evaluation.harness.lm import JanusLM
    from janus_jax.evaluation.harness.tasks import Tasks

_LONGEST_S = 24 * 3600
"""How long other processes wait while process 0 fetches data, reads requests, or computes metrics. A lost process is
noticed much earlier."""


@dataclasses.dataclass(frozen=True)
class HarnessOptions:
    """What is asked, and how."""

    tasks: Sequence[str] = ()
    social_bias: bool = False
    """The table of social bias, instead of `tasks`."""
    limit: int | None = None
    """Documents of each task, the first ones."""
    data_dir: str | None = None
    """Local files of all tasks, or a gs:// URL of them; None: the Hugging Face hub."""
    num_fewshot: int | None = None
    chat: bool = False
    """Prompts are conversations in the model's template."""
    multiturn: bool = True
    """With `chat`, examples are turns of the conversation."""
    system: str | None = None
    seed: int = 0
    rows: int = 32
    """Texts that grow at the same time."""
    max_new_tokens: int | None = None
    """Of a text; None: as each task has it."""


class Evaluation:
    """An evaluation to be run. Several processes make it and call `run` alike; process 0 alone has tasks and files.

    All but the weights is read and checked when it is made.

    Args:
        model: as `open_model`.
        out: directory of results and of what was scored so far; None: nothing is kept.
        template: of `model`, if its files name none.
        tell: gets notes, and lines of progress.

    Raises:
        ConfigError: a task is unknown or not supported, the cache does not fit, or processes differ.
        ConversionError: the model cannot be read, or lacks tokenizer or template.
        DataError: data of a task are missing, or a request cannot be asked.
    """

    def __init__(
        self,
        model: str,
        options: HarnessOptions,
        out: Path | None,
        *,
        step: int | None = None,
        template: str | None = None,
        tell: Callable[[str], None],
    ):
        self.options, self._out, self._tell = options, out, tell
        self._lm: JanusLM | None = None
        self._tasks: Tasks | None = None
        self._journal: Journal | None = None
        with processes.agreement("eval", _LONGEST_S):
            self.model = open_model(model, step)
            require_language_model(self.model.config, self.model.path)
            self._texts = Texts(self.model, chat=options.chat, template=template)
            if processes.is_main():
                self._prepare()
        facts = dataclasses.asdict(options) | {"data_dir": None, "model.step": self.model.step}
        facts |= {"tokenizer": self._texts.own.fingerprint[:16], "end tokens": self._texts.stop_ids}
        facts |= {f"model.{key}": str(value) for key, value in dataclasses.asdict(self.model.config).items()}
        require_same("options or models", facts)
        require_same_weights({"MODEL": self.model})
        items = [] if self._lm is None else self._lm.items
        requests = [item.request for item in items if item.request is not None]
        self._length = processes.broadcast(
            "length", memory.longest_row(self.model.config, requests, _STEPS) if requests else 0
        )
        self._rows = processes.broadcast("rows", max(1, min(options.rows, len(requests))))
        with processes.agreement("memory"):
            if requests:
                memory.require_for(self.model.config, requests, self._rows, f"--rows {self._rows}", steps=_STEPS)
            memory.require_to_score(self.model.config, self.model.path)

    def _prepare(self) -> None:
        """Loads tasks and data, and reads all requests."""
        from janus_jax.evaluation.harness import social_bias
        from janus_jax.evaluation.harness.lm import JanusLM
        from janus_jax.evaluation.harness.results import build_requests
        from janus_jax.evaluation.harness.tasks import Tasks, local_directory

        options = self.options
        data_dir = None if options.data_dir is None else local_directory(options.data_dir)
        names = social_bias.names(data_dir) if options.social_bias else options.tasks
        with tempfile.TemporaryDirectory(prefix="janus.eval.") as made:
            self._tasks = tasks = Tasks(names, data_dir, Path(made), options.num_fewshot)
        self._lm = lm = JanusLM(self._texts, self.model.config.max_position_embeddings, options.seed)
        build_requests(tasks, lm, options)
        lm.prepare(instance for task in tasks.tasks.values() for instance in task.instances)
        if self._out is not None:
            self._out.mkdir(parents=True, exist_ok=True)
            asked = [str(self.model.path), self.model.step, file_facts(self.model), _digest(lm)]
            what = "answers to other requests, of another model or of other options"
            self._journal = Journal(self._out / "requests", asked, holds=what)
        for note, count in self.notes.items():
            self._tell(f"note: {note} ({count:,} times)")

    @property
    def notes(self) -> dict[str, int]:
        """What was read in another way than it stands, and how often. Of process 0."""
        return {} if self._lm is None else dict(self._lm.notes + self._texts.notes)

    def run(self) -> Table | None:
        """Scores and writes, and keeps the results; goes on where it was stopped.

        Returns:
            The table, in process 0.

        Raises:
            ConfigError: another command writes into the same directory.
        """
        with processes.agreement("journal"):
            if self._journal is not None:
                self._journal.open()
        engine = Engine.stored(
            self.model, rows=self._rows, steps_per_call=_STEPS, stop_ids=self._texts.stop_ids, tokenizer=self._texts.own
        )
        for note in engine.notes:
            self._tell(f"note: {note}")
        together, table = Together(engine, self._length), None
        del engine
        with processes.agreement("results", _LONGEST_S):
            if self._lm is None:
                together.follow()
            else:
                try:
                    table = self._evaluated(self._lm, together)
                finally:
                    together.finish()
        gc.collect()
        return table

    def _evaluated(self, lm: "JanusLM", together: Together) -> Table:
        from janus_jax.evaluation.harness import results, social_bias

        assert self._tasks is not None
        if self._journal is not None and (done := len(self._journal.done)):
            self._tell(f"{done:,} of {len(lm.items):,} requests are answered in {self._journal.path}")
        lm.begin(together, self._journal, self._tell)
        try:
            outcome = results.evaluate(self._tasks, lm, self.options)
        except (JanusError, MemoryError):
            raise
        except (KeyError, TypeError, ValueError, IndexError, AttributeError) as error:
            names = ", ".join(self._tasks.tasks)
            raise DataError(f"tasks {names}", f"lm_eval fails: {type(error).__name__}: {first_line(error)}") from error
        samples = outcome["samples"]
        facts = {"model": str(self.model.path), "step": self.model.step}
        build = social_bias.table if self.options.social_bias else results.table
        table = build(self._tasks, outcome, facts, self.options, self.notes)
        if self._out is not None:
            results.save(self._out, outcome, samples, self.model, lm, self.options)
            if self._journal is not None:
                self._journal.discard()
        return table


_STEPS = 16
"""Tokens that a row gets before the host looks at it."""


def _digest(lm: "JanusLM") -> str:
    """Of all that is asked."""
    digest = hashlib.sha256()
    for item in lm.items:
        digest.update(repr((item.pairs, item.request, item.until)).encode("utf-8", "surrogatepass"))
    return digest.hexdigest()


def require_installed() -> None:
    """Raises ConfigError if lm-evaluation-harness is not installed."""
    import importlib.util

    if importlib.util.find_spec("lm_eval") is None:
        raise ConfigError("janus eval needs lm_eval (lm-evaluation-harness): pip install 'janus_jax[eval]'")
