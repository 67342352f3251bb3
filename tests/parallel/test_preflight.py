"""An environment in which JAX would crash is refused in one line, and one in which it works is not.

More variables: `pytest -n 0 -m slow tests/parallel/test_preflight.py`.
"""

import os
import socket
import subprocess
import sys

import jax
import pytest

from janus_jax.errors import ConfigError, HeldError, LostPeerError
from janus_jax.parallel import preflight, processes
from janus_jax.parallel.processes import RuntimeOptions, start
from janus_jax.parallel.star import Place
from tests.support.repository import ROOT

FLAG = "--xla_cpu_prefer_vector_width=128"


@pytest.fixture
def before_jax(monkeypatch):
    """As if JAX had not started in this process."""
    monkeypatch.setattr(preflight, "_jax_has_started", lambda: False)


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (f"{FLAG} --xla_no_such=1", "XLA_FLAGS: XLA does not know --xla_no_such=1"),
        ("--xla_cpu_prefer_vector_width=wide", "XLA_FLAGS: Couldn't interpret value wide for flag xla_cpu_prefer"),
        ("no/such/file", "XLA_FLAGS=no/such/file: No such file or directory; allowed: flags that begin with --, or"),
    ],
)
def test_flags_that_xla_does_not_know_are_named(before_jax, monkeypatch, flags, message):
    monkeypatch.setenv("XLA_FLAGS", flags)
    with pytest.raises(ConfigError) as refused:
        preflight.require_known_xla_flags()
    assert str(refused.value).startswith(message) and "\n" not in str(refused.value)


def test_flags_of_a_file_are_read_and_others_may_be_added(before_jax, monkeypatch, tmp_path):
    (tmp_path / "flags").write_text(f"{FLAG}\n--xla_backend_optimization_level=0\n")
    monkeypatch.setenv("XLA_FLAGS", str(tmp_path / "flags"))
    preflight.require_known_xla_flags()
    assert os.environ["XLA_FLAGS"] == f"{FLAG}\n--xla_backend_optimization_level=0"
    (tmp_path / "flags").write_text("--xla_no_such=1")
    monkeypatch.setenv("XLA_FLAGS", str(tmp_path / "flags"))
    with pytest.raises(ConfigError, match="--xla_no_such=1"):
        preflight.require_known_xla_flags()


def test_a_process_whose_jax_has_started_is_left_alone(monkeypatch):
    jax.devices()
    monkeypatch.setenv("XLA_FLAGS", "--xla_no_such=1")
    preflight.require_known_xla_flags()
    assert os.environ["XLA_FLAGS"] == "--xla_no_such=1"


@pytest.mark.parametrize(
    ("variable", "message"),
    [
        ("JAX_ENABLE_X64=banana", "JAX_ENABLE_X64=banana: allowed: true or false"),
        ("JAX_DEFAULT_PRNG_IMPL=foo", "JAX_DEFAULT_PRNG_IMPL=foo: JAX does not know this value; unset the variable"),
        ("JAX_DEFAULT_DEVICE=foo", "JAX_DEFAULT_DEVICE=foo: allowed: cpu, gpu, cuda, rocm or tpu"),
        pytest.param("JAX_LOG_COMPILES=", "JAX_LOG_COMPILES=: allowed: true or false", marks=pytest.mark.slow),
    ],
)
def test_a_variable_that_jax_refuses_is_named(variable, message):
    """In a process of its own: JAX reads its variables when it is imported."""
    script = "from janus_jax.parallel.preflight import require_known_jax_variables as look; look()"
    environ = {**os.environ, **dict([variable.split("=")])}
    done = subprocess.run([sys.executable, "-c", script], env=environ, cwd=ROOT, capture_output=True, text=True)
    assert done.stderr.splitlines()[-1] == f"janus_jax.errors.ConfigError: {message}"


def test_a_default_device_that_is_not_here_is_named(monkeypatch):
    monkeypatch.setenv("JAX_DEFAULT_DEVICE", "rocm")
    with pytest.raises(ConfigError, match=r"^JAX_DEFAULT_DEVICE=rocm: JAX cannot use such devices here: .*; unset it$"):
        preflight.devices()


def test_flags_that_libtpu_does_not_know_are_named(monkeypatch, tmp_path):
    library = tmp_path / "libtpu.so"
    library.write_bytes(b"\x7fELF\0xla_tpu_one\0other_xla_tpu_two\0xla_tpu_three_long\0")
    for good in ("", "--xla_tpu_one=1", "--noxla_tpu_one -xla_tpu_one=a"):
        monkeypatch.setenv("LIBTPU_INIT_ARGS", good)
        preflight.require_known_libtpu_flags(library)
    for bad in ("two", "three"):
        monkeypatch.setenv("LIBTPU_INIT_ARGS", f"--xla_tpu_one=1 --xla_tpu_{bad}=2")
        with pytest.raises(ConfigError, match=f"LIBTPU_INIT_ARGS: the installed libtpu does not know --xla_tpu_{bad}$"):
            preflight.require_known_libtpu_flags(library)


@pytest.mark.parametrize(
    ("hosts", "number", "message"),
    [
        ("", "", None),
        ("localhost", "", None),
        ("a,b", "1", None),
        ("", "1", "TPU_WORKER_ID=1: needs TPU_WORKER_HOSTNAMES"),
        ("a,b", "", "TPU_WORKER_HOSTNAMES=a,b: needs TPU_WORKER_ID"),
        ("a,b", "2", "TPU_WORKER_ID=2: allowed: 0 to 1"),
        ("a,b", "one", "TPU_WORKER_ID=one: allowed: 0 to 1"),
    ],
)
def test_half_set_tpu_variables_are_refused(hosts, number, message):
    variables = {"TPU_WORKER_HOSTNAMES": hosts, "TPU_WORKER_ID": number}
    if message is None:
        preflight.require_whole_tpu_variables(variables)
    else:
        with pytest.raises(ConfigError, match=f"^{message}"):
            preflight.require_whole_tpu_variables(variables)


@pytest.mark.parametrize("host", ["0.0.0.0", "127.0.0.1"])
def test_a_taken_port_is_refused_before_jax_meets_it(monkeypatch, host):
    monkeypatch.setattr(preflight, "_PORT_WAIT_S", 0.1)
    with socket.socket() as taken:
        taken.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # as JAX's coordinator does
        taken.bind((host, 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(LostPeerError, match=f"^--coordinator localhost:{port}: port {port} of this machine is tak"):
            start(RuntimeOptions(f"localhost:{port}", 1, 0))
        with socket.create_connection(("127.0.0.1", port)) as client:
            connection = taken.accept()[0]
            connection.close()  # first, so that the port goes into TIME_WAIT
            client.recv(1)
    preflight.require_free_port(f"localhost:{port}")


def test_what_a_tpu_pod_says_of_itself_is_where_its_processes_meet(monkeypatch):
    from jax._src import clusters

    text = ("10.0.0.2:8476", 4, 1, None)
    detect = "auto_detect_unset_distributed_params"
    monkeypatch.setattr(clusters.ClusterEnv, detect, lambda *given: text)
    monkeypatch.setattr(processes.environment, "uses_cpu_only", lambda: False)
    monkeypatch.setattr(processes, "_on_tpu_vm", lambda: True)
    monkeypatch.setenv("JAX_COORDINATOR_PORT", "8476")
    asked = []

    class Channel:
        def meet(self, place, timeout_s):
            asked.append((place, timeout_s))
            raise LostPeerError("nobody came")

    monkeypatch.setattr(processes.supervisor, "start_thread", Channel)
    with pytest.raises(LostPeerError, match="nobody came"):
        start(RuntimeOptions(start_timeout_s=7, run="runs/x"))
    assert asked == [(Place("10.0.0.2:8476", 4, 1, "runs/x"), 7)]

    def silent(*given):
        raise RuntimeError("Failed to recognize coordinator address t1k-w-0")

    monkeypatch.setattr(clusters.ClusterEnv, detect, silent)
    with pytest.raises(LostPeerError, match="does not say which others it belongs to: Failed to recognize"):
        start(RuntimeOptions())


STARTS = """
from janus_jax.errors import JanusError
from janus_jax.parallel import preflight, processes
try:
    processes.start(processes.RuntimeOptions(devices=DEVICES))
    print(len(preflight.devices()))
except JanusError as error:
    print(error.exit_code, error)
"""


@pytest.mark.parametrize(
    ("devices", "variables", "expected"),
    [
        pytest.param(
            None,
            {"JAX_PLATFORMS": "cuda"},
            "2 JAX_PLATFORMS=cuda: JAX cannot use such devices here",
            marks=pytest.mark.slow,
        ),
        (None, {"JAX_PLATFORMS": "vax"}, "2 JAX_PLATFORMS=vax: JAX cannot use such devices here: Unable to initialize"),
        (2, {"JAX_PLATFORMS": "vax", "XLA_FLAGS": "--xla_force_host_platform_device_count=4"}, "2\n"),
        pytest.param(2, {"JAX_NUM_CPU_DEVICES": "4", "TPU_WORKER_ID": "1"}, "2\n", marks=pytest.mark.slow),
    ],
)
def test_platforms_and_numbers_of_devices(devices, variables, expected):
    kept = {name: value for name, value in os.environ.items() if name not in ("XLA_FLAGS", "JAX_PLATFORMS")}
    program = STARTS.replace("DEVICES", str(devices))
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, cwd=ROOT, env=kept | variables
    )
    assert done.stdout.startswith(expected) and len(done.stdout.splitlines()) == 1, done.stdout + done.stderr


def test_devices_that_another_process_holds_are_worth_another_try(monkeypatch):
    def refuse():
        raise RuntimeError("Unable to initialize backend 'tpu': ABORTED: The TPU is already in use by process 7")

    monkeypatch.setattr(jax, "devices", refuse)
    with pytest.raises(HeldError, match=r"held by another process: .* in use by process 7"):
        preflight.devices()


def test_process_0_listens_at_the_coordinator_s_own_address_alone():
    with socket.socket() as other:
        other.bind(("127.0.0.2", 0))
        other.listen()
        port = other.getsockname()[1]
        preflight.require_free_port(f"127.0.0.1:{port}")  # of a run at another address
        ours = preflight.bound(f"127.0.0.1:{port}")
        assert isinstance(ours, socket.socket) and ours.getsockname() == ("127.0.0.1", port)
        ours.close()
        assert isinstance(preflight.bound(f"127.0.0.2:{port}"), OSError)


@pytest.mark.parametrize("coordinator", ["localhost:8476", "198.51.100.7:8476"])
def test_a_name_or_a_translated_address_means_all_addresses(coordinator):
    assert preflight.listen_address(coordinator) == "[::]:8476"
