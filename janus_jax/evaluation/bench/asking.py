"""Verdicts of a judge: its prompts, and replies asked for again until they can be read."""

import dataclasses
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from janus_jax.errors import ConfigError
from janus_jax.evaluation.bench.judgements import NOT_ASKED
from janus_jax.evaluation.bench.rows import digest
from janus_jax.generation.progress import Progress
from janus_jax.storage.endpoint import Endpoint
from janus_jax.storage.endpoint_requests import Messages, Reply

OWN = Path(__file__).parent / "prompts"
PLACEHOLDERS = {
    "absolute": ("instruction", "response", "reference_answer", "rubric"),
    "pairwise": ("instruction", "response_a", "response_b", "reference_answer", "rubric"),
}
"""Kind of judgement -> what its prompt is filled with. It needs those that begin with `response`, and the rubric."""


@dataclasses.dataclass(frozen=True)
class Prompts:
    """What a judge is asked, as files of text; `{name}` stands for what is filled in."""

    kind: str
    system: str
    task: str

    @property
    def digest(self) -> str:
        return digest([self.system, self.task])

    def fill(self, **values: str) -> Messages:
        """Messages for the judge. Braces in the values stay as they are."""
        names = "|".join(PLACEHOLDERS[self.kind])
        task = re.sub(rf"\{{({names})\}}", lambda match: values[match[1]], self.task)
        system = [{"role": "system", "content": self.system}] if self.system else []
        return [*system, {"role": "user", "content": task}]


def read_prompts(kind: str, directory: Path | None = None) -> Prompts:
    """The prompts KIND_system.txt and KIND.txt of a directory, by default our own.

    Raises:
        ConfigError: a file cannot be read, is empty, or lacks a placeholder.
    """
    texts = []
    for name in (f"{kind}_system.txt", f"{kind}.txt"):
        path = (directory or OWN) / name
        try:
            texts.append(path.read_text(encoding="utf-8").strip())
        except (OSError, UnicodeDecodeError) as error:
            why = error.strerror if isinstance(error, OSError) else "not UTF-8"
            raise ConfigError(f"--prompts {directory}", f"{path}: cannot be read: {why}") from error
    system, task = texts
    for name in PLACEHOLDERS[kind]:
        if (name.startswith("response") or name == "rubric") and f"{{{name}}}" not in task:
            raise ConfigError(f"--prompts {directory}", f"{directory}/{kind}.txt has no {{{name}}}, which it needs")
    return Prompts(kind, system, task)


@dataclasses.dataclass
class Outcome:
    """What came of one verdict, after one reply or several."""

    value: Any = None
    """None: there is no verdict, as `reason` says."""
    reason: str = NOT_ASKED
    text: str = ""
    """The last reply."""
    asked: int = 0
    """Replies with a text, the last one included."""
    prompt_tokens: int = 0
    completion_tokens: int = 0

    def add(self, reply: Reply, read: Callable[[Reply], Any]) -> None:
        self.prompt_tokens += reply.prompt_tokens
        self.completion_tokens += reply.completion_tokens
        if reply.text is None:
            self.reason = reply.failure
            return
        self.asked, self.text = self.asked + 1, reply.text
        self.value = read(reply)
        replies = "reply" if self.asked == 1 else "replies"
        cut = ", cut by max_tokens" if reply.finish_reason == "length" else ""
        self.reason = "" if self.value is not None else f"no verdict in {self.asked} {replies}{cut}"


Item = tuple[int, int]
"""Number of a conversation, and of a run."""


def ask(
    endpoint: Endpoint,
    conversations: Sequence[Messages],
    outcomes: dict[Item, Outcome],
    read: Callable[[Reply], Any],
    *,
    runs: int,
    asks: int,
    before: Mapping[Item, int],
    tell: Callable[[str], None],
    **options: Any,
) -> None:
    """Fills `outcomes` with the verdict of each run on each conversation.

    A reply that `read` cannot read is asked for again, as another sample. A request that the endpoint does not answer
    is not, in this call.

    Args:
        read: the verdict in a reply, or None. The reply has the number of its conversation.
        asks: most replies asked for a verdict, beyond those of `before`.
        before: replies that earlier calls asked for in vain; the journal has them.
        options: of requests.

    Raises:
        ConfigError, StorageError: of the endpoint. What it has answered is in `outcomes`.
    """
    items = [(place, run) for place in range(len(conversations)) for run in range(runs)]
    outcomes.update((item, Outcome()) for item in items)
    ended, progress = 0, Progress(len(outcomes), "verdicts", "tokens", tell)
    for attempt in range(asks + max(before.values(), default=0)):
        for run, reply in _replies(endpoint, conversations, items, runs, attempt, options):
            outcome = outcomes[reply.place, run]
            outcome.add(reply, read)
            ended += outcome.value is not None
            progress(ended, endpoint.usage.tokens)
        items = [
            item
            for item in items
            if outcomes[item].value is None
            and outcomes[item].asked == attempt + 1
            and attempt + 1 < asks + before.get(item, 0)
        ]
        if not items:
            break


def _replies(
    endpoint: Endpoint,
    conversations: Sequence[Messages],
    items: Sequence[Item],
    runs: int,
    attempt: int,
    options: Mapping[str, Any],
) -> Iterator[tuple[int, Reply]]:
    """(run, reply) of all items."""
    if attempt == 0:  # all runs at the same time
        for reply in endpoint.complete(conversations, samples=runs, **options):
            yield reply.sample, reply
        return
    for run in range(runs):
        places = [place for place, other in items if other == run]
        again = [conversations[place] for place in places]
        for reply in endpoint.complete(again, first_sample=attempt * runs + run, **options):
            yield run, reply._replace(place=places[reply.place])
