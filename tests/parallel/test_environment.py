"""What the command keeps off the console, and what stays on it."""

import subprocess
import sys

from tests.support.repository import ROOT

REMARKS = """
import logging, os, sys, warnings
from janus_jax.parallel.environment import quiet_libraries, use_gloo_on_cpu
quiet_libraries()
sys.modules["torch"] = None  # as where it is not installed
import transformers
import absl.logging
absl.logging.warning("a remark of absl")
for name in ("orbax.checkpoint", "urllib3.connectionpool", "google.auth._default"):
    logging.getLogger(name).warning("a remark of %s", name)
warnings.warn_explicit("a remark", UserWarning, "orbax/x.py", 1, module="orbax.checkpoint")
absl.logging.error("a fault")
warnings.warn_explicit("of the user's own code", UserWarning, "mine.py", 1, module="mine")
import jax
jax.config.update("jax_platforms", "cpu")
use_gloo_on_cpu()
os.write(1, b"[Gloo] Rank 0 is connected\\n")
print("a line of the run", flush=True)
"""


def test_remarks_of_libraries_are_kept_back_and_errors_are_not():
    done = subprocess.run([sys.executable, "-c", REMARKS], capture_output=True, text=True, check=True, cwd=ROOT)
    assert done.stdout == "a line of the run\n"
    assert "PyTorch" not in done.stderr and "a remark" not in done.stderr
    assert "a fault" in done.stderr and "of the user's own code" in done.stderr
