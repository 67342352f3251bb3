"""gcloud in this process, machines and bucket together, that notes each call: a real one takes a second or two of a
processor."""

import json
from collections.abc import Sequence

from launch.cloud.gcloud import Result
from launch.context import Context
from tests.support.fake_machines import FakeMachines, settings
from tests.support.launches import Store
from tests.support.storage_api import LOGIN, StorageApi


class Counted:
    """A `runner`, and a `transport`. `calls` has the words of each call of gcloud up to the first flag."""

    def __init__(self) -> None:
        self.machines, self.store, self.calls, self.lines = FakeMachines(["ACTIVE"]), Store(), list[str](), list[str]()
        self.api = StorageApi(self.store, {"a-token"})
        self.renew()

    def renew(self) -> None:
        """A context as that of a new command."""
        self.context = Context(settings(bucket="gs://bkt"), say=self.lines.append, runner=self.run, transport=self.api)

    def run(self, words: Sequence[str], stdin: str | None, timeout_s: float | None) -> Result:
        assert words[1] != "storage", words
        self.calls.append(" ".join(words[3:5] if words[1] == "compute" else words[1:3]))
        if words[1] == "config":
            return Result(0, json.dumps(LOGIN), "")
        return self.machines.run(words, stdin, timeout_s)
