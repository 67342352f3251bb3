"""A second process finds what the first one compiled; what a kill has left is no trouble."""

import os
import subprocess
import sys

import pytest

_SCRIPT = """
import sys, warnings
warnings.simplefilter("error")
from janus_jax.parallel import compiled_programs
kept = compiled_programs.keep(sys.argv[1])
import jax
from jax import monitoring
events = []
monitoring.register_event_listener(lambda name, **_: events.append(name.rpartition("/")[2]))
jax.jit(lambda x: x @ x + 1)(jax.numpy.ones((8, 8))).block_until_ready()
print(kept, "cache_hits" in events, "cache_misses" in events, jax.config.jax_compilation_cache_max_size)
"""


def run(directory, **environment):
    own = {name: value for name, value in os.environ.items() if not name.startswith("JAX_")}
    own |= {"JAX_PLATFORMS": "cpu", "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0"} | environment
    done = subprocess.run(
        [sys.executable, "-c", _SCRIPT, directory], env=own, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr
    return [*done.stdout.split(), done.stderr]


def test_programs_are_compiled_once_and_what_was_cut_is_compiled_again(tmp_path):
    programs = tmp_path / "a" / "programs"
    most = str(10 << 30)
    assert run(programs) == ["True", "False", "True", most, ""]
    assert run(programs) == ["True", "True", "False", most, ""]
    for program in programs.glob("*-cache"):  # a process was killed while it wrote
        program.write_bytes(program.read_bytes()[:10])
        program.with_name(program.name.replace("-cache", "-atime")).unlink()
    (programs / "gone-atime").write_bytes(b"12345678")
    assert run(programs) == ["True", "False", "True", most, ""]
    assert not (programs / "gone-atime").exists()
    assert run(programs)[1] == "True"


@pytest.mark.parametrize("other", ["JAX_COMPILATION_CACHE_DIR", "JAX_ENABLE_COMPILATION_CACHE"])
def test_what_the_user_has_set_stays(tmp_path, other):
    value = str(tmp_path / "own") if other.endswith("DIR") else "false"
    assert run(tmp_path / "programs", **{other: value})[:2] == ["False", "False"]
    assert not (tmp_path / "programs").exists() and (tmp_path / "own").exists() == other.endswith("DIR")


def test_a_place_that_cannot_be_written_is_not_used_and_a_note_says_so(tmp_path):
    (tmp_path / "file").write_text("")
    programs = tmp_path / "file" / "programs"
    kept, *_, said = run(programs)
    assert kept == "False"
    assert said == f"note: {programs}: not a directory; compiled programs are not kept (JANUS_CACHE)\n"
