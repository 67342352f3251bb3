"""Whether a run is alive somewhere, as its heartbeats in the bucket say: its hosts need not be reached for that."""

import time

from janus_jax.errors import counted
from launch.cloud.bucket import Stored
from launch.context import Context
from launch.records import STALE_S
from launch.runs.snapshot import Reader


def signs(context: Context, stored: Stored) -> str:
    """The signs of life of a run, in words; "" without any.

    Args:
        stored: run.json.
    Raises:
        CloudError: the bucket refused.
    """
    snapshot = Reader(context.records).read(clock=not context.dry_run)
    if snapshot.run is None or snapshot.run.run_id != stored.value["run_id"]:
        return ""
    now_s = time.time() if snapshot.clock_s is None else snapshot.clock_s
    hosts = snapshot.hosts(now_s)
    if count := sum(host.beats for host in hosts):
        return f"{counted(count, 'host')} of it sent a heartbeat in the last {STALE_S:.0f} s"
    return "" if hosts or now_s - stored.updated_s > STALE_S else "it has just been started"
