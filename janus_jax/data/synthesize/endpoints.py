"""The endpoints of the steps: their journals, their files for batch APIs, and what all of them may yet spend."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from janus_jax.data.synthesize.config import AskSection, SynthesisConfig
from janus_jax.data.synthesize.files import StepDirectory
from janus_jax.errors import ConfigError, counted, named
from janus_jax.storage.endpoint import Endpoint
from janus_jax.storage.endpoint_batch import BatchEndpoint, JournalEndpoint
from janus_jax.storage.endpoint_journal import ReplyJournal, Spent
from janus_jax.storage.endpoint_requests import BudgetError, access, bound, figure


class Endpoints:
    """Opens the endpoint of a step.

    Args:
        sections: of the configuration, which say how each step asks; by the step's name.
        batch: write requests into files in place of sending them.
        tell: gets notes of the endpoints.
    """

    def __init__(
        self,
        config: SynthesisConfig,
        directories: Mapping[str, StepDirectory],
        sections: Mapping[str, AskSection],
        *,
        batch: bool,
        tell: Callable[[str], None],
    ):
        self._config, self._directories, self._sections = config, directories, sections
        self._batch, self._tell = batch, tell

    def require(self, section: AskSection) -> None:
        """Refuses what an `Endpoint` would, before anything is written."""
        one = self._config.endpoint_of(section)
        with named(f"endpoints.{section.endpoint}"):
            access(one.base_url, None if self._batch else one.key_variable)

    def open(self, directory: StepDirectory) -> Endpoint:
        """That of a step.

        Raises:
            ConfigError: it would send requests while some wait in files of a batch API.
        """
        if self._batch:
            return self.files(directory.name)
        self.require_none_waits(directory.name)
        return self._open(Endpoint, directory.name)

    def files(self, name: str) -> BatchEndpoint:
        """That of the files of a batch API."""
        return self._open(BatchEndpoint, name, directory=self._directories[name].batch)

    def answered(self, directory: StepDirectory, scratch: Path) -> Endpoint:
        """That of a dry run, which knows the journal alone."""
        own = self._directories[directory.name].journal
        journal = own if own.exists() else scratch / f"{directory.name}.replies"
        one = self._config.endpoint_of(self._sections[directory.name])
        return JournalEndpoint(one.base_url, one.model, journal=journal, prices=one.price(), keep_refusals=True)

    def require_none_waits(self, name: str) -> None:
        """Refuses to send requests while some wait in files of a batch API."""
        batch = self._directories[name].batch
        if not any(batch.glob("requests-*.jsonl")):
            return
        with self.files(name) as files:
            waiting = files.outstanding
        if waiting:
            what = f"{counted(waiting, 'request')} without an answer, which would be paid for twice"
            how = "give --answers FILE, go on with --batch, or remove the files if they were not sent"
            raise ConfigError(f"{batch}: has {what}; {how}")

    def by_step(self) -> dict[str, Spent]:
        """What stands in the journals."""
        return {name: self._spent(name) for name in self._sections}

    def spent(self, without: str = "") -> tuple[int, float | None]:
        """Tokens and money of all steps, or of all but one; no money without prices."""
        by_step = {name: self._spent(name) for name in self._sections if name != without}
        moneys = [one.money_at(self._config.endpoint_of(self._sections[name]).price()) for name, one in by_step.items()]
        known = [money for money in moneys if money is not None]
        return sum(one.tokens for one in by_step.values()), sum(known) if known else None

    def poor(self, name: str, error: BudgetError) -> ConfigError:
        """With the limits that bound, and what all steps spent."""
        budget, (tokens, money) = self._config.budget.model_dump(), self.spent()
        spent = {"tokens": tokens, "money": money or 0.0}
        limits = [f"budget.{name} = {figure(name, budget[name])}" for name in error.bounds]
        figures = "; ".join(bound(name, spent[name], *more) for name, (_, *more) in error.bounds.items())
        what = f"the budget may not suffice for the next request of {name}; {figures}; a larger one goes on"
        return ConfigError(", ".join(limits), what)

    def _open(self, kind: Any, name: str, **more: Any) -> Any:
        section, directory, budget = self._sections[name], self._directories[name], self._config.budget
        one, (tokens, money) = self._config.endpoint_of(section), self.spent(name)
        directory.path.mkdir(parents=True, exist_ok=True)
        with named(f"endpoints.{section.endpoint}"):
            return kind(
                one.base_url,
                one.model,
                journal=directory.journal,
                key_variable=one.key_variable,
                concurrent=one.concurrent,
                requests_a_minute=one.requests_a_minute,
                tokens_a_minute=one.tokens_a_minute,
                token_budget=None if budget.tokens is None else max(0, budget.tokens - tokens),
                money_budget=None if budget.money is None else max(0.0, budget.money - (money or 0.0)),
                prices=one.price(),
                timeout_s=one.timeout_s,
                tries=one.tries,
                keep_refusals=True,
                tell=self._tell,
                **more,
            )

    def _spent(self, name: str) -> Spent:
        path = self._directories[name].journal
        if not path.exists():
            return Spent()
        journal = ReplyJournal(path)
        journal.close()
        return journal.spent
