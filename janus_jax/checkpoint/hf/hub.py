"""Downloads models of the Hugging Face hub by their ids."""

import fnmatch
import os
import re
from pathlib import Path

from janus_jax.checkpoint.hf.files import is_text
from janus_jax.errors import ConversionError, first_line

_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[\w.-]+")
_FILES = ["*.json", "*.safetensors", "tokenizer.model", "*.jinja", "merges.txt", "README.md"]
_DUPLICATES = ["consolidated*", "*/*"]  # the same weights under other names
_LICENCES = ["[Ll][Ii][Cc][Ee][Nn][CcSs][Ee]*", "[Nn][Oo][Tt][Ii][Cc][Ee]*", "COPYING*", "USE_POLICY*"]
_OTHER_FOLDERS = ["consolidated*", "[!a]*/*", "a[!d]*/*"]
"""Of the folders, the hub is asked for those that begin with "ad", for additional_chat_templates."""


def is_wanted(name: str) -> bool:
    """Whether this package reads a file of this name in a model's repository."""
    wanted = any(fnmatch.fnmatchcase(name, pattern) for pattern in _FILES)
    return is_text(name) or (wanted and not any(fnmatch.fnmatchcase(name, pattern) for pattern in _DUPLICATES))


def local_copy(source: str | os.PathLike[str]) -> str:
    """A path unchanged; for a hub id (OWNER/NAME), the directory in the hub's cache, downloaded if necessary.

    A name below an existing folder is a path, even if nothing exists at that path.

    Raises:
        ConversionError: the model could not be downloaded, or no path can have this name.
    """
    name = os.fspath(source)
    path = Path(os.path.expanduser(name))
    try:
        if path.exists() or path.parent.is_dir() or not _HUB_ID.fullmatch(name):
            return name
    except OSError as error:  # a name that is too long
        raise ConversionError(name, f"cannot be read: {error.strerror}") from error
    from huggingface_hub import errors, snapshot_download

    try:
        return snapshot_download(name, allow_patterns=[*_FILES, *_LICENCES], ignore_patterns=_OTHER_FOLDERS)
    except (
        errors.HFValidationError,
        errors.HfHubHTTPError,
        errors.LocalEntryNotFoundError,
        errors.OfflineModeIsEnabled,
        OSError,
    ) as error:
        reason = first_line(error)
        raise ConversionError(
            name, f"no such directory, and could not be downloaded from the Hugging Face hub: {reason}"
        ) from error
