"""`python -m janus_jax.cli` is the `janus` command."""

from janus_jax.cli.main import main

if __name__ == "__main__":
    main()
