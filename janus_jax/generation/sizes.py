"""Sizes that programs are compiled for."""

_SMALLEST = 64
_TOP = (0, 1, 5, 20)


def bucket(length: int) -> int:
    """The smallest of 64, 96, 128, 192, ... that is at least `length`."""
    size = _SMALLEST
    while size < length:
        size = size * 3 // 2 if size & (size - 1) == 0 else size // 3 * 4
    return size


def top_bucket(count: int) -> int:
    """The smallest of 0, 1, 5, 20 that is at least `count`."""
    return next(size for size in _TOP if size >= count)
