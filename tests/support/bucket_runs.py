"""What a process does in tests of runs in a bucket."""

import os
import signal
import sys
import time
from pathlib import Path


def kill(config: str, at: str) -> None:
    """Trains; killed in the reference pass (`pass`), or when step `at` has a first object; empty: not at all."""
    from janus_jax.config.run import RunConfig
    from janus_jax.parallel.processes import RuntimeOptions
    from janus_jax.storage.bucket import Prefix
    from janus_jax.training import reference, run
    from janus_jax.training.hooks import Save

    to_host, save, scored = reference._to_host, Save._save, []

    def counting(tree):
        scored.append(tree)
        if at == "pass" and len(scored) == 2:
            os.kill(os.getpid(), signal.SIGKILL)
        return to_host(tree)

    def saving(self, training):
        save(self, training)
        if str(training.step) == at:
            while not Prefix(f"{training.dir.checkpoints}/{at}").holds_any():
                time.sleep(0.01)
            os.kill(os.getpid(), signal.SIGKILL)

    reference._to_host, reference._SAVE_EVERY_S, Save._save = counting, 0, saving
    run.train(RunConfig.model_validate_json(Path(config).read_text()), RuntimeOptions(devices=8))


def two(config: str, until: str, port: str, process: str) -> None:
    """Trains on two of four devices. In a bucket, process 0 cannot write the commit mark of step 2."""
    from janus_jax.config.run import RunConfig
    from janus_jax.errors import StorageError
    from janus_jax.parallel.processes import RuntimeOptions
    from janus_jax.storage.gs_path import GsPath
    from janus_jax.training import run

    opened = GsPath.open

    def refusing(self, mode="r", **kwargs):
        if "w" in mode and str(self).endswith("checkpoints/2/commit_success.txt"):
            raise StorageError(self, "cannot be written: refused by the test")
        return opened(self, mode, **kwargs)

    GsPath.open = refusing
    options = RuntimeOptions(f"127.0.0.1:{port}", 2, int(process), 2)
    run.train(
        RunConfig.model_validate_json(Path(config).read_text()), options, until_step=int(until) if until else None
    )


if __name__ == "__main__":
    {"kill": kill, "two": two}[sys.argv[1]](*sys.argv[2:])
