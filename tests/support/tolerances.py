"""How far two float32 results of one formula may lie apart: from the arithmetic, not from what one machine gave.

Processors, vector widths and compilers add the same numbers in other orders. A bound that only covers one order fails
on the next machine, so no tolerance here is a measured error.
"""

import math

import jax
import numpy as np

EPSILON = 2.0**-24
"""The largest relative error of one rounding to float32."""


def float32_bound(terms: int, condition: float = 1.0) -> float:
    """Largest difference of two float32 results, relative to the largest number of the result.

    Errors of `terms` roundings have unequal signs and add up to about sqrt(terms) epsilons (Higham and Mary, SIAM J.
    Sci. Comput. 41, 2019). The factor 8 is two sides times 4, which also covers partial sums larger than their result.

    Args:
        terms: Numbers added on the longest way to a result: the lengths of sums that follow each other, added up.
        condition: How much the formula enlarges a relative change of its inputs.
    """
    return 8 * math.sqrt(terms) * EPSILON * condition


GRADIENTS = float32_bound(terms=32, condition=50)
"""1.3e-4, for losses and gradients of `TINY` and models like it.

Sums over the width have 32 terms. If every weight changes by 2^-12 of itself, up or down, the most sensitive gradient
changes by 24 to 121 times that, typically 50. Losses and logits change by at most 3 times that, hence the 1e-5 that
tests of them alone allow. bfloat16 in one product or a single hidden pair of slots changes more than that: losses by
2.5e-4, gradients by 8e-4 in the mildest cases tried.
"""


def assert_within(ours, theirs, tolerance: float = GRADIENTS) -> None:
    """max|a - b| <= tolerance * max|b| for each tensor."""
    for (path, a), b in zip(jax.tree_util.tree_leaves_with_path(ours), jax.tree.leaves(theirs), strict=True):
        a, b = np.asarray(a, np.float64), np.asarray(b, np.float64)
        error, largest = np.abs(a - b).max(), np.abs(b).max()
        assert error <= tolerance * largest, f"{jax.tree_util.keystr(path)}: {error} of {largest}"
