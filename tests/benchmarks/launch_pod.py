"""What `launch` itself costs on a pod: set-up and a call of the agent on 64 hosts behind a shim of ssh, no training.

    python -m tests.benchmarks.launch_pod [HOSTS]

prints seconds, and how many connections were open at once.
"""

import sys
import tempfile
import time
from pathlib import Path

import pytest

from launch.remote import environment
from tests.support.pods import Pod


def most_at_once(events: list[dict]) -> int:
    """The largest number of calls of ssh at one time."""
    moments = sorted((event["at"], 1 if "words" in event else -1) for event in events)
    count = most = 0
    for _, change in moments:
        count += change
        most = max(most, count)
    return most


def main(hosts: int) -> None:
    with tempfile.TemporaryDirectory() as scratch, pytest.MonkeyPatch.context() as patch:
        patch.setenv("JAX_PLATFORMS", "cpu")
        pod = Pod(Path(scratch), patch, hosts=hosts)
        with pod.connect() as reached:
            for name, call in (
                ("setup, first", lambda: environment.bring(pod.context(), reached)),
                ("setup, again", lambda: environment.bring(pod.context(), reached)),
                ("facts from the agent", lambda: reached.agent("facts")),
            ):
                before, start = len(pod.log()), time.monotonic()
                call()
                seconds, events = time.monotonic() - start, pod.log()[before:]
                print(f"{name:<22} {seconds:6.1f} s, at most {most_at_once(events)} of {hosts} connections at once")


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 64)
