"""The mesh of the demo: all devices, on as many axes as the model's sizes allow."""

import itertools

from janus_jax.model.config import ModelConfig


def largest_mesh(model: ModelConfig, devices: int) -> dict[str, int]:
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
