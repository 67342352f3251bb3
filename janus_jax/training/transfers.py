"""A step reads nothing from the host but its batch: an implicit transfer is a wait that nobody sees."""

from collections.abc import Callable
from typing import Any

import jax

from janus_jax.errors import first_line


class WithoutTransfers:
    """Calls a step. If a call moves data to the devices on the side, it says so once, and the run goes on.

    The first call is not looked at: it traces.

    Args:
        say: gets the line.
    """

    def __init__(self, say: Callable[[str], None]):
        self._say, self._traced, self._told = say, False, False

    def __call__(self, step: Callable[..., Any], *args: Any) -> Any:
        """`step(*args)`. What JAX refuses has not begun, so it can be called again."""
        if self._told or not self._traced:
            self._traced = True
            return step(*args)
        try:
            with jax.transfer_guard("disallow"):
                return step(*args)
        except jax.errors.JaxRuntimeError as error:
            if "Disallowed" not in str(error):
                raise
            self._say(f"every step moves data from the host, which slows the run down: {first_line(error)}")
            self._told = True
        return step(*args)
