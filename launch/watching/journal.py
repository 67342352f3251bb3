"""The one log of what `watch` did: printed, kept on this workstation, and in the bucket beside the run."""

import contextlib
import datetime
import os
from pathlib import Path

from launch.cloud.bucket import Bucket
from launch.cloud.gcloud import Say
from launch.context import cache_folder
from launch.errors import CloudError, Kind

NAME = "watch.log"


class Journal:
    """Lines with times. The copy in the bucket is replaced as a whole, at most once a look.

    Args:
        records: the folder of the launch in the bucket.
    """

    def __init__(self, records: Bucket, name: str, say: Say):
        self._records, self._name, self._say = records, name, say
        self._run_id: str | None = None
        self._earlier: str | None = None
        self._lines: list[str] = []
        self._unsent = False

    @property
    def path(self) -> Path:
        """The copy on this workstation."""
        return Path(cache_folder()) / self._name / NAME

    def follow(self, run_id: str | None) -> None:
        """Lines from now on belong to this run."""
        if run_id != self._run_id:
            self.send()
            kept = self._lines if self._run_id is None else []
            self._run_id, self._earlier, self._lines = run_id, None, kept

    def write(self, text: str) -> None:
        """Adds a line."""
        now = datetime.datetime.now(datetime.UTC)
        line = f"{now:%Y-%m-%d %H:%M:%SZ} {text}"
        self._say(line)
        self._lines.append(line + "\n")
        self._unsent = True
        with contextlib.suppress(OSError):
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with self.path.open("a", encoding="utf-8") as file:
                file.write(line + "\n")

    def send(self) -> None:
        """Brings what is new to the bucket. A bucket that refuses gets it the next time."""
        if not self._unsent or self._run_id is None:
            return
        name = f"{self._run_id}/{NAME}"
        with contextlib.suppress(CloudError, OSError):
            if self._earlier is None:
                self._earlier = self._text(name)
            whole = self.path.with_suffix(f".{os.getpid()}.part")
            whole.parent.mkdir(parents=True, exist_ok=True)
            try:
                whole.write_text(self._earlier + "".join(self._lines), encoding="utf-8")
                self._records.upload(whole, name)
            finally:
                whole.unlink(missing_ok=True)
            self._unsent = False

    def _text(self, name: str) -> str:
        try:
            return self._records.text([name])
        except CloudError as error:
            if error.kind is not Kind.NOT_FOUND:
                raise
        return ""
