"""Sizes that programs are compiled for."""

_SMALLEST = 64
_TOP = (0, 1, 5, 20)
_PROMPTS = (16, 4, 1)
SLOTS_PER_CALL = 2048
"""Of prompts, for each shard of rows. More make a call not much faster for each of them."""
TOKENS_PER_STEP = 1 << 14
"""Slots of prompts, for each shard of rows, after which the texts that grow get their next tokens first."""


def bucket(length: int) -> int:
    """The smallest of 64, 96, 128, 192, ... that is at least `length`."""
    size = _SMALLEST
    while size < length:
        size = size * 3 // 2 if size & (size - 1) == 0 else size // 3 * 4
    return size


def buckets(longest: int) -> list[int]:
    """All buckets up to that of `longest`, the smallest first."""
    sizes = [_SMALLEST]
    while sizes[-1] < longest:
        sizes.append(bucket(sizes[-1] + 1))
    return sizes


def slots(prompt: int, new: int, steps: int, longest: int) -> int:
    """Slots of a row for a prompt and up to `new` tokens, as a session reserves them.

    Args:
        steps: tokens of a decoding call. A row needs no room for those after its end: they are written over its own.
        longest: the model's longest text.
    """
    return bucket(max(prompt - 1 + min(new, longest - prompt), prompt, steps))


def top_bucket(count: int) -> int:
    """The smallest of 0, 1, 5, 20 that is at least `count`."""
    return next(size for size in _TOP if size >= count)


def prompts_per_call(width: int, waiting: int) -> int:
    """Prompts of a width that one call computes for each shard of rows: 16, 4 or 1. At most 2,048 slots, or one prompt,
    and no more than wait."""
    return next((count for count in _PROMPTS if count <= waiting and count * width <= SLOTS_PER_CALL), 1)
