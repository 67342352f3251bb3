"""What a step works with: the configuration, rows of the steps before it, a writer, and a model that it may ask."""

import contextlib
import dataclasses
import functools
import itertools
from collections.abc import Callable, Container, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from janus_jax.data.build.beam.runner import Runner
from janus_jax.data.synthesize import gates, structured
from janus_jax.data.synthesize.asking import CHUNK, Compare, Item, Outcome, Reader, Rejected, ask
from janus_jax.data.synthesize.config import AskSection, SynthesisConfig
from janus_jax.data.synthesize.files import StepDirectory, Writer, summary
from janus_jax.data.synthesize.prompts import Prompt, read_prompt
from janus_jax.errors import ConfigError, counted
from janus_jax.storage.endpoint import Endpoint
from janus_jax.storage.endpoint_batch import BatchEndpoint, JournalEndpoint
from janus_jax.storage.endpoint_errors import NoCompletionError, RefusedOptionError, RefusedRequestError
from janus_jax.storage.endpoint_requests import UnreachableError

EXPECTED = {"hierarchy": 500, "systems": 230, "responses": 520, "rubrics": 300}
"""Tokens of an answer, about: of the Multifaceted Collection where they are known."""


@dataclasses.dataclass
class Planned:
    """What a step would ask for."""

    step: str
    requests: int = 0
    in_journal: int = 0
    prompt_tokens: int = 0
    """About."""
    completion_tokens: int = 0
    """About."""
    most_tokens: int = 0
    """Of prompts and answers, if every answer is as long as it may be."""
    money: float | None = None
    """About; None: the prices are unknown."""
    most_money: float | None = None

    @classmethod
    def total(cls, planned: "Sequence[Planned]") -> "Planned":
        """Of several steps; money that is unknown for one of them that asks is unknown."""
        total = cls("all")
        for name in (field.name for field in dataclasses.fields(cls)[1:]):
            values = [getattr(one, name) for one in planned if one.requests or "money" not in name]
            setattr(total, name, None if None in values else sum(values))
        return total


class Stage:
    """The context of one step.

    Args:
        opened: gives the endpoint of a section, with the journal of this step; called when it is first needed.
        limit: only so many instructions.
        runner: reads the records of instructions on Apache Beam; None: this process does.
        processes: worker processes of the direct runner.
        dry: of a dry run; its files are removed at the end.
        unfinished: of a dry run: steps whose rows are not all there.
        earlier: rows that an earlier run made; None: they are in the step's directory.
    """

    def __init__(
        self,
        config: SynthesisConfig,
        directories: dict[str, StepDirectory],
        name: str,
        *,
        opened: Callable[[AskSection, StepDirectory], Endpoint],
        tell: Callable[[str], None],
        limit: int | None = None,
        runner: Runner | None = None,
        processes: int = 1,
        dry: bool = False,
        unfinished: Container[str] = (),
        earlier: StepDirectory | None = None,
    ):
        self.config, self.limit, self.tell = config, limit, tell
        self.runner, self.processes, self.dry, self.unfinished = runner, processes, dry, unfinished
        self.directory, self._directories = directories[name], directories
        self.earlier = earlier or self.directory
        self.planned = Planned(name)
        self.waiting = self.unanswered = 0
        self.notes: list[str] = []
        self._opened, self._endpoint = opened, None
        self._writer: Writer | None = None
        self._prompts: dict[str, Prompt] = {}
        self._done = self._texts = 0

    @property
    def writer(self) -> Writer:
        if self._writer is None:
            self._writer = Writer(self.directory)
        return self._writer

    def rows(self, step: str) -> Iterator[dict[str, Any]]:
        """The rows of another step."""
        return self._directories[step].rows()

    def edited(self, step: str) -> StepDirectory | None:
        """Another step, if a person changed its rows."""
        directory = self._directories[step]
        return directory if directory.is_edited() else None

    def has(self, step: str) -> bool:
        """Whether another step has ended."""
        return bool(self._directories[step].facts())

    def summary(self, step: str) -> str:
        """What another step made and left out."""
        return summary(step, self._directories[step].facts())

    def prompt(self, name: str) -> Prompt:
        if name not in self._prompts:
            self._prompts[name] = read_prompt(name, self.config.prompts)
        return self._prompts[name]

    def note(self, text: str) -> None:
        """Says something about the result; step.json keeps it."""
        self.notes.append(text)
        self.tell(f"note: {text}")

    # Asking

    def seed_of(self, section: AskSection) -> int | None:
        """The seed of requests; None: none is sent."""
        return self.config.seed if self.config.endpoint_of(section).seed else None

    def options(self, section: AskSection) -> dict[str, Any]:
        """Of every request of a section."""
        values = {"temperature": section.temperature, "top_p": section.top_p, "seed": self.seed_of(section)}
        sent = {name: value for name, value in values.items() if value is not None}
        return sent | {self.config.endpoint_of(section).token_limit: section.max_tokens}

    def asks(self, section: AskSection, prompts: Sequence[str]) -> dict[str, Any]:
        """What decides the answers, for step.json."""
        endpoint = self.config.endpoint_of(section)
        if (repair := self.prompt("repair")) != read_prompt("repair"):
            prompts = [*prompts, repair.digest]
        how = {"base_url": endpoint.base_url, "model": endpoint.model, "structured": endpoint.structured}
        return how | {"options": self.options(section), "asks": section.asks, "prompts": list(prompts)}

    def ask(
        self,
        section: AskSection,
        items: Iterable[Item],
        read: Reader,
        *,
        form: type[structured.Answer] | None = None,
        compare: Compare | None = None,
    ) -> Iterator[Outcome]:
        """The outcome of each item, in order; answers that did not pass are counted.

        Raises:
            ConfigError, StorageError: of the endpoint; what it answered is in the journal.
        """
        iterator = iter(items)
        if (first := next(iterator, None)) is None:
            return
        endpoint = self._endpoint = self._endpoint or self._opened(section, self.directory)
        with _named_options(section, self.directory.name):
            for outcome in ask(
                endpoint,
                itertools.chain([first], iterator),
                read,
                asks=section.asks,
                options=self.options(section),
                formats=self._formats(section, form),
                compare=compare,
                notes=functools.partial(self._notes, form),
            ):
                self.waiting += outcome.waiting
                for reason, _ in outcome.rejections:
                    self.writer.rejected[reason] += 1
                self._done += 1
                self._texts += outcome.value is not None
                if self._done % CHUNK == 0:
                    self._tell_of_progress(endpoint)
                yield outcome
        if self._done % CHUNK:
            self._tell_of_progress(endpoint)

    def _notes(self, form: type[structured.Answer] | None, gate: str, detail: str) -> Sequence[tuple[str, str]]:
        """As `ask` takes them. Older versions sent no notes, and took a refusal in place of JSON for bad JSON."""
        named = [(gate, detail), ("", ""), *([("bad_json", "")] if form is not None and gate == "refusal" else [])]
        faults = [(name, gates.fault(name, detail)) for name, detail in named]
        repair = self.prompt("repair")
        return [
            (name, repair.fill(fault=fault)[0]["content"]) if fault else ("", "")
            for name, fault in faults
            if fault or not name
        ]

    def _tell_of_progress(self, endpoint: Endpoint) -> None:
        if self.dry or (isinstance(endpoint, BatchEndpoint) and not self._texts):
            return  # nothing was asked
        texts, spent = counted(self._texts, "text"), endpoint.usage.tokens
        self.tell(f"{self.directory.name}: {texts} so far, {spent:,} tokens spent")

    def provenance(self, section: AskSection, outcome: Outcome, prompts: str = "") -> dict[str, Any]:
        """Where an accepted answer comes from. Args: prompts: digest of its prompt; empty: it had none of ours."""
        return outcome.provenance(prompts, self.seed_of(section), self.prompt("repair").digest)

    def failed(self, outcome: Outcome, **what: Any) -> None:
        """Counts an item without an accepted answer."""
        if outcome.waiting:
            return
        if outcome.unanswered and not self.unanswered:
            self.note(f"{self.directory.name}: a request got no answer: {outcome.unanswered}")
        self.unanswered += bool(outcome.unanswered)
        detail = outcome.unanswered or "; ".join(f"{gate}: {detail}" for gate, detail in outcome.rejections)
        self.writer.drop(outcome.reason, **what, detail=detail)

    def _formats(self, section: AskSection, form: type[structured.Answer] | None) -> Sequence[dict[str, Any]]:
        if form is None:
            return ({},)
        chosen = self.config.endpoint_of(section).structured
        modes = ("json_schema", "json_object", "none") if chosen == "auto" else (chosen,)
        return [structured.response_format(form, mode) for mode in modes]

    def plan_asked(self, section: AskSection, *, left: bool = True) -> None:
        """Adds the requests of a dry run's `ask`: those that the journal answered, and those that would be sent.

        Args:
            left: also the second ones.
        """
        if isinstance(self._endpoint, JournalEndpoint):
            asked = self._endpoint.counts()
            self.planned.in_journal += asked.in_journal
            if left:
                self._add(section, asked.requests, asked.prompt_tokens, asked.most_prompt)

    def plan(self, section: AskSection, items: Iterable[Item], times: int | None = None) -> None:
        """Adds requests for texts that depend on others, which are not written yet, to what the step would ask for.

        Args:
            times: so many requests like the items; None: the items themselves.
        """
        endpoint = self._endpoint = self._endpoint or self._opened(section, self.directory)
        requests = in_journal = prompt = most = 0
        options = self.options(section)
        iterator = iter(items)
        while chunk := list(itertools.islice(iterator, CHUNK)):
            estimate = endpoint.estimate([one.messages for one in chunk], **options)
            requests, in_journal = requests + estimate.requests, in_journal + estimate.in_journal
            prompt, most = prompt + estimate.prompt_tokens, most + estimate.most_prompt
        if times is not None:
            # requests in the journal are of answers that `times` does not know of
            scale = times / requests if requests else 0.0
            prompt, most = round(prompt * scale), round(most * scale)
            requests, in_journal = times if scale else 0, 0
        self.planned.in_journal += in_journal
        self._add(section, requests, prompt, most)

    def _add(self, section: AskSection, requests: int, prompt: int, most: int) -> None:
        answers = requests * min(section.max_tokens, EXPECTED[self.directory.name])
        longest = requests * section.max_tokens
        planned, prices = self.planned, self.config.endpoint_of(section).price()
        planned.requests += requests
        planned.prompt_tokens += prompt
        planned.completion_tokens += answers
        planned.most_tokens += most + longest
        if prices is not None:
            planned.money = (planned.money or 0.0) + prices.cost(prompt, answers)
            planned.most_money = (planned.most_money or 0.0) + prices.cost(most, longest)

    def close(self) -> None:
        """Lets the journal go, and puts batch files in place."""
        if self._endpoint is not None:
            self._endpoint.close()

    @property
    def usage(self) -> dict[str, int]:
        """Tokens in the journal of this step."""
        if self._endpoint is None:
            return {}
        usage = self._endpoint.usage
        return {"prompt_tokens": usage.prompt_tokens, "completion_tokens": usage.completion_tokens}

    @property
    def batch_files(self) -> tuple[dict[str, int], list[Path]]:
        """Answers to come by the name of their batch file, and the files of this process."""
        if not isinstance(self._endpoint, BatchEndpoint):
            return {}, []
        return dict(sorted(self._endpoint.waits.items())), self._endpoint.written


def require_whole(reply: Any) -> None:
    """Raises Rejected for an answer that is cut, filtered or empty."""
    if reply.finish_reason == "length":
        raise Rejected("truncated", f"{reply.completion_tokens} tokens")
    if reply.finish_reason == "content_filter":
        raise Rejected("refusal", "content_filter")
    if not reply.text.strip():
        raise Rejected("empty")


@contextlib.contextmanager
def _named_options(section: AskSection, step: str) -> Iterator[None]:
    """Names keys of the configuration in errors of an endpoint."""
    where = f"endpoints.{section.endpoint}"
    try:
        yield
    except UnreachableError as error:
        raise UnreachableError(f"{where}.base_url", f"{error}; what was answered is kept") from error
    except NoCompletionError as error:
        error.args = (f"{where}.base_url", *error.args)
        raise
    except RefusedRequestError as error:
        keys = {"key": f"{where}.key_variable", "model": f"{where}.model, {where}.base_url"}
        error.args = (keys.get(error.about, where), *error.args)
        raise
    except RefusedOptionError as error:
        keys = {
            "seed": f"{where}.seed: false",
            "temperature": f"{step}.temperature: null",
            "top_p": f"{step}.top_p: null",
            "max_tokens": f"{where}.token_limit: max_completion_tokens",
            "max_completion_tokens": f"{where}.token_limit: max_tokens",
            "response_format": f"{where}.structured: json_object, or none,",
        }
        if (key := keys.get(error.option)) is None:
            error.args = (where, *error.args)
            raise
        raise ConfigError(f"{error}; {key} is for such an endpoint") from error
