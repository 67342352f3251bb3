"""Sizes that programs are compiled for."""

_SMALLEST = 64


def bucket(length: int) -> int:
    """The smallest of 64, 96, 128, 192, ... that is at least `length`."""
    size = _SMALLEST
    while size < length:
        size = size * 3 // 2 if size & (size - 1) == 0 else size // 3 * 4
    return size
