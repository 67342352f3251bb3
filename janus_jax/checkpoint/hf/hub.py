"""Models of the Hugging Face hub, by their ids."""

import fnmatch
import os
import re
from pathlib import Path

from janus_jax.errors import ConversionError, first_line

_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[\w.-]+")
_FILES = ["*.json", "*.safetensors", "tokenizer.model", "*.jinja", "merges.txt", "README.md"]
_DUPLICATES = ["consolidated*", "*/*"]  # the same weights once more, in another naming


def is_wanted(name: str) -> bool:
    """Whether a file of a model's repository is one that is read."""
    return any(fnmatch.fnmatchcase(name, pattern) for pattern in _FILES) and not any(
        fnmatch.fnmatchcase(name, pattern) for pattern in _DUPLICATES
    )


def local_copy(source: str | os.PathLike[str]) -> str:
    """A path as it is; an id (OWNER/NAME) downloaded into the hub's cache, from which it is taken the next time.

    What begins with a folder that is here is a path, also when nothing is there.

    Raises:
        ConversionError: an id that the hub does not give, or no network.
    """
    name = os.fspath(source)
    path = Path(os.path.expanduser(name))
    if path.exists() or path.parent.is_dir() or not _HUB_ID.fullmatch(name):
        return name
    from huggingface_hub import errors, snapshot_download

    try:
        return snapshot_download(name, allow_patterns=_FILES, ignore_patterns=_DUPLICATES)
    except (
        errors.HFValidationError,
        errors.HfHubHTTPError,
        errors.LocalEntryNotFoundError,
        errors.OfflineModeIsEnabled,
        OSError,
    ) as error:
        reason = first_line(error)
        raise ConversionError(
            f"{name}: no such directory, and not to be had from the Hugging Face hub: {reason}"
        ) from error
