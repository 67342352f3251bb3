"""For every test, set before JAX starts: eight simulated CPU devices, quick compiling, checked annotations."""

import atexit
import gc
import os
import shutil
import sys
import tempfile
import uuid

from tests.support.quick import variables

_COMPILED = tempfile.mkdtemp(prefix="janus_jax_compiled_")  # tests share what they compile
atexit.register(shutil.rmtree, _COMPILED, ignore_errors=True)
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)  # a process of a test reads the bytecode that an earlier one wrote
sys.dont_write_bytecode = False

for _name, _value in variables(_COMPILED, "--xla_force_host_platform_device_count=8").items():
    os.environ.setdefault(_name, _value)

import pytest  # noqa: E402
from hypothesis import HealthCheck, settings  # noqa: E402
from jaxtyping import install_import_hook  # noqa: E402 (reads the environment)

from tests.support.repository import SHAPED  # noqa: E402

install_import_hook(SHAPED, "beartype.beartype")

# The same random examples in every run, and no deadline, which a busy machine would miss. `--hypothesis-profile many`
# tries more of them where a test names no number.
_ALWAYS = {"deadline": None, "derandomize": True, "database": None, "suppress_health_check": [HealthCheck.too_slow]}
settings.register_profile("suite", max_examples=30, **_ALWAYS)
settings.register_profile("many", max_examples=500, **_ALWAYS)
settings.load_profile("suite")


def pytest_collectstart():
    """Modules are imported from here on; to look for cycles among what they make takes a third of the time."""
    gc.disable()


def pytest_collection_finish():
    """Tracing makes many objects that stay: Python looks for cycles among them less often, among modules never."""
    gc.freeze()
    gc.set_threshold(50_000, 20, 100)
    gc.enable()


@pytest.fixture(scope="session")
def bucket_server(tmp_path_factory):
    """URL of a bucket server on this machine."""
    from tests.support.buckets import server

    with server(tmp_path_factory.mktemp("buckets")) as url:
        yield url


def _reach(url, monkeypatch):
    """Points both clients, Google's and tensorstore's, to `url`."""
    monkeypatch.setenv("STORAGE_EMULATOR_HOST", url)
    monkeypatch.setenv("TENSORSTORE_GCS_HTTP_URL", url)
    monkeypatch.setenv("GOOGLE_AUTH_TOKEN_FOR_TESTING", "any")


@pytest.fixture
def bucket(bucket_server, tmp_path, monkeypatch):
    """gs:// URL of an empty bucket; the test has a cache of its own."""
    from google.cloud import storage

    _reach(bucket_server, monkeypatch)
    monkeypatch.setenv("JANUS_CACHE", str(tmp_path / "cache"))
    name = f"bucket-{uuid.uuid4().hex[:12]}"
    storage.Client(project="test").create_bucket(name)
    return f"gs://{name}"


@pytest.fixture
def proxy(bucket, bucket_server, monkeypatch):
    """Between client and server: notes requests, and changes answers as the test says."""
    from tests.support.buckets import Proxy

    between = Proxy(bucket_server)
    _reach(between.url, monkeypatch)
    yield between
    between.close()


@pytest.fixture
def small(tmp_path, monkeypatch):
    """A configuration in an empty working directory."""
    monkeypatch.chdir(tmp_path)
    from tests.support.run_configs import SMALLEST_YAML

    (tmp_path / "small.yaml").write_text(SMALLEST_YAML)
    return "small.yaml"


@pytest.fixture
def janus(monkeypatch, capsys):
    """Runs the command in this process; returns (exit code, stdout, stderr)."""
    from janus_jax.cli.main import main

    def run(*arguments: object) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["janus", *map(str, arguments)])
        with pytest.raises(SystemExit) as done:
            main()
        out, err = capsys.readouterr()
        return done.value.code or 0, out, err

    return run
