"""Rewards of texts under a reward model. Responses to one prompt share a row, as in training."""

import functools
from collections.abc import Sequence
from typing import Any

import jax
from jaxtyping import Array, Int

from janus_jax.checkpoint.stored_model import StoredModel
from janus_jax.data.schema import joined
from janus_jax.errors import ConfigError
from janus_jax.generation import placement, scoring
from janus_jax.generation.prompts import Messages, PromptFormat, prompt_format
from janus_jax.model import mistral
from janus_jax.model.attention import Slots
from janus_jax.model.config import ModelConfig
from janus_jax.model.mistral import Compute, Params


class RewardModel:
    """Weights of a reward model on a generation mesh. Made by `live` or `stored`.

    Several processes make the same calls, and get the same rewards.

    Args:
        params: in the dtype and with the placement of `compute`.
        notes: what to tell of the mesh.
    """

    def __init__(self, config: ModelConfig, params: Params, compute: Compute, *, notes: Sequence[str] = ()):
        self.config, self.params, self.compute, self.notes = config, params, compute, list(notes)

    @classmethod
    def live(cls, config: ModelConfig, params: Params, *, dtype: Any = None) -> "RewardModel":
        """A copy of live parameters, which may be on any mesh.

        Args:
            dtype: of weights and activations; None: bfloat16, on CPUs float32.

        Raises:
            ConfigError: the model has no value head.
        """
        require_reward_model(config)
        place, notes = placement.generation_place(config, placement.devices_of(params))
        compute = placement.compute_at(place, dtype)
        return cls(config, placement.resharded(config, params, compute.dtype, place), compute, notes=notes)

    @classmethod
    def stored(cls, model: StoredModel, *, dtype: Any = None, devices: Sequence[Any] | None = None) -> "RewardModel":
        """The weights of a stored model, read straight onto the mesh.

        Args:
            devices: None: all.

        Raises:
            ConfigError: as `live`.
            ConversionError: weights are damaged.
        """
        require_reward_model(model.config, model.path)
        place, notes = placement.generation_place(model.config, devices)
        compute = placement.compute_at(place, dtype)
        params = model.load(dtype=compute.dtype, shardings=placement.shardings(model.config, place))
        return cls(model.config, params, compute, notes=notes)

    def rewards(self, pairs: Sequence[scoring.Pair]) -> list[float]:
        """The reward of each text: what the value head gives at its last token.

        Args:
            pairs: ids of a prompt, and of a response with its EOS. Those with the same prompt share its computation.

        Raises:
            DataError: a pair is empty, longer than the model's longest text, or an id is unknown.
        """
        scoring.require_pairs(self.config, pairs)
        program = functools.partial(_values, self.params, config=self.config, compute=self.compute)
        rewards = [0.0] * len(pairs)
        for number, (values,) in scoring.run(program, pairs, "value", self.compute.place):
            rewards[number] = float(values[-1])
        return rewards


class RewardFormat:
    """How a reward model reads a conversation and an answer to it. Made by `reward_format`.

    Args:
        joins: data of kind rm has system message and prompt in one text, and so has a model that learnt from it.
    """

    def __init__(self, written: PromptFormat, *, joins: bool = False):
        self.written, self._joins = written, joins

    def encode(self, messages: Messages, answer: str) -> scoring.Pair:
        """Ids of a conversation, and of an answer with its end: all of the text that gets a reward.

        Raises:
            DataError: as `PromptFormat.encode`.
        """
        if self._joins and messages and messages[0]["role"] == "system":
            first = {"role": "user", "content": joined(messages[0]["content"], messages[1]["content"])}
            messages = [first, *messages[2:]]
        return self.written.encode_answer(messages, answer)


def reward_format(model: StoredModel, template: str | None = None) -> RewardFormat:
    """How a stored reward model reads texts: with its own template and tokenizer.

    Args:
        template: a name of `TEMPLATES`, for a model whose files name none.

    Raises:
        ConfigError: it is no reward model.
        ConversionError: as `prompt_format`.
    """
    require_reward_model(model.config, model.path)
    data = (model.meta.get("data") or [{}])[0]
    return RewardFormat(prompt_format(model, template), joins=data.get("kind") == "rm")


def require_reward_model(config: ModelConfig, *places: str) -> None:
    """Raises ConfigError for a language model."""
    if config.head != "value":
        raise ConfigError(*places, "is a language model, which gives no rewards; allowed: a reward model")


@functools.partial(jax.jit, static_argnames=("config", "compute"))
def _values(
    params: Params,
    tokens: Int[Array, "B L"],
    targets: Int[Array, "B L"],
    slots: Slots,
    *,
    config: ModelConfig,
    compute: Compute,
) -> tuple[Array]:
    """What the value head gives at each slot, on every device; `targets` are not used."""
    place = compute.place
    tokens, slots = jax.tree.map(lambda x: place.constrain(x, ("batch", None)), (tokens, slots))
    return (place.constrain(mistral.token_values(config, params, tokens, slots, compute), (None, None)),)
