"""The stages that the demo offers after SFT, and the mesh that they run on."""

import dataclasses
import itertools
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from janus_jax.model.config import ModelConfig


@dataclasses.dataclass(frozen=True)
class Stage:
    """One way to learn preferences, after the SFT run and from its weights."""

    name: str
    """Of its configuration (`NAME.yaml`), of the kind of its rows and of its directories."""
    label: str
    """In progress bars, table and picture."""
    course: str
    """What it does, for the console."""
    panels: tuple[tuple[str, str], ...]
    """Metrics that the picture shows, with what they are."""
    exported: str
    """What checkpoints and exports of both stages are compared by."""
    margin: tuple[str, str, str]
    """The metric of how far the chosen response is preferred, what it is, and what it is at the start."""


_ACCURACY = ("rewards/accuracies", "accuracy")

STAGES = {
    stage.name: stage
    for stage in (
        Stage(
            name="dpo",
            label="DPO",
            course="DPO from it, against its own log-probs, on all ordered pairs",
            panels=(("loss", "loss"), ("rewards/margins", "reward margin"), _ACCURACY),
            exported="logits",
            margin=("rewards/margins", "reward margin", "0 at the start"),
        ),
        Stage(
            name="orpo",
            label="ORPO",
            course="ORPO from it, without a reference, on all ordered pairs",
            panels=(("nll_loss", "nats per chosen token"), ("log_odds", "difference of log odds"), _ACCURACY),
            exported="logits",
            margin=("log_odds", "difference of log odds", "that of the SFT weights at the start"),
        ),
        Stage(
            name="rm",
            label="RM",
            course="Reward model from it, all but its head, on all ordered pairs",
            panels=(("loss", "loss"), ("rewards/margins", "reward margin"), _ACCURACY),
            exported="logits, rewards",
            margin=("rewards/margins", "reward margin", "that of a random value head at the start"),
        ),
    )
}


def largest_mesh(model: "ModelConfig", devices: int) -> dict[str, int]:
    """Sizes of data, fsdp and tensor, whose product is `devices`, that divide the model.

    Among them the one with the most axes above 1, then the evenest: 8 devices become 2 x 2 x 2 where heads divide.
    """

    def divides(fsdp: int, tensor: int) -> bool:
        sharded = (model.num_kv_heads, model.num_heads, model.intermediate_size, model.vocab_size)
        return model.hidden_size % fsdp == 0 and all(size % tensor == 0 for size in sharded)

    sizes = range(1, devices + 1)
    shapes = [
        (data, fsdp, tensor)
        for data, fsdp, tensor in itertools.product(sizes, repeat=3)
        if data * fsdp * tensor == devices and divides(fsdp, tensor)
    ]
    best = max(shapes, key=lambda shape: (sum(size > 1 for size in shape), -max(shape), -shape[2]))
    return dict(zip(("data", "fsdp", "tensor"), best, strict=True))
