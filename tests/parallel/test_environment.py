"""What the command keeps off the console, and what stays on it; what TensorFlow and seqio are imported without."""

import os
import subprocess
import sys

import pytest

from janus_jax.parallel.environment import without_keras
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


def test_seqio_is_imported_without_keras_which_others_may_still_use():
    code = (
        "import os, sys\nfrom janus_jax.data.tensorflow_quietly import import_seqio\n"
        "seqio = import_seqio()\nprint('keras' in sys.modules, 'TF_USE_LEGACY_KERAS' in os.environ)\n"
        "import tensorflow_text\nlayer = tensorflow_text.keras.layers.ToDense\n"
        "import keras\nprint(issubclass(layer, keras.layers.Layer), seqio.SentencePieceVocabulary.__name__)\n"
    )
    environment = {name: value for name, value in os.environ.items() if name != "TF_USE_LEGACY_KERAS"}
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT, env=environment
    )
    assert done.stdout == "False False\nTrue SentencePieceVocabulary\n"


@pytest.mark.parametrize(("error", "shown"), [("ImportError('no such module')", True), ("Interrupted(2)", False)])
def test_what_tensorflow_writes_while_it_loads_is_shown_if_it_fails_and_not_after_a_signal(error, shown):
    code = (
        "import os, sys\nfrom janus_jax.data.tensorflow_quietly import import_tfds\n"
        "from janus_jax.errors import Interrupted\n"
        "class Finder:\n"
        "    def find_spec(self, name, path, target=None):\n"
        "        if name == 'tensorflow':\n"
        "            os.write(2, b'no drivers')\n"
        f"            raise {error}\n"
        "sys.meta_path.insert(0, Finder())\n"
        "try: import_tfds()\nexcept BaseException as error: print(repr(error))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
    assert (done.stdout, "no drivers" in done.stderr) == (f"{error}\n", shown)


@pytest.mark.parametrize("value", [None, "0"])
def test_the_choice_of_keras_that_a_user_made_stays(value, monkeypatch):
    monkeypatch.delenv("TF_USE_LEGACY_KERAS", raising=False)
    if value is not None:
        monkeypatch.setenv("TF_USE_LEGACY_KERAS", value)
    with without_keras():
        assert os.environ["TF_USE_LEGACY_KERAS"] == (value or "1")
    assert os.environ.get("TF_USE_LEGACY_KERAS") == value
