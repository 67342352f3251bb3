"""Runs of one process that share a program: most of what a short run costs is tracing and compiling its steps."""

import contextlib
from collections.abc import Iterator
from typing import Any

from janus_jax.config.run import RunConfig
from janus_jax.training import setup
from janus_jax.training.program import Program, build_program

_NOT_READ = ("run", "data", "init", "reference", "schedule", "eval", "checkpoint", "export", "logging", "profile")
"""Sections that no program depends on: they are taken away, so that one that does fails here."""

_WITHOUT_RATES = ("random_params", "init", "evaluate", "reference")


@contextlib.contextmanager
def shared_programs(known: dict[Any, Program]) -> Iterator[None]:
    """Within it, runs whose program is built from equal arguments get the same one; those that differ by their rates
    share all but the step.

    Args:
        known: the programs so far; new ones are added.
    """

    def build(
        config: RunConfig, model: Any, objective: Any, mesh: Any, rules: Any, rates: Any, **sizes: Any
    ) -> Program:
        read = config.model_copy(update=dict.fromkeys(_NOT_READ))
        rest = (mesh, repr((read, model, objective, rules, sizes)))
        key = (*rest, repr(rates))
        if key not in known:
            program = known[key] = build_program(read, model, objective, mesh, rules, rates, **sizes)
            first = known.setdefault(rest, program)
            vars(program).update({name: getattr(first, name) for name in _WITHOUT_RATES})
        return known[key]

    setup.build_program = build
    try:
        yield
    finally:
        setup.build_program = build_program
