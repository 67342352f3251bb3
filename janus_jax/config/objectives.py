"""The `objective:` section of a configuration, one class for each objective: its keys, its defaults, its facts.

`OBJECTIVES` is the only list of objectives. The maths of an objective is in the class that its section names as
`implementation`; that class inherits the section, so a key and its default stand here and nowhere else. Reading a
configuration imports no JAX.
"""

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal, TypeVar, Union, get_args

from pydantic import Field, GetCoreSchemaHandler, model_validator
from pydantic_core import CoreSchema, PydanticCustomError

from janus_jax.config.section import Section
from janus_jax.model.config import Head

Positive = Annotated[float, Field(gt=0)]
Weight = Annotated[float, Field(ge=0)]
Smoothing = Annotated[float, Field(ge=0, lt=0.5)]


class ObjectiveSection(Section):
    """The keys of one objective and what the rest of the package needs to know of it before JAX is there."""

    implementation: ClassVar[str]
    """`module:class` of the maths."""
    title: ClassVar[str]
    """What a model card calls it."""
    head: ClassVar[Head] = "lm"
    """What the model ends in: `lm` gives log-probs of tokens, `value` one reward per branch."""
    branches: ClassVar[int] = 2
    """Responses of an example: 1, or 2 for pairs."""
    needs_reference: ClassVar[bool] = False
    """Whether a batch must bring the reference's log-probs."""
    uses_margins: ClassVar[bool] = False
    """Whether the loss uses the margins of the data."""
    usual: ClassVar[Mapping[str, tuple[float, float]]] = {}
    """Key -> the smallest and largest value that is not worth a note."""

    if TYPE_CHECKING:

        @property
        def name(self) -> str: ...

    @classmethod
    def conflicts(cls, values: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
        """(key, sentence) for keys that contradict each other; values may have wrong types."""
        del values
        return iter(())

    def advice(self) -> Iterator[str]:
        """One sentence for each setting that runs but is probably a mistake."""
        return iter(())

    @model_validator(mode="after")
    def _keys_agree(self) -> "ObjectiveSection":
        if sentences := [sentence for _, sentence in self.conflicts(self.model_dump())]:
            raise PydanticCustomError("conflict", "{sentences}", {"sentences": "; ".join(sentences)})
        return self


OBJECTIVES: dict[str, type[ObjectiveSection]] = {}
"""Name -> section of every objective."""


S = TypeVar("S", bound=ObjectiveSection)


def register(section: type[S]) -> type[S]:
    """Adds a section to `OBJECTIVES`, under the one value that its field `name` takes."""
    OBJECTIVES[get_args(section.model_fields["name"].annotation)[0]] = section
    return section


class _ByName:
    """Validates a section by its `name`, against the objectives that are registered when the schema is built."""

    @staticmethod
    def __get_pydantic_core_schema__(source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        del source
        sections = Union[tuple(OBJECTIVES.values())]  # noqa: UP007 (there is no other way to write a computed union)
        return handler.generate_schema(Annotated[sections, Field(discriminator="name")])


AnyObjective = Annotated[ObjectiveSection, _ByName]
"""The type of a configuration's `objective`."""


@register
class SFTSection(ObjectiveSection):
    """Supervised fine-tuning: the mean NLL of response tokens."""

    implementation = "janus_jax.objectives.sft:SFT"
    title = "supervised fine-tuning"
    branches = 1
    name: Literal["sft"] = "sft"


@register
class DPOSection(ObjectiveSection):
    """Direct preference optimisation and its variants."""

    implementation = "janus_jax.objectives.dpo:DPO"
    title = "direct preference optimisation"
    needs_reference = True
    usual = {"beta": (0.001, 10), "sft_weight": (0, 10)}  # noqa: RUF012
    name: Literal["dpo"] = "dpo"
    beta: Positive = 0.1
    """How strongly the policy is held to the reference. 0.1 is TRL's default; the published Janus run sets none."""
    loss: Literal["sigmoid", "ipo", "hinge", "robust"] = "sigmoid"
    """Loss of the margin between the chosen and the rejected response."""
    label_smoothing: Smoothing = 0.0
    """Probability that a label is wrong: cDPO with sigmoid, the unbiased form with robust; ipo and hinge take none."""
    length_normalised: bool = False
    """Compare log-probs per token instead of their sums; ipo always does."""
    sft_weight: Weight = 0.0
    """Weight of the NLL of the chosen responses."""

    @classmethod
    def conflicts(cls, values: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
        """ipo and hinge have no label smoothing."""
        smoothing, loss = values.get("label_smoothing"), values.get("loss")
        if isinstance(smoothing, float) and smoothing and loss in ("ipo", "hinge"):
            sentence = f"objective.label_smoothing = {smoothing}: loss {loss} has no label smoothing; allowed: 0"
            yield "objective.label_smoothing", sentence

    def advice(self) -> Iterator[str]:
        """robust differs from sigmoid by its label smoothing alone; ipo always normalises."""
        if self.loss == "robust" and not self.label_smoothing:
            yield "objective.loss = robust without objective.label_smoothing is the sigmoid loss"
        if self.loss == "ipo" and "length_normalised" in self.model_fields_set:
            shown = str(self.length_normalised).lower()
            yield f"objective.length_normalised = {shown} has no effect: ipo always compares log-probs per token"


@register
class SimPOSection(ObjectiveSection):
    """Simple preference optimisation: DPO without a reference, on per-token means."""

    implementation = "janus_jax.objectives.simpo:SimPO"
    title = "SimPO"
    usual = {"beta": (0.1, 50), "gamma": (0, 10), "sft_weight": (0, 10)}  # noqa: RUF012
    name: Literal["simpo"] = "simpo"
    beta: Positive = 2.0
    """Scale of the margin (the paper: 2.0 to 2.5 for Mistral)."""
    gamma: Weight = 1.0
    """Target margin, in units of beta times the difference of per-token means."""
    label_smoothing: Smoothing = 0.0
    """Probability that a label is wrong."""
    sft_weight: Weight = 0.0
    """Weight of the NLL of the chosen responses."""


@register
class ORPOSection(ObjectiveSection):
    """Odds ratio preference optimisation: the NLL of chosen responses and an odds ratio term, without a reference."""

    implementation = "janus_jax.objectives.orpo:ORPO"
    title = "ORPO"
    usual = {"beta": (0.001, 2)}  # noqa: RUF012
    name: Literal["orpo"] = "orpo"
    beta: Weight = 0.1
    """Weight of the odds ratio term (lambda in the paper, `orpo_alpha` in axolotl)."""
    nll: Literal["response", "prompt_and_response"] = "response"
    """Tokens of the chosen sequence that the NLL is averaged over."""


@register
class RMSection(ObjectiveSection):
    """A Bradley-Terry reward model with a value head."""

    implementation = "janus_jax.objectives.reward:RewardModel"
    title = "reward modelling"
    head = "value"
    uses_margins = True
    usual = {"center_weight": (0, 1)}  # noqa: RUF012
    name: Literal["rm"] = "rm"
    center_weight: Weight = 0.0
    """How strongly rewards are pulled towards zero. TRL suggests 0.01; the published run had none."""
