"""gcloud in this process, machines and bucket together, that notes each call: a real one takes a second or two of a
processor."""

import base64
import datetime
import hashlib
import json
import re
from collections.abc import Sequence
from pathlib import Path

from launch.cloud.gcloud import Result
from launch.context import Context
from tests.support.fake_machines import FakeMachines, settings
from tests.support.launches import Store, _regex


class Counted:
    """A `runner`. `calls` has the words of each call up to the first flag or URL."""

    def __init__(self) -> None:
        self.machines, self.store, self.calls, self.lines = FakeMachines(["ACTIVE"]), Store(), list[str](), list[str]()
        self.context = Context(settings(bucket="gs://bkt"), say=self.lines.append, runner=self.run)

    def run(self, words: Sequence[str], stdin: str | None, timeout_s: float | None) -> Result:
        if words[1] != "storage":
            self.calls.append(" ".join(words[3:5]))
            return self.machines.run(words, stdin, timeout_s)
        given = [word for word in words[2:] if not word.startswith("--")]
        flags = dict(word[2:].partition("=")[::2] for word in words if word.startswith("--"))
        name = " ".join(given[:2] if given[0] == "objects" else given[:1])
        self.calls.append(name)
        return getattr(self, name.replace(" ", "_"))(given[len(name.split()) :], flags)

    def objects_list(self, urls: list[str], flags: dict[str, str]) -> Result:
        patterns = [re.compile(_regex(url)) for url in urls]
        known = [url for url in self.store.objects if any(pattern.fullmatch(url) for pattern in patterns)]
        return Result(0, json.dumps([self._facts(url) for url in known]), "")

    def objects_describe(self, urls: list[str], flags: dict[str, str]) -> Result:
        if urls[0] not in self.store.objects:
            return Result(1, "", f"ERROR: (gcloud.storage.objects.describe) {urls[0]} not found: 404.")
        return Result(0, json.dumps(self._facts(urls[0])), "")

    def cat(self, urls: list[str], flags: dict[str, str]) -> Result:
        names = [url.partition("#")[0] for url in urls]
        if missing := [name for name in names if name not in self.store.objects]:
            return Result(1, "", f"ERROR: (gcloud.storage.cat) The following URLs matched no objects: {missing[0]}")
        return Result(0, "".join(self.store.objects[name][0].decode() for name in names), "")

    def cp(self, paths: list[str], flags: dict[str, str]) -> Result:
        now = self.store.objects.get(paths[1], (b"", 0, 0.0))[1]
        if int(flags.get("if-generation-match", now)) != now:
            return Result(1, "", "ERROR: (gcloud.storage.cp) HTTPError 412: At least one of the pre-conditions ...")
        self.store.put(paths[1], Path(paths[0]).read_bytes())
        return Result(0, "", "")

    def _facts(self, url: str) -> dict[str, object]:
        content, generation, at_s = self.store.objects[url]
        md5 = base64.b64encode(hashlib.md5(content).digest()).decode()
        facts = {"md5_hash": md5, "storage_url": f"{url}#{generation}", "size": len(content), "generation": generation}
        return {**facts, "update_time": datetime.datetime.fromtimestamp(at_s, datetime.UTC).isoformat()}
