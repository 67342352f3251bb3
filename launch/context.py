"""What every command is handed: the settings, and the ways to the cloud, the bucket and the user."""

import dataclasses
import getpass
import os
import socket
import sys
from functools import cached_property

from janus_jax.errors import ConfigError
from launch.cloud.bucket import Bucket
from launch.cloud.gcloud import Gcloud, Runner, Say, run_command
from launch.cloud.objects import Objects, Transport
from launch.records import FOLDER
from launch.settings import Settings


def say(line: str) -> None:
    """Shows a line at once."""
    print(line, flush=True)


def cache_folder() -> str:
    """Where this user's launches keep what can be made again."""
    return os.path.join(os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache"), "janus-launch")


@dataclasses.dataclass
class Context:
    """Of one call of `python -m launch`."""

    settings: Settings
    dry_run: bool = False
    say: Say = say
    runner: Runner = run_command
    transport: Transport | None = None
    """Of requests to the bucket; None: the network."""

    @cached_property
    def gcloud(self) -> Gcloud:
        return Gcloud(self.settings.project, self.settings.zone, self.say, dry_run=self.dry_run, runner=self.runner)

    @cached_property
    def objects(self) -> Objects:
        return Objects(self.gcloud, self.transport)

    @cached_property
    def bucket(self) -> Bucket:
        """The bucket of the settings.

        Raises:
            ConfigError: they name none.
        """
        if self.settings.bucket is None:
            raise ConfigError("bucket: missing; allowed: gs://BUCKET in launch/tpu.yaml, or --bucket")
        return Bucket(self.settings.bucket, self.objects)

    @cached_property
    def records(self) -> Bucket:
        """The folder of this launch's records."""
        return self.bucket.at(FOLDER, self.settings.name)

    def folder(self, url: str) -> Bucket:
        """Another folder, `gs://BUCKET/...`, such as a run directory."""
        return Bucket(url, self.objects)

    @property
    def me(self) -> str:
        """USER@WORKSTATION, for records that people read."""
        return f"{getpass.getuser()}@{socket.gethostname()}"

    def warn(self, line: str) -> None:
        """Shows a line on stderr."""
        print(line, file=sys.stderr, flush=True)

    @property
    def root(self) -> str:
        """The checkout."""
        return os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
