"""Whether a configuration fits on the machines, before they cost money: `janus plan`, run here or read from a file."""

import importlib.util
import json
import os
import sys
import tempfile
from collections.abc import Sequence

from janus_jax.errors import ConfigError, JanusError, first_line
from janus_jax.planning.chips.slices import find_slice
from launch.cloud.capacity import Type
from launch.cloud.gcloud import run_command
from launch.context import Context


class DoesNotFitError(JanusError):
    """The configuration does not fit on the machines: says by how much, and how to go on nevertheless."""

    exit_code = 3


def check(
    context: Context,
    machines: Type,
    *,
    config: str | None = None,
    overrides: Sequence[str] = (),
    plan: str | None = None,
    force: bool = False,
) -> None:
    """Says whether a configuration fits.

    Args:
        plan: what `janus plan --json` wrote, instead of planning here.
        force: go on although it does not fit.
    Raises:
        DoesNotFitError: it does not.
        ConfigError: the configuration has mistakes, or the plan is of other machines.
    """
    if config is None and plan is None:
        return
    if plan is not None:
        fits, reason = _stored(plan, machines)
    elif missing := next((name for name in ("jax", "libtpu") if importlib.util.find_spec(name) is None), None):
        slices = f" --slices {machines.slices}" if machines.slices > 1 else ""
        words = " ".join([f"janus plan {config} --topology {machines.name}{slices} --json plan.json", *overrides])
        context.say(
            f"fit: not checked: {missing} is not installed here; on a machine that has it: {words}; then --plan"
        )
        return
    else:
        assert config is not None
        context.say(f"fit: planning {config} for {machines.slices} x {machines.name}; this takes one to three minutes")
        answer = _planned(config, overrides, machines, context.root)
        if isinstance(answer, str):
            context.say(f"fit: not checked: {answer}")
            return
        fits, reason = answer
    what = f"{plan or config} on {machines.slices} x {machines.name}"
    if fits:
        context.say(f"fit: {what}: fits")
    elif force:
        context.say(f"fit: {what}: does not fit: {reason}; goes on because of --force")
    else:
        raise DoesNotFitError(
            what, f"does not fit: {reason}; `janus plan` names changes that make it fit; or add --force"
        )


def _stored(path: str, machines: Type) -> tuple[bool, str]:
    try:
        with open(path, encoding="utf-8") as file:
            values = json.load(file)
        name, slices = values["target"]["name"], values["num_slices"]
        fits, reason = values["fits"], str(values["reason"])
    except OSError as error:
        raise ConfigError("--plan", path, f"cannot be read: {error.strerror}") from None
    except (ValueError, KeyError, TypeError):
        raise ConfigError("--plan", path, "is not what `janus plan --json` writes") from None
    try:
        same = find_slice(name).topology == find_slice(machines.name).topology
    except ConfigError:
        same = False
    if not same or slices != machines.slices:
        raise ConfigError("--plan", path, f"is of {slices} x {name}, not of {machines.slices} x {machines.name}")
    return bool(fits), reason


def _planned(config: str, overrides: Sequence[str], machines: Type, root: str) -> tuple[bool, str] | str:
    """Whether it fits and why not; or why there is no answer."""
    with tempfile.TemporaryDirectory() as folder:
        out = os.path.join(folder, "plan.json")
        path = os.pathsep.join(filter(None, [root, os.environ.get("PYTHONPATH")]))
        options = [f"--topology={machines.name}", f"--slices={machines.slices}", "--tries=0", f"--json={out}"]
        words = [sys.executable, "-m", "janus_jax.cli", "plan", config, *overrides, *options]
        result = run_command(["env", f"PYTHONPATH={path}", *words])
        if result.code in (0, 3):
            return _stored(out, machines)
    lines = [line for line in result.err.splitlines() if line.strip()]
    message = next((line for line in reversed(lines) if line.startswith("error: ")), lines[-1] if lines else "")
    message = first_line(message.removeprefix("error: "))
    if result.code == 2:
        raise ConfigError(message)
    return f"`janus plan` ended with {result.code}: {message}"
