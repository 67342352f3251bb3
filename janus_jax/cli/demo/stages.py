"""The demo's stages after SFT, and the mesh for all stages."""

import dataclasses
import itertools
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from janus_jax.model.config import ModelConfig


@dataclasses.dataclass(frozen=True)
class Stage:
    """One way to learn preferences, from the weights of the SFT run."""

    name: str
    """Names its configuration (`NAME.yaml`), the kind of its data and its directories."""
    label: str
    """Name in progress bars, table and picture."""
    description: str
    """Heading on the console."""
    panels: tuple[tuple[str, str], ...]
    """Metrics in the picture, with their titles."""
    exported: str
    """The outputs in which checkpoints and exports are compared."""
    margin: tuple[str, str, str]
    """The metric for the preference of chosen over rejected, its title, and its value at the start."""


_ACCURACY = ("rewards/accuracies", "accuracy")

STAGES = {
    stage.name: stage
    for stage in (
        Stage(
            name="dpo",
            label="DPO",
            description="DPO of the SFT model, which is also the reference, on all ordered pairs",
            panels=(("loss", "loss"), ("rewards/margins", "reward margin"), _ACCURACY),
            exported="logits",
            margin=("rewards/margins", "reward margin", "0 at the start"),
        ),
        Stage(
            name="orpo",
            label="ORPO",
            description="ORPO of the SFT model, without a reference, on all ordered pairs",
            panels=(("nll_loss", "nats per chosen token"), ("log_odds", "difference of log odds"), _ACCURACY),
            exported="logits",
            margin=("log_odds", "difference of log odds", "at the start that of the SFT model"),
        ),
        Stage(
            name="rm",
            label="RM",
            description="Reward model from the SFT model with a new head, on all ordered pairs",
            panels=(("loss", "loss"), ("rewards/margins", "reward margin"), _ACCURACY),
            exported="logits, rewards",
            margin=("rewards/margins", "reward margin", "at the start that of a random value head"),
        ),
    )
}


def largest_mesh(model: "ModelConfig", devices: int) -> dict[str, int]:
    """Sizes of data, fsdp and tensor that multiply to `devices` and divide the model.

    Preferred are most axes above 1, then the most even sizes: 8 devices become 2 x 2 x 2 if the heads divide.
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
