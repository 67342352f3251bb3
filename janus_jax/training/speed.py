"""Model FLOPs of a token, and the peaks of devices that they are compared with."""

import numpy as np

from janus_jax.data.epoch import PackedEpochs
from janus_jax.model.config import ModelConfig

PEAK_BF16_FLOPS = {
    "TPU v2": 23.0e12,
    "TPU v3": 61.5e12,
    "TPU v4": 275.0e12,
    "TPU v5 lite": 197.0e12,
    "TPU v5": 459.0e12,
    "TPU v6 lite": 918.0e12,
    "TPU7x": 1153.5e12,
    "NVIDIA A100-SXM4-40GB": 312.0e12,
    "NVIDIA A100-SXM4-80GB": 312.0e12,
    "NVIDIA H100 80GB HBM3": 989.4e12,
    "NVIDIA H200": 989.4e12,
}
"""JAX's `device_kind` -> dense bf16 operations per second of one device: a chip, or one of the two cores or dies of v2,
v3 and TPU7x. TPUs as in planning/chips/chips.yaml; GPUs from NVIDIA's data sheets, without sparsity."""


def flops_per_token(model: ModelConfig, keys: float) -> float:
    """Of a training step: 6 for each parameter of a matrix product, and 12 L N H keys for attention. Recomputation
    does not count.

    Args:
        keys: average number of keys that a query sees.
    """
    heads, outputs = model.num_heads * model.head_dim, 1 if model.head == "value" else model.vocab_size
    attention = model.hidden_size * (2 * heads + 2 * model.num_kv_heads * model.head_dim)
    products = model.num_layers * (attention + 3 * model.hidden_size * model.intermediate_size)
    products += model.hidden_size * outputs
    return 6.0 * products + 12.0 * model.num_layers * heads * keys


def keys_per_query(epochs: PackedEpochs, window: int | None) -> float:
    """Keys that the attention rule leaves to an average query of the data, which a sliding window limits."""
    lengths, form = epochs.fitted.lengths.astype(np.float64), epochs.form
    shared = lengths[:, 0] - 1 if form.share_prompts else np.zeros(len(lengths))
    prompt = lengths[:, 0] - (form.head == "lm")
    branches = [prompt + lengths[:, 1 + branch] for branch in range(form.branches)]
    seen = sum(_causal(branch, window) for branch in branches) - (form.branches - 1) * _causal(shared, window)
    return float(np.sum(seen) / epochs.fitted.slots.sum())


def _causal(length: np.ndarray, window: int | None) -> np.ndarray:
    """Keys of all queries of a sequence: T (T + 1) / 2, with a window W < T: W T - W (W - 1) / 2."""
    width = length if window is None else np.minimum(length, window)
    return width * length - width * (width - 1) / 2


def mfu_per_rate(model: ModelConfig, epochs: PackedEpochs, device_kind: str, devices: int) -> float | None:
    """MFU at one token per second on the whole mesh; None for devices whose peak is not listed, such as CPUs."""
    if (peak := PEAK_BF16_FLOPS.get(device_kind)) is None:
        return None
    return flops_per_token(model, keys_per_query(epochs, model.sliding_window)) / (devices * peak)
