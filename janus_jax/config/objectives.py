"""The `objective:` section of a configuration: one form for each objective, with the fields of its dataclass."""

from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

from pydantic import Field

from janus_jax.config.section import Section

if TYPE_CHECKING:
    from janus_jax.objectives import Objective

Positive = Annotated[float, Field(gt=0)]
Weight = Annotated[float, Field(ge=0)]
Smoothing = Annotated[float, Field(ge=0, lt=0.5)]


class _ObjectiveSection(Section):
    """What they share: a section builds its objective from its own fields."""

    builds: ClassVar[str]
    """The class in janus_jax.objectives, by name: reading a configuration does not import JAX."""

    def build(self, **changes: Any) -> "Objective":
        """The objective; `changes` are fields that other sections settle."""
        from janus_jax import objectives

        return getattr(objectives, self.builds)(**self.model_dump() | changes)


class SFTSection(_ObjectiveSection):
    """Token mean of the NLL of responses."""

    builds = "SFT"
    name: Literal["sft"]


class DPOSection(_ObjectiveSection):
    """Direct preference optimisation and its variants."""

    builds = "DPO"
    name: Literal["dpo"]
    beta: Positive = 0.1
    """Strength of the KL constraint."""
    loss: Literal["sigmoid", "ipo", "hinge", "robust"] = "sigmoid"
    label_smoothing: Smoothing = 0.0
    """Probability that a label is wrong: cDPO with sigmoid, the unbiased form with robust."""
    length_normalised: bool = False
    """Per-token means for summed log-probs; ipo always takes them."""
    sft_weight: Weight = 0.0
    """Weight of the NLL of chosen responses."""


class SimPOSection(_ObjectiveSection):
    """DPO without a reference, on per-token means."""

    builds = "SimPO"
    name: Literal["simpo"]
    beta: Positive = 2.0
    gamma: Weight = 1.0
    """Target margin of beta times the difference of per-token means."""
    label_smoothing: Smoothing = 0.0
    sft_weight: Weight = 0.0
    """Weight of the NLL of chosen responses."""


class ORPOSection(_ObjectiveSection):
    """NLL of chosen responses and the odds ratio term."""

    builds = "ORPO"
    name: Literal["orpo"]
    beta: Weight = 0.1
    """Weight of the odds ratio term (lambda, alpha)."""
    nll: Literal["response", "prompt_and_response"] = "response"
    """Tokens of the chosen sequence that the NLL is averaged over."""


class RMSection(_ObjectiveSection):
    """Bradley-Terry reward model with a value head."""

    builds = "RewardModel"
    name: Literal["rm"]
    center_weight: Weight = 0.0
    """Pull of the rewards towards zero."""


ObjectiveSection = Annotated[
    SFTSection | DPOSection | SimPOSection | ORPOSection | RMSection, Field(discriminator="name")
]
