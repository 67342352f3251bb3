"""The section `samples`: answers to fixed prompts while a run trains."""

from collections.abc import Iterator
from typing import Annotated

from pydantic import AfterValidator, Field, WithJsonSchema
from pydantic_core import PydanticCustomError

from janus_jax.config.section import Section
from janus_jax.config.sections import Count, PathText, Share


def _different(systems: list[str]) -> list[str]:
    if len(set(systems)) < len(systems):
        raise PydanticCustomError("systems", "one occurs twice")
    return systems


def _drawn(temperature: float) -> float:
    if temperature != 0 and not 1e-6 <= temperature <= 1e6:  # as in `SamplingOptions`
        raise PydanticCustomError("temperature", "cannot divide scores by it")
    return temperature


class SamplesSection(Section):
    """Answers to fixed prompts, under contrasting system messages, by the weights of that step. They go to
    `samples/STEP.jsonl` in `run.dir`, to TensorBoard and wandb, and in short to the console. Training goes on as
    without them, bit for bit. null: none."""

    prompts: PathText
    """File of prompts, as for `janus generate`: rows of prompt (and system) or messages (.jsonl, .json), or one prompt
    a line (.txt). A gs:// URL works too."""
    systems: (
        Annotated[
            list[str],
            Field(min_length=1),
            AfterValidator(_different),
            WithJsonSchema({"allowed": "a list of different system messages, at least one"}),
        ]
        | None
    ) = None
    """System messages; every prompt is answered under each of them, with the same random numbers. An empty text is no
    system message. null: the system message of each prompt's row, if it has one."""
    every_steps: Count | None = None
    """Steps between answers; after the last step there are always some. null: only there, and before the first step."""
    at_start: bool = True
    """true: also before the first step, by the weights that the run starts from."""
    n: Count = 1
    """Answers to each prompt under each system message."""
    max_new_tokens: Count = 256
    """Most tokens of an answer."""
    min_new_tokens: Annotated[int, Field(ge=0)] = 0
    """Tokens before which no answer ends."""
    stop: list[PathText] = Field(default=[])
    """Texts that end an answer, besides the tokens that end it in training."""
    temperature: Annotated[
        float, AfterValidator(_drawn), WithJsonSchema({"allowed": "0, or a number from 0.000001 to 1000000"})
    ] = 0.0
    """0: always the most probable token, so that answers change with the weights alone."""
    top_k: Annotated[int, Field(ge=0, lt=2**31)] = 0
    """Only this number of most probable tokens; 0: all."""
    top_p: Share = 1.0
    """Only the most probable tokens that have this probability together."""
    min_p: Share = 0.0
    """Only tokens at least this probable, relative to the best one."""
    repetition_penalty: Annotated[float, Field(ge=1e-6, le=1e6)] = 1.0
    """Above 1: tokens that have come are less likely."""
    seed: Annotated[int, Field(ge=0, lt=2**32)] = 0
    """Of the random numbers, which are the same at every step."""
    rows: Count = 32
    """Most answers that grow at the same time. Fewer need less memory, and more time."""

    def advice(self) -> Iterator[str]:
        """Keys that have no effect, one sentence each."""
        if self.temperature == 0:
            for key in ("n", "top_k", "top_p", "min_p", "seed"):
                if (value := getattr(self, key)) != type(self).model_fields[key].default:
                    effect = "makes answers that are all the same" if key == "n" else "has no effect"
                    yield f"samples.{key} = {value:g} {effect}: samples.temperature is 0"
