"""Whether a bucket can be written, asked before anything depends on it."""

import os
import uuid

from janus_jax.errors import StorageError
from janus_jax.storage import local
from janus_jax.storage.bucket import Prefix, is_url
from janus_jax.storage.objects import Object


def require_writable(url: str | os.PathLike[str]) -> None:
    """Writes a small object below a gs:// URL and deletes it.

    Raises:
        ConfigError: it is no such URL.
        StorageError: the bucket refuses one of both.
    """
    prefix, name = Prefix(url), f".janus.{uuid.uuid4().hex}"
    generation = prefix.write(name, b"")
    prefix.delete([Object(name, 0, "", generation)])


def unwritable(path: str | os.PathLike[str]) -> str | None:
    """`local.unwritable`, and for a gs:// URL why it can never be written as things are; None if it can.

    Raises:
        ConfigError: a URL of another kind.
        StorageError: the bucket does not answer, so that nobody knows.
    """
    if not is_url(path):
        return local.unwritable(path)
    from google.api_core import exceptions as api
    from google.auth.exceptions import GoogleAuthError

    try:
        require_writable(path)
    except StorageError as error:
        if isinstance(error.__cause__, api.Forbidden | api.NotFound | api.Unauthorized | GoogleAuthError):
            return str(error.args[-1])
        raise
    return None
