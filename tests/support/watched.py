"""A process that meets another one under a parent, as `janus train` does, and plays a part in place of training."""

import os
import signal
import sys
import time

from janus_jax.parallel import star, supervisor


def alone() -> None:
    """Stands still, watched by a thread."""
    channel = supervisor.start_thread()
    with channel.bounded({"setup": 0.2}):
        time.sleep(60)


def main(port: str, process: str, part: str) -> None:
    star.DEAD_S = supervisor.STOPPED_S = supervisor._USUAL_GRACE_S = 1.0
    star.BEAT_S = supervisor.POLL_S = supervisor._SETTLE_S = 0.1
    supervisor.supervise()
    channel = supervisor.start_thread()
    heard = []
    signal.signal(signal.SIGTERM, lambda number, frame: heard.append(number))
    channel.meet(star.Place(f"127.0.0.1:{port}", 2, int(process)), 60.0)
    print(os.getpid(), flush=True)
    if part == "abort":
        os.write(2, b"a stack of C++\n")
        os.abort()
    if part == "fail":
        supervisor.last_words(12, "error: step 7: loss is nan")
        time.sleep(60)  # as JAX does, which waits for the others
    if part == "traceback":
        supervisor.last_words(1, "Traceback\n  of JAX\nJaxRuntimeError: gloo", soft=True)
        sys.exit(1)
    if part == "leave":
        os._exit(130)  # at a second Ctrl-C
    if part == "hear":
        time.sleep(1)
        print(len(heard), flush=True)
        supervisor.last_words(10, "stopped: all is saved")
        sys.exit(10)
    if part == "saved":
        supervisor.last_words(10, "stopped: all is saved")
        time.sleep(60)
    with channel.bounded({"step": 1.0}) as progress, progress.phase("setup"):
        while part == "move":
            progress.moved()
            time.sleep(0.05)
        for _ in range(2):
            progress._rounds["step"] = 2
        with progress.phase("step"):
            time.sleep(60)


if __name__ == "__main__":
    main(*sys.argv[1:]) if sys.argv[1:] else alone()
