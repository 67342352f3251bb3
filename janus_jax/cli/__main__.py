"""The `janus` command, also as `python -m janus_jax.cli`."""

import os
import signal
import sys


def run() -> None:
    """Runs the command line. A signal that comes while modules are imported ends it without a traceback."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    if sys.stdin is None:  # closed, as by `<&-`: as good as empty
        sys.stdin = open(os.devnull, encoding="utf-8")
    try:
        from janus_jax.cli.main import main
    except ModuleNotFoundError as error:
        if (error.name or "janus_jax").partition(".")[0] == "janus_jax":
            raise
        instead = "; `python -m launch` needs less" if sys.argv[1:2] == ["launch"] else ""
        print(f"error: {error.name} is not installed here; python -m pip install -e CHECKOUT{instead}", file=sys.stderr)
        sys.exit(2)

    main()


if __name__ == "__main__":
    run()
