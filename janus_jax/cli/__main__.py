"""The `janus` command, also as `python -m janus_jax.cli`."""

import signal


def run() -> None:
    """Runs the command line. A signal that comes while modules are imported ends it without a traceback."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    from janus_jax.cli.main import main

    main()


if __name__ == "__main__":
    run()
