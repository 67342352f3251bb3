"""Gradients and weights of the recorded runs of AdamW8bit, for the recorder and the test; needs numpy alone."""

import numpy as np

STEPS, KEPT = 5, (2, 5)
RATE, B1, B2, EPS, WEIGHT_DECAY = 1e-3, 0.9, 0.95, 1e-8, 0.1

SHAPES = {
    "rows": (8, 512),  # rows of whole blocks of 256; the fewest elements that are kept in 8 bits
    "odd": (67, 70),  # blocks of 256 cross rows, and the last one is short
    "small": (63, 65),
}
"""Of torch tensors."""


def weights() -> dict[str, np.ndarray]:
    """Weights before the first step."""
    return {name: _uniform(number, shape) for number, (name, shape) in enumerate(SHAPES.items())}


def gradients(step: int) -> dict[str, np.ndarray]:
    """Of a step: with outliers, numbers that float32 holds as denormal, zeros, and blocks of zeros.

    Those of `odd` are of sizes so different that many second moments become 0, which makes an update huge.
    """
    every = {}
    for number, (name, shape) in enumerate(SHAPES.items()):
        sizes, outlier = (20, 1000) if name == "odd" else (6, 4)
        halvings = (sizes * np.abs(_uniform(1000 * step + 10 * number, shape))).astype(np.int32)
        gradient = np.ldexp(_uniform(1000 * step + 10 * number + 1, shape), -halvings)
        flat = gradient.reshape(-1)
        flat[step * 11 :: 997] *= outlier
        flat[step * 7 :: 101] = 0
        flat[5 + step :: 1201] = 1e-40
        flat[512:1024] = 0  # always
        flat[1536 : 1536 + 256 * (step % 2)] = 0
        every[name] = gradient.astype(np.float32)
    return every


def hard_numbers(numbers: np.ndarray, *, signed: bool) -> np.ndarray:
    """What is hard to round to one of 256 ascending numbers: these, their midpoints, and neighbours of both."""
    middle = ((numbers[:-1] + numbers[1:]) * np.float32(0.5)).astype(np.float32)
    exact = np.concatenate([numbers, middle])
    around = [np.nextafter(exact, np.float32(end)) for end in (-2, 2)]
    rest = np.float32(10) ** np.linspace(-9, 0, 500, dtype=np.float32)
    every = np.concatenate([exact, *around, rest, *([-rest] if signed else [])])
    return np.clip(every, -1 if signed else 0, 1).astype(np.float32)


def _uniform(seed: int, shape: tuple[int, ...]) -> np.ndarray:
    """Numbers of [-1, 1) from integers alone, so they are the same wherever numpy runs."""
    bits = np.arange(np.prod(shape), dtype=np.uint64) + np.uint64((seed + 1) * 0x9E3779B97F4A7C15 % 2**64)
    for shift, factor in ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB)):
        bits = (bits ^ (bits >> np.uint64(shift))) * np.uint64(factor)
    bits ^= bits >> np.uint64(31)
    return (((bits >> np.uint64(40)).astype(np.float32) / np.float32(2**23)) - np.float32(1)).reshape(shape)
