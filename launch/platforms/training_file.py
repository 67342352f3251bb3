"""What files that start a training elsewhere have in common: their head, the command, the configuration's path."""

import os
from collections.abc import Collection, Sequence

from janus_jax.errors import ConfigError
from launch.settings import Settings


def header(what: str, lines: Sequence[str], settings: Settings, used: Collection[str]) -> str:
    """Comments at the top: what the file is, how to use it, and which settings say nothing here."""
    rest = sorted(key for key in settings.model_fields_set if key not in used)
    text = [f"{what} written by `python -m launch export`. Not tried on a real cluster yet.", *lines]
    if rest:
        text.append(f"Settings without a counterpart here, which are left out: {', '.join(rest)}.")
    return "".join(f"# {line}\n" for line in text) + "\n"


def train_words(settings: Settings, config: str, overrides: Sequence[str]) -> list[str]:
    """Words of the training command; the run directory lies in the bucket.

    Raises:
        ConfigError: there is no bucket, and no run.dir either.
    """
    words = ["janus", "train", config, *overrides]
    if not any(word.startswith("run.dir=") for word in overrides):
        if settings.bucket is None:
            raise ConfigError("bucket: missing; allowed: gs://BUCKET, or run.dir=... behind CONFIG")
        words.append(f"run.dir={settings.bucket}/runs/{settings.name}")
    return words


def in_checkout(root: str, config: str) -> str:
    """The path of a configuration relative to the checkout, which is all that the other machines have.

    Raises:
        ConfigError: it is no file of the checkout.
    """
    path = os.path.relpath(os.path.realpath(config), os.path.realpath(root))
    if path.startswith(os.pardir) or not os.path.isfile(os.path.join(root, path)):
        raise ConfigError(f"CONFIG {config}: allowed: a file in {root}, such as configs/sft_65k.yaml")
    return path.replace(os.sep, "/")
