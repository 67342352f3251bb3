"""`janus launch WORDS` is `python -m launch WORDS` of the checkout beside this package; the package itself lacks it."""

import os
import sys
from pathlib import Path
from typing import Any

import typer

from janus_jax.errors import ConfigError

EPILOG = "Example: janus launch up --type v5litepod-16"

FORWARDS: dict[str, Any] = {"allow_extra_args": True, "ignore_unknown_options": True, "help_option_names": []}
"""Every word, `--help` too, is for the other command."""

CHECKOUT = Path(__file__).parents[2]

_BEGIN = (
    "import runpy, sys\n"
    "sys.path.insert(0, sys.argv.pop(1))\n"
    "runpy.run_module('launch', run_name='__main__', alter_sys=True)\n"
)


def launch(context: typer.Context) -> None:
    """Create Cloud TPU VMs, and start, watch and stop runs on them, from this workstation.

    All words go to `python -m launch` of the checkout.
    """
    if not (CHECKOUT / "launch" / "__main__.py").is_file():
        raise ConfigError(
            f"launch: {CHECKOUT} has no launch/ beside the package; allowed: an installation with "
            "`pip install -e .` in a checkout of the janus_jax repository"
        )
    sys.stdout.flush()
    # The other command takes the place of this process: it has the signals and the exit code.
    os.execv(sys.executable, [sys.executable, "-c", _BEGIN, str(CHECKOUT), *context.args])
