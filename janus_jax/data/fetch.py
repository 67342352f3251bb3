"""gs:// for data: a built data set copied here, as far as it is read.

    CACHE/data/KEY/      manifest.json, tokenizer/, SPLIT/

KEY is a hash of the URL and of the manifest, so that a second run asks for the manifest alone (`storage/staging.py`).
"""

import functools
import os
from pathlib import Path

from janus_jax.data.dataset import Manifest
from janus_jax.errors import StorageError
from janus_jax.storage.bucket import Object, Prefix, is_url
from janus_jax.storage.staging import MARKER, cache, place_of, stage

MANIFEST = "manifest.json"
"""Uploaded last: without it nothing is taken for a data set."""


def dataset(directory: str, split: str) -> Path:
    """A built data set with what reading one split takes: a path as it is, a gs:// URL as its copy here.

    Raises:
        StorageError: there is no manifest, or something that belongs to the split cannot be read.
    """
    if not is_url(directory):
        return Path(os.path.expanduser(directory))
    prefix = Prefix(directory)
    try:
        found, content = _manifest(prefix)
    except StorageError as error:
        copies = [
            place.parent for place in cache().glob("data/*/.url") if place.read_text(encoding="utf-8") == prefix.url
        ]
        hint = f"; read before, and still a copy of what was there then: {copies[0]}" if copies else ""
        raise StorageError(f"{error}{hint}") from error
    place = place_of("data", prefix.url, content)

    def describe(new: Path) -> None:
        (new / MANIFEST).write_bytes(content)

    def fill(part: str, new: Path) -> None:
        objects = prefix.below(part).list()
        if not objects:
            raise StorageError(f"{prefix.url_of(part)}: cannot be read: no such object; upload the data set again")
        prefix.below(part).download(objects, new)
        if prefix.find(MANIFEST) != found:
            raise StorageError(f"{prefix.url}: was replaced while it was read; start again")

    stage(place, prefix.url, describe)
    parts = ["tokenizer"]
    if split in Manifest.load(place).splits:  # otherwise the reader says what there is
        parts.append(split)
    for part in parts:
        stage(place / part, None, functools.partial(fill, part))
    return place


def _manifest(prefix: Prefix) -> tuple[Object, bytes]:
    found = prefix.find(MANIFEST)
    if found is not None:
        return found, prefix.read(found)
    state = "an upload to it has not come to its end" if prefix.find(MARKER) else "`janus data build` makes a data set"
    raise StorageError(f"{prefix.url_of(MANIFEST)}: cannot be read: no such object; {state}")
