"""The configuration of `janus data synthesize`: one YAML file, all mistakes in one report."""

import os
from collections.abc import Iterable
from typing import Annotated, Any, Literal

from pydantic import Field, StringConstraints, ValidationError

from janus_jax.config import mistakes, yaml_file
from janus_jax.config.section import Section
from janus_jax.errors import ConfigError
from janus_jax.storage.endpoint_requests import Prices, checked_url

Text = Annotated[str, StringConstraints(min_length=1)]
Count = Annotated[int, Field(ge=1)]
NotNegative = Annotated[int, Field(ge=0)]
Positive = Annotated[float, Field(gt=0)]
Share = Annotated[float, Field(gt=0, le=1)]

EMBEDDED = "embedded"
"""In `hierarchy.seeds`: the seed of this package."""


class PricesSection(Section):
    """Of a million tokens, in any currency."""

    prompt: Annotated[float, Field(ge=0)]
    """Of prompts."""
    completion: Annotated[float, Field(ge=0)]
    """Of answers."""


class EndpointSection(Section):
    """An OpenAI-compatible endpoint and its model. The key comes from an environment variable."""

    base_url: Text
    """Like https://api.openai.com/v1 or http://127.0.0.1:8000/v1."""
    model: Text
    """As the endpoint names it."""
    key_variable: Text | None = "OPENAI_API_KEY"
    """Environment variable with the API key; null: the endpoint takes none."""
    concurrent: Count = 8
    """Requests at the same time."""
    requests_a_minute: Count | None = None
    """Limit of your account."""
    tokens_a_minute: Count | None = None
    """Limit of your account."""
    timeout_s: Positive = 120.0
    """Of one try."""
    tries: Count = 8
    """Of one request, with growing pauses."""
    prices: PricesSection | None = None
    """null: unknown; then there is no estimate of money, and no budget of money."""
    token_limit: Literal["max_tokens", "max_completion_tokens"] = "max_tokens"
    """How the endpoint calls the most tokens of an answer."""
    structured: Literal["auto", "json_schema", "json_object", "none"] = "auto"
    """How answers in JSON are asked for. auto: json_schema, or the next one that the endpoint does not refuse; what
    one of them was answered is not asked again. none: the prompt alone asks for it."""
    seed: bool = True
    """Send a seed; false for endpoints that refuse it."""

    def price(self) -> Prices | None:
        return None if self.prices is None else Prices(self.prices.prompt, self.prices.completion)


class AskSection(Section):
    """How one step asks its model."""

    endpoint: Text = "default"
    """A name in `endpoints`."""
    temperature: Annotated[float, Field(ge=0)] | None = 1.0
    """null: leave it to the endpoint."""
    top_p: Share | None = 0.9
    """null: leave it to the endpoint."""
    max_tokens: Count = 1024
    """Most tokens of an answer."""
    asks: Count = 4
    """Most answers asked for one accepted one."""


class BudgetSection(Section):
    """What all steps together may spend. A request that could pass it is not sent. null: no limit."""

    tokens: Count | None = None
    """Of prompts and answers."""
    money: Positive | None = None
    """In the currency of the prices, which all endpoints need then."""


class HierarchySection(AskSection):
    """Dimensions, subdimensions, preferences and their descriptions. Counts are of the whole hierarchy, seed included;
    a seed with more keeps all it has."""

    seeds: Annotated[list[Text], Field(min_length=1)] = Field(default_factory=lambda: [EMBEDDED])
    """Files of seeds; `embedded` is the small one of this package."""
    subdimensions: NotNegative = 0
    """Of each dimension; 0: those of the seed alone."""
    preferences: NotNegative = 0
    """Of each subdimension; 0: those of the seed alone."""
    at_a_time: Annotated[int, Field(ge=1, le=50)] = 10
    """Asked for in one request."""
    shown: NotNegative = 50
    """Existing names that a request shows, at most, so that the model does not repeat them."""
    rounds: Count = 8
    """Requests for one parent without end are refused: after so many, it stays smaller."""
    alike: Share = 0.8
    """ROUGE-L from which two names or two descriptions of one parent are near-duplicates."""
    max_tokens: Count = 2048
    """Most tokens of an answer."""


class SourceSection(Section):
    """A source of instructions, as `janus data build --source` takes it."""

    path: Text
    """A file, a directory, a gs:// URL or a hub id."""
    main_source: str = ""
    """Of records that do not name one. Default: the path."""
    split: Text | None = None
    """Only this split; null: all."""
    first: Count | None = None
    """Only so many records; null: all."""


class InstructionsSection(Section):
    """Where instructions come from, and which are kept."""

    sources: Annotated[list[SourceSection], Field(min_length=1)]
    """All of them are read, in this order."""
    contaminated_by: list[Text] = Field(default_factory=list)
    """Benches: an instruction that shares `ngram` words in a row with one of their prompts is dropped."""
    ngram: Annotated[int, Field(ge=4)] = 13
    """Words in a row. A shorter prompt of a bench counts as a whole."""
    alike: Annotated[float, Field(gt=0, le=1)] | None = 0.8
    """Estimated share of common word 3-grams (MinHash) from which an instruction is a near-duplicate; null: keep
    near-duplicates."""
    min_chars: Count = 10
    """Fewest characters of an instruction."""
    max_chars: Count = 20_000
    """Most characters of an instruction."""
    several_turns: Literal["drop", "first"] = "drop"
    """What becomes of a conversation: dropped, or its first question kept."""


class SetsSection(Section):
    """Preference sets: one preference of each dimension."""

    per_instruction: Annotated[int, Field(ge=2, le=100)] = 3
    """Sets, and so system messages and responses, of each instruction."""
    incompatible: Text | None = None
    """YAML file of rules about preferences that no set holds together; null: our own."""


class GatedSection(AskSection):
    """A step whose texts pass gates. A text that does not pass is asked for again, up to `asks` times."""

    min_chars: Count
    """Fewest characters of a text."""
    max_chars: Count
    """Most characters of a text."""
    alike: Share
    """ROUGE-L from which two texts of one instruction are too alike."""


class SystemsSection(GatedSection):
    """System messages, one for each preference set."""

    examples: NotNegative = 3
    """Examples that a request shows."""
    max_tokens: Count = 600
    """Most tokens of an answer."""
    min_chars: Count = 150
    """Fewest characters of a text."""
    max_chars: Count = 4000
    """Most characters of a text."""
    alike: Share = 0.8
    """ROUGE-L from which two texts of one instruction are too alike."""


class ResponsesSection(GatedSection):
    """Responses, one for each system message."""

    max_tokens: Count = 2048
    """Most tokens of an answer."""
    min_chars: Count = 1
    """Fewest characters of a text."""
    max_chars: Count = 20_000
    """Most characters of a text."""
    alike: Share = 0.8
    """ROUGE-L from which two texts of one instruction are too alike."""
    copied_words: Count = 20
    """A response with so many words of the system message in a row copies it."""


class BenchSection(AskSection):
    """Instructions that are held out of the collection and become rows of a bench, with rubrics."""

    instructions: NotNegative = 0
    """How many; the draw depends on the seed and the instructions, not on their order."""
    examples: NotNegative = 3
    """Example rubrics that a request shows."""


class CollectionSection(Section):
    """The published files."""

    incomplete: Literal["drop", "keep"] = "drop"
    """What becomes of an instruction that lacks a response."""
    outliers: Positive | None = 5.0
    """Robust standard deviations of the log length, from the median of its kind, from which a system message or a
    response is dropped; null: keep all."""
    outliers_from: Annotated[int, Field(ge=3)] = 100
    """With fewer texts of a kind, none is an outlier."""


class SynthesisConfig(Section):
    """Everything that decides what is synthesized and where it is written."""

    out: Text
    """Directory of all steps. The same configuration goes on in it."""
    seed: Annotated[int, Field(ge=0, lt=2**32)] = 0
    """Of all draws, and of requests."""
    language: Literal["en"] | None = "en"
    """Of instructions and texts; null: any. py3langid recognises `en`."""
    prompts: Text | None = None
    """Directory with your own prompts; a file that it lacks is ours."""
    endpoints: Annotated[dict[str, EndpointSection], Field(min_length=1)]
    """Name -> endpoint. Steps use `default` unless they name another."""
    budget: BudgetSection = BudgetSection()
    hierarchy: HierarchySection = HierarchySection()
    instructions: InstructionsSection
    sets: SetsSection = SetsSection()
    systems: SystemsSection = SystemsSection()
    responses: ResponsesSection = ResponsesSection()
    bench: BenchSection = BenchSection()
    collection: CollectionSection = CollectionSection()

    def endpoint_of(self, step: AskSection) -> EndpointSection:
        return self.endpoints[step.endpoint]


def load_synthesis(
    path: str | os.PathLike[str], overrides: Iterable[str] = (), *, inputs: bool = False
) -> SynthesisConfig:
    """Reads a YAML file with its `base:` files; `overrides` are texts like `seed=4`, applied last.

    Args:
        inputs: The files that it names will be read here; those that do not exist are mistakes too.

    Raises:
        ConfigError: every mistake in one message, each with its file:line or override, the value and what is allowed.
    """
    schema = SynthesisConfig.model_json_schema()
    root, problems = yaml_file.read_tree(path, overrides, takes_text=lambda key: mistakes.takes_text(key, schema))
    config = None
    try:
        config = SynthesisConfig.model_validate(root.plain())
    except ValidationError as error:
        problems += mistakes.problems(error, root, schema)
    if config is not None:
        problems += [f"{root.origin_of(key.split('.'))}: {text}" for key, text in _conflicts(config)]
        places = [*_wrong_urls(config), *(_absent(config) if inputs else ())]
        problems += [f"{root.origin_of(key)}: {text}" for key, text in places]
    if problems or config is None:
        raise ConfigError(mistakes.join(os.fspath(path), problems))
    return config


def _conflicts(config: SynthesisConfig) -> Iterable[tuple[str, str]]:
    used: dict[str, Any] = {name: getattr(config, name) for name in ("hierarchy", "systems", "responses", "bench")}
    for name, step in used.items():
        if step.endpoint not in config.endpoints:
            key = f"{name}.endpoint"
            yield key, f"{key} = {step.endpoint}: allowed: a name in endpoints: {', '.join(config.endpoints)}"
    for name in ("instructions", "systems", "responses"):
        section = getattr(config, name)
        if section.min_chars > section.max_chars:
            key = f"{name}.min_chars"
            yield key, f"{key} = {section.min_chars}: allowed: at most {name}.max_chars, {section.max_chars}"
    without = [name for name, one in config.endpoints.items() if one.prices is None]
    if config.budget.money is not None and without:
        yield "budget.money", f"budget.money = {config.budget.money:g}: needs endpoints.{without[0]}.prices"


_Key = tuple[str | int, ...]


def _wrong_urls(config: SynthesisConfig) -> Iterable[tuple[_Key, str]]:
    for name, one in config.endpoints.items():
        key = ("endpoints", name, "base_url")
        try:
            checked_url(".".join(key), one.base_url, "https://api.openai.com/v1")
        except ConfigError as error:
            yield key, str(error)


def _absent(config: SynthesisConfig) -> Iterable[tuple[_Key, str]]:
    """What the keys name and is not on this machine."""
    from janus_jax.data.build.sources import is_absent

    read, seeds = config.instructions, config.hierarchy.seeds
    sources: list[tuple[_Key, str]] = [
        *((("instructions", "sources", at, "path"), one.path) for at, one in enumerate(read.sources)),
        *((("instructions", "contaminated_by", at), one) for at, one in enumerate(read.contaminated_by)),
    ]
    files: list[tuple[_Key, str | None]] = [
        *((("hierarchy", "seeds", at), one) for at, one in enumerate(seeds) if one != EMBEDDED),
        (("sets", "incompatible"), config.sets.incompatible),
    ]
    prompts = config.prompts
    for key, path, kind, is_missing in (
        *((key, path, "file or directory", is_absent(path)) for key, path in sources),
        *((key, path, "file", path and not os.path.isfile(os.path.expanduser(path))) for key, path in files),
        (("prompts",), prompts, "directory", prompts and not os.path.isdir(os.path.expanduser(prompts))),
    ):
        if is_missing:
            yield key, f"{'.'.join(map(str, key))} = {path}: no such {kind}"
