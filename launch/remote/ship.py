"""The code that hosts run: what of the checkout they need, its identity, and the way to them."""

import contextlib
import dataclasses
import gzip
import hashlib
import io
import os
import shlex
import subprocess
import tarfile
import tempfile
import zlib
from typing import TYPE_CHECKING

from janus_jax.errors import ConfigError
from launch.context import Context
from launch.errors import CloudError, Kind
from launch.remote.hosts import Answer, Host, Hosts

if TYPE_CHECKING:
    from launch.cloud.bucket import Bucket

PARTS = ("janus_jax/", "launch/", "configs/", "pyproject.toml", "constraints-", "README.md", "LICENSE", "NOTICE")
"""What hosts need: names begin with one of these."""
LARGEST_BYTES = 100 * 2**20
"""Of all files together: more is data, which belongs in the bucket."""


@dataclasses.dataclass(frozen=True)
class Code:
    """Files of a checkout."""

    files: dict[str, tuple[bytes, bool]]
    """Contents, and whether the file is executable, by path."""

    @property
    def identity(self) -> str:
        """The same for the same files."""
        hashed = hashlib.sha256()
        for name, (content, executable) in sorted(self.files.items()):
            hashed.update(f"{name}\0{int(executable)}\0{len(content)}\0".encode())
            hashed.update(content)
        return hashed.hexdigest()[:16]

    def archive(self) -> bytes:
        """A tar.gz of the files: the same bytes for the same files."""
        packed = io.BytesIO()
        with (
            gzip.GzipFile(fileobj=packed, mode="wb", mtime=0, compresslevel=6) as zipped,
            tarfile.open(fileobj=zipped, mode="w", format=tarfile.PAX_FORMAT) as tar,
        ):
            for name, (content, executable) in sorted(self.files.items()):
                entry = tarfile.TarInfo(name)
                entry.size, entry.mode = len(content), 0o755 if executable else 0o644
                tar.addfile(entry, io.BytesIO(content))
        return packed.getvalue()


def read(root: str, revision: str | None = None) -> Code:
    """The files of the checkout as they are, those that git does not know yet included; or of a git revision.

    Raises:
        ConfigError: no such revision, no git checkout, or far too much.
    """
    files = _of_revision(root, revision) if revision is not None else _of_tree(root)
    total = sum(len(content) for content, _ in files.values())
    if total > LARGEST_BYTES:
        largest = max(files, key=lambda name: len(files[name][0]))
        raise ConfigError(
            os.path.join(root, largest),
            f"the checkout is {total >> 20} MiB, the largest file {len(files[largest][0]) >> 20} MiB; allowed: "
            f"{LARGEST_BYTES >> 20} MiB of code and configs; put data into the bucket, or into .gitignore",
        )
    return Code(files)


def keep(records: "Bucket", code: Code) -> None:
    """Puts the files into the bucket, unless they are there: a run starts again with exactly these.

    Raises:
        CloudError: the bucket refused.
    """
    with tempfile.NamedTemporaryFile(suffix=".tar.gz") as file:
        file.write(code.archive())
        file.flush()
        records.upload(file.name, _kept(code.identity), once=True)


def kept(context: Context, identity: str) -> Code:
    """The files of an identity: of this checkout if it is the same, or else from the bucket.

    Raises:
        ConfigError: they are in neither place.
        CloudError: the bucket refused.
    """
    with contextlib.suppress(ConfigError):  # a checkout without git, or of another time, is no fault here
        if (here := read(context.root)).identity == identity:
            return here
    url, problem = f"{context.records.url}/{_kept(identity)}", "is not there"
    with tempfile.TemporaryDirectory() as folder:
        path = os.path.join(folder, "code.tar.gz")
        try:
            context.records.download(_kept(identity), path)
            with tarfile.open(path) as tar:
                code = Code(_of_tar(tar))
            if code.identity == identity:
                return code
            problem = f"holds {code.identity}"
        except CloudError as error:
            if error.kind is not Kind.NOT_FOUND:
                raise
        except (OSError, EOFError, zlib.error, tarfile.TarError) as error:
            problem = f"cannot be read: {error}"
    raise ConfigError(url, f"{problem}, and this checkout is another than the run's; `run` starts it with this one")


def _kept(identity: str) -> str:
    return f"code/{identity}.tar.gz"


def send(hosts: Hosts, code: Code, only: list[Host]) -> list[Answer]:
    """Brings the files to hosts, into janus/code/ID. They appear there all at once, or not at all."""
    packed, name = code.archive(), shlex.quote(code.identity)
    command = (
        "umask 022; cd && mkdir -p janus/code && cd janus/code && "
        "find . -maxdepth 1 -name '.new-*' -mmin +60 -exec rm -rf {} + && "  # of transfers that broke off
        "t=$(mktemp -d .new-XXXXXX) && chmod 755 $t && "
        f"if tar -xzf - -C $t; then test -d {name} || mv -T $t {name} 2>/dev/null; rm -rf $t; test -d {name}; "
        "else rm -rf $t; echo 'the checkout did not arrive whole' >&2; exit 1; fi"
    )
    return hosts.each(command, stdin=packed, only=only, timeout_s=600, tries=3)


def _needed(name: str) -> bool:
    return name.startswith(PARTS) and "__pycache__" not in name


def _of_tree(root: str) -> dict[str, tuple[bytes, bool]]:
    listing = _git(root, "ls-files", "-z", "--cached", "--others", "--exclude-standard")
    files = {}
    for name in filter(_needed, os.fsdecode(listing).split("\0")):
        path = os.path.join(root, name)
        if os.path.isfile(path):  # a deleted file is still listed
            with open(path, "rb") as file:
                files[name] = file.read(), os.access(path, os.X_OK)
    return files


def _of_revision(root: str, revision: str) -> dict[str, tuple[bytes, bool]]:
    try:
        commit = _git(root, "rev-parse", "--verify", "--quiet", "--end-of-options", f"{revision}^{{commit}}")
    except ConfigError:
        raise ConfigError(f"--revision {revision}", f"no commit in {root}; allowed: a commit, branch or tag") from None
    packed = _git(root, "archive", "--format=tar", commit.decode().strip())
    with tarfile.open(fileobj=io.BytesIO(packed)) as tar:
        return {name: file for name, file in _of_tar(tar).items() if _needed(name)}


def _of_tar(tar: tarfile.TarFile) -> dict[str, tuple[bytes, bool]]:
    files = {}
    for entry in tar:
        if entry.isfile() and (content := tar.extractfile(entry)):
            files[entry.name] = content.read(), bool(entry.mode & 0o100)
    return files


def _git(root: str, *words: str) -> bytes:
    try:
        done = subprocess.run(["git", "-C", root, *words], capture_output=True, check=False)
    except FileNotFoundError:
        raise ConfigError("git", "is not installed; setup lists the files of the checkout with it") from None
    if done.returncode:
        raise ConfigError(root, f"git {words[0]}: {done.stderr.decode(errors='replace').strip()[:200]}")
    return done.stdout
