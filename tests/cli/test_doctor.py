"""`janus doctor`: findings compared with what Python's own metadata says, and machines made of empty files."""

import importlib.metadata
import sys

import pytest

from janus_jax.cli import doctor
from janus_jax.cli.doctor import Check

NUMPY = importlib.metadata.version("numpy")


@pytest.mark.parametrize(
    ("requirement", "status", "detail"),
    [
        ("numpy>=1", "ok", f"{NUMPY} (>=1)"),
        ("numpy", "ok", f"{NUMPY} (any version)"),
        ("numpy>=999", "missing", f"{NUMPY}, needs >=999"),
        ("numpy<1.0", "missing", f"{NUMPY}, needs <1.0"),
        ("no-such-distribution>=3", "missing", "not installed, needs >=3"),
    ],
)
def test_a_package_is_held_against_its_range(requirement, status, detail):
    (check,) = doctor.packages([requirement])
    assert (check.status, check.detail) == (status, detail)
    assert check.hint == ("" if status == "ok" else f"pip install '{requirement}'")


def test_requirements_of_other_platforms_are_left_out():
    assert doctor.packages(["no-such-distribution; sys_platform == 'nowhere'"]) == []


def test_every_declared_requirement_is_reported():
    _, requirements = doctor.declared()
    names = {check.name for check in doctor.packages(requirements)}
    assert {"jax", "flax", "tensorflow", "orbax-checkpoint"} <= names and len(names) == len(requirements)


def test_python_is_held_against_its_range():
    result = ".".join(map(str, sys.version_info[:3]))
    assert doctor.python(">=3.11") == Check("python", "ok", f"{result} (>=3.11)")
    assert doctor.python(">=9").status == "missing"


def test_devices_are_those_of_jax():
    import jax

    check = doctor.devices()
    assert check.status == "ok" and check.detail.startswith(f"{jax.device_count()} x {jax.default_backend()}")


def test_a_backend_that_fails_is_a_finding_and_not_a_crash(monkeypatch):
    import jax

    def fail() -> None:
        raise RuntimeError("Unable to initialize backend 'tpu': busy\nmore")

    monkeypatch.setattr(jax, "devices", fail)
    assert doctor.devices().status == "missing"
    assert doctor.devices().detail == "Unable to initialize backend 'tpu': busy"


def test_chips_without_their_plugin_are_noticed(tmp_path, monkeypatch):
    monkeypatch.setattr(doctor.importlib.util, "find_spec", lambda name: None)
    assert doctor.tpu(tmp_path).detail == "no chips, no libtpu"
    assert doctor.gpu(tmp_path).detail == "no cards, no CUDA plugin"
    for name in ("accel0", "accel1", "nvidia0", "nvidiactl"):
        (tmp_path / name).touch()
    assert doctor.tpu(tmp_path).detail.startswith("2 chips") and "janus_jax[tpu]" in doctor.tpu(tmp_path).hint
    assert doctor.gpu(tmp_path).detail.startswith("1 card in ")
    assert all(f"janus_jax[cuda{version}]" in doctor.gpu(tmp_path).hint for version in (12, 13))


def test_credentials_are_found_as_files(tmp_path, monkeypatch):
    for name in ("STORAGE_EMULATOR_HOST", "GOOGLE_APPLICATION_CREDENTIALS"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("CLOUDSDK_CONFIG", str(tmp_path))
    product = tmp_path / "product_name"
    assert doctor.google_storage(product).detail == "no credentials found"
    product.write_text("Google Compute Engine\n")
    assert doctor.google_storage(product).status == "ok"
    product.write_text("Other\n")
    (tmp_path / "application_default_credentials.json").touch()
    assert doctor.google_storage(product).detail == "credentials: application default"
    monkeypatch.setenv("GOOGLE_APPLICATION_CREDENTIALS", str(tmp_path / "gone.json"))
    assert doctor.google_storage(product).status == "warn" and "gone.json" in doctor.google_storage(product).detail


def test_only_an_unmet_requirement_makes_the_exit_code_2(capsys):
    fine = [Check("a", "ok", "1.0"), Check("b", "warn", "absent", "pip install 'b[x]'")]
    assert doctor.show(fine) == 0
    out, err = capsys.readouterr()
    assert "b[x]" in out and err == ""
    assert doctor.show([*fine, Check("c", "missing", "not installed")]) == 2
    assert capsys.readouterr().err == "missing: c\n"
