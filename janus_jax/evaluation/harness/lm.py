"""A stored model as the language model of lm-evaluation-harness. Imports that package (extra `eval`)."""

import dataclasses
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

from lm_eval.api.instance import Instance
from lm_eval.api.model import TemplateLM
from lm_eval.models.utils import normalize_gen_kwargs, postprocess_generated_text
from lm_eval.utils import get_rolling_token_windows, make_disjoint_window

from janus_jax.errors import ConfigError, DataError, named
from janus_jax.evaluation.harness.texts import Texts
from janus_jax.evaluation.harness.together import Together
from janus_jax.generation.journal import Journal
from janus_jax.generation.progress import Progress
from janus_jax.generation.requests import Request
from janus_jax.generation.sampling import SamplingOptions
from janus_jax.generation.scoring import Pair
from janus_jax.generation.stopping import StoppingOptions

_TOKENS_AT_ONCE = 1 << 14
"""Of texts that are scored together, for each shard of rows: a full call, and few enough that a kill costs little."""
_TEXTS_AT_ONCE = 4096
_NEW_TOKENS = 256
"""Of a text, where a task does not say; as `--model hf` has it."""
_SAMPLING = ("temperature", "top_k", "top_p", "min_p", "repetition_penalty")
_HARMLESS = {"num_beams": 1, "num_return_sequences": 1, "use_cache": True, "remove_invalid_values": True}


@dataclasses.dataclass(frozen=True)
class Item:
    """A request of the harness as ids."""

    pairs: list[Pair]
    """To score: one, or several windows of a text."""
    request: Request | None = None
    """To generate from."""
    until: list[str] = dataclasses.field(default_factory=list)


class JanusLM(TemplateLM):
    """Scores and writes with an engine. In process 0 alone, which says to the others what to compute.

    Args:
        longest: tokens of the model's longest text.
        seed: of what a task samples.
    """

    def __init__(self, texts: Texts, longest: int, seed: int = 0):
        super().__init__()
        self.texts, self.max_length, self._seed = texts, longest, seed
        self.tokenizer: Any = texts.hf
        self.notes: Counter[str] = Counter()
        self.items: list[Item] = []
        """What was prepared, in the order in which the harness asks."""
        self._order: list[int] = []
        self._at = 0

    # What the harness asks of every model

    @property
    def eot_token_id(self) -> int:
        return self.texts.own.eos_id

    @property
    def prefix_token_id(self) -> int:
        return self.texts.prefix_id

    @property
    def tokenizer_name(self) -> str:
        return self.texts.own.fingerprint

    def tok_encode(self, string: str, add_special_tokens: bool | None = None, **_: Any) -> list[int]:
        return self.texts.encode(string, add_special_tokens)

    def chat_template(self, chat_template: bool | str = False) -> str | None:
        return self.texts.chat.template if chat_template and self.texts.chat is not None else None

    def apply_chat_template(self, chat_history: list[dict[str, str]], add_generation_prompt: bool = True) -> str:
        return self.texts.written(chat_history)

    def loglikelihood(self, requests: list[Instance], disable_tqdm: bool = False) -> list[tuple[float, bool]]:
        return [(total, greedy) for total, greedy in self._answers(requests)]

    def loglikelihood_rolling(self, requests: list[Instance], disable_tqdm: bool = False) -> list[float]:
        return self._answers(requests)

    def generate_until(self, requests: list[Instance], disable_tqdm: bool = False) -> list[str]:
        return self._answers(requests)

    def _loglikelihood_tokens(self, requests: Any, **_: Any) -> list[tuple[float, bool]]:
        pairs = [self._fitting(context, continuation) for _, context, continuation in requests]
        return self._together.score(pairs)

    # Requests, read before weights are

    def prepare(self, instances: Iterable[Instance]) -> None:
        """Reads requests in the order in which the harness will ask.

        Raises:
            DataError: one cannot be asked; it names task and document.
        """
        kinds: dict[str, list[Instance]] = {}
        for instance in instances:
            kinds.setdefault(instance.request_type, []).append(instance)
        for kind, own in kinds.items():
            read = {"loglikelihood": self._scored, "loglikelihood_rolling": self._rolled}.get(kind, self._generated)
            for instance in own:
                with named(f"task {instance.task_name}, document {instance.doc_id}"):
                    item = read(instance)
                for _ in range(instance.repeats or 1):
                    request = item.request and dataclasses.replace(item.request, name=len(self.items))
                    self.items.append(dataclasses.replace(item, request=request))
                    self._order.append(id(instance))

    def _scored(self, instance: Instance) -> Item:
        return Item([self._fitting(*self.texts.pair(*instance.args))])

    def _rolled(self, instance: Instance) -> Item:
        ids = self.texts.encode(instance.args[0])
        windows = get_rolling_token_windows(ids, self.prefix_token_id, self.max_length, 1)
        pairs = [self._fitting(*make_disjoint_window(window)) for window in windows]
        return Item(pairs)

    def _generated(self, instance: Instance) -> Item:
        arguments: Any = instance.args
        context, given = arguments[0], dict(arguments[1])
        options: dict[str, Any] = {**normalize_gen_kwargs(given, _NEW_TOKENS)}
        new, until = int(options.pop("max_gen_toks")), [text for text in options.pop("until") or [] if text]
        until.append(self.texts.hf.decode(self.eot_token_id))
        if not options.pop("do_sample"):
            options.update(temperature=0.0)
        sampling = {name: options.pop(name) for name in _SAMPLING if options.get(name) is not None}
        unknown = [f"{name}={value}" for name, value in options.items() if _HARMLESS.get(name, options) != value]
        unknown = [text for text in unknown if not text.endswith("=None")]
        if unknown:
            raise ConfigError(f"generation_kwargs has {', '.join(unknown)}, which janus eval does not have")
        room = self.max_length - new
        if room < 1:
            raise ConfigError(
                f"asks for {new:,} new tokens; allowed: at most {self.max_length - 1:,} (the model's longest text is "
                f"{self.max_length:,}); set it with --max-new-tokens"
            )
        ids = self._cut(self.texts.context(context), room, "prompts")
        stopping = StoppingOptions(new, stop=tuple(until))
        request = Request(ids, stopping=stopping, sampling=SamplingOptions(**sampling), seed=self._seed)
        return Item([], request, until)

    def _fitting(self, context: list[int], continuation: list[int]) -> Pair:
        """A pair of which all but the last token is read; cut from the left as `--model hf` cuts it."""
        if len(continuation) > self.max_length:
            raise DataError(
                f"the continuation has {len(continuation):,} tokens; allowed: at most {self.max_length:,} (the model's "
                "longest text)"
            )
        return self._cut(context, self.max_length + 1 - len(continuation), "contexts"), continuation

    def _cut(self, ids: list[int], room: int, what: str) -> list[int]:
        if len(ids) > room:
            self.notes[f"{what} are cut from the left, because the model reads at most {self.max_length:,} tokens"] += 1
        return ids[-room:]

    # Answers

    def begin(self, together: Together, journal: Journal | None, tell: Callable[[str], None]) -> None:
        """Gives it what computes; what the journal holds is not computed again."""
        self._together, self._journal = together, journal
        self._done: dict[int, Any] = {} if journal is None else journal.done
        self._progress = Progress(len(self.items) - len(self._done), "requests", "tokens", tell)
        self._finished, self._tokens = 0, 0

    def _answers(self, requests: Sequence[Instance]) -> list[Any]:
        numbers = range(self._at, self._at + len(requests))
        assert self._order[numbers.start : numbers.stop] == [id(request) for request in requests]
        self._at = numbers.stop
        left = [number for number in numbers if number not in self._done]
        for portion in self._portions(number for number in left if self.items[number].request is None):
            results = iter(self._together.score([pair for number in portion for pair in self.items[number].pairs]))
            for number in portion:
                own = [next(results) for _ in self.items[number].pairs]
                rolled = requests[number - numbers.start].request_type == "loglikelihood_rolling"
                self._add(number, sum(total for total, _ in own) if rolled else list(own[0]))
            self._progress(self._finished, self._tokens)
        texts = [number for number in left if self.items[number].request is not None]
        for start in range(0, len(texts), _TEXTS_AT_ONCE):
            portion = texts[start : start + _TEXTS_AT_ONCE]
            asked = [request for number in portion if (request := self.items[number].request) is not None]
            for place, ids in self._together.generate(asked):
                self._add(portion[place], self._text(ids, self.items[portion[place]].until), len(ids))
                self._progress(self._finished, self._tokens)
        return [self._done[number] for number in numbers]

    def _text(self, ids: Sequence[int], until: Sequence[str]) -> str:
        """As `--model hf` cuts it."""
        shown = [number for number in ids if number < self.texts.own.vocab_size]
        text = self.texts.hf.decode(shown, skip_special_tokens=True)
        return postprocess_generated_text(text, [*until], None)

    def _portions(self, numbers: Iterable[int]) -> Iterator[list[int]]:
        portion, tokens = [], 0
        for number in numbers:
            portion.append(number)
            tokens += self._size(number)
            if tokens >= _TOKENS_AT_ONCE * self._together.shards:
                yield portion
                portion, tokens = [], 0
        if portion:
            yield portion

    def _size(self, number: int) -> int:
        return sum(len(context) + len(continuation) for context, continuation in self.items[number].pairs)

    def _add(self, number: int, result: Any, tokens: int = 0) -> None:
        if self._journal is None:
            self._done[number] = result
        else:
            self._journal.add(number, result)
        self._finished, self._tokens = self._finished + 1, self._tokens + self._size(number) + tokens
