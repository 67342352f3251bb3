"""Sizes that programs are compiled for."""

_SMALLEST = 64


def bucket(length: int) -> int:
    """The smallest of 64, 96, 128, 192, ... that is at least `length`."""
    size = _SMALLEST
    while size < length:
        size = size * 3 // 2 if size & (size - 1) == 0 else size // 3 * 4
    return size


def slots(prompt: int, new: int, steps: int, longest: int) -> int:
    """Slots of a row for a prompt and up to `new` tokens, as a session reserves them.

    Args:
        steps: tokens of a decoding call, which may go on after the end.
        longest: the model's longest text.
    """
    return bucket(max(prompt - 1 + min(new, longest - prompt) + steps, bucket(prompt)))
