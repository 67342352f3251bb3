"""Whether all processes, whose copies of a model lie on hosts of their own, have the same weights."""

import concurrent.futures
import hashlib
from collections.abc import Iterator, Mapping
from pathlib import Path

from janus_jax.checkpoint.digest import digest
from janus_jax.checkpoint.hf.keys import key_table
from janus_jax.checkpoint.stored_model import StoredModel
from janus_jax.parallel import processes
from janus_jax.parallel.same_everywhere import are_same, require_same, several
from janus_jax.storage.bucket import Prefix, is_url, os_errors

_AT_ONCE = 4
_SLOWEST_S = 3600
"""How long processes wait for the one that reads its weights last."""


def require_same_weights(models: Mapping[str, StoredModel]) -> None:
    """Raises ConfigError on every process if one of them has other weights of a model.

    Copies are read once more for this, unless all hosts see the very same files.

    Args:
        models: by the key or option that names them.
    """
    if not several():
        return
    with processes.agreement("files of weights"):
        files = {key: file_facts(model) for key, model in models.items()}
    if not are_same("files of weights", files):
        with processes.agreement("checksums of weights", timeout_s=_SLOWEST_S):
            sums = {f"{key}: {name}": value for key, model in models.items() for name, value in weight_facts(model)}
        require_same("weights", sums)


def file_facts(model: StoredModel) -> str:
    """A digest of what tells the very same files from copies of them; on gs:// of what the service says of them."""
    seen = hashlib.sha256()
    if is_url(model.path):
        for item in Prefix(model.path).list():
            seen.update(repr((item.name, item.size, item.crc32c)).encode())
        return seen.hexdigest()
    root = Path(model.path)
    with os_errors(root, "cannot be read"):
        for path in sorted(root.rglob("*")):
            at = path.stat()
            seen.update(repr((str(path.relative_to(root)), at.st_ino, at.st_size, at.st_ctime_ns)).encode())
    return seen.hexdigest()


def weight_facts(model: StoredModel) -> Iterator[tuple[str, str]]:
    """Yields name and checksum of each tensor, the same in whatever form it is stored. Reads all of them."""
    entries = key_table(model.config)
    with concurrent.futures.ThreadPoolExecutor(_AT_ONCE, thread_name_prefix="checksums") as pool:
        sums = pool.map(lambda entry: digest(model.read(entry)), entries)
        yield from zip((entry.key for entry in entries), sums, strict=True)
