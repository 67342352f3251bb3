"""Built data sets on gs://: copies the parts that a run reads.

    CACHE/data/KEY/      manifest.json, tokenizer/, SPLIT/

KEY is a hash of the URL and the manifest, so a second run downloads the manifest alone (`storage/staging.py`).
"""

import functools
import os
from pathlib import Path

from janus_jax.data.dataset import MANIFEST, Manifest
from janus_jax.errors import StorageError
from janus_jax.storage.bucket import Object, Prefix, is_url
from janus_jax.storage.staging import MARKER, cache, place_of, stage


def dataset(directory: str, split: str) -> Path:
    """The local directory of a built data set: `directory` itself, or for a gs:// URL a copy with this split.

    Raises:
        StorageError: the manifest is missing, or a part of the split cannot be read.
    """
    if not is_url(directory):
        return Path(os.path.expanduser(directory))
    prefix = Prefix(directory)
    try:
        manifest, content = _manifest(prefix)
    except StorageError as error:
        copies = [
            place.parent for place in cache().glob("data/*/.url") if place.read_text(encoding="utf-8") == prefix.url
        ]
        hint = f"; a copy from an earlier run, perhaps outdated: {copies[0]}" if copies else ""
        raise StorageError(f"{error}{hint}") from error
    place = place_of("data", prefix.url, content)

    def describe(new: Path) -> None:
        (new / MANIFEST).write_bytes(content)

    def fill(part: str, new: Path) -> None:
        objects = prefix.below(part).list()
        if not objects:
            raise StorageError(prefix.url_of(part), "cannot be read: no such object; upload the data set again")
        prefix.below(part).download(objects, new)
        if prefix.find(MANIFEST) != manifest:
            raise StorageError(prefix.url, "was replaced while it was read; start again")

    stage(place, prefix.url, describe)
    parts = ["tokenizer"]
    if split in Manifest.load(place).splits:  # otherwise `TokenizedDataset` names the existing splits
        parts.append(split)
    for part in parts:
        stage(place / part, None, functools.partial(fill, part))
    return place


def _manifest(prefix: Prefix) -> tuple[Object, bytes]:
    manifest = prefix.find(MANIFEST)
    if manifest is not None:
        return manifest, prefix.read(manifest)
    state = "an upload to it has not finished" if prefix.find(MARKER) else "`janus data build` makes a data set"
    raise StorageError(prefix.url_of(MANIFEST), f"cannot be read: no such object; {state}")
