"""Facts that must be the same in all processes of a run, compared before they compute together.

Everything goes through the coordinator's key-value store: no device is asked for, no collective is started.
"""

import collections
import functools
import hashlib
import importlib.metadata
import itertools
import json
import socket
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import janus_jax
from janus_jax.errors import ConfigError, LostPeerError, first_line

TIMEOUT_S = 600
_SHOWN = 5
"""Differences that a message lists."""
_SETTINGS = ("jax_enable_x64", "jax_default_matmul_precision", "jax_default_prng_impl", "jax_threefry_partitionable")
"""What decides which numbers a program computes."""

_rounds = itertools.count()


def several() -> bool:
    """Whether this process has peers. Asks for no devices."""
    return (_state().num_processes or 1) > 1


def require_same(what: str, facts: Mapping[str, Any]) -> None:
    """Ends all processes alike if one of them has other facts. Call it on every process.

    Args:
        what: they are about, as it begins the message.
        facts: name -> JSON value.
    Raises:
        ConfigError: names the processes that differ from most, and what differs.
        LostPeerError: some process did not come.
    """
    if several() and (verdict := _compare(what, facts)):
        raise ConfigError(f"processes of one run have different {what}: {'; '.join(verdict)}")


def are_same(what: str, facts: Mapping[str, Any]) -> bool:
    """Whether all processes have the same facts. Call it on every process; raises LostPeerError as `require_same`."""
    return not several() or not _compare(what, facts)


def _compare(what: str, facts: Mapping[str, Any]) -> list[str]:
    """The differences between all processes, as process 0 finds them."""
    import jax

    state, place = _state(), f"same/{next(_rounds)}"
    client, mine = state.client, {"host": socket.gethostname(), "facts": facts}
    try:
        client.key_value_set(f"{place}/{state.process_id}", json.dumps(mine))
        if state.process_id == 0:
            keys = [f"{place}/{process}" for process in range(state.num_processes)]
            stated = [json.loads(client.blocking_key_value_get(key, TIMEOUT_S * 1000)) for key in keys]
            verdict = differences([one["host"] for one in stated], [one["facts"] for one in stated])
            client.key_value_set(f"{place}/verdict", json.dumps(verdict))
        return json.loads(client.blocking_key_value_get(f"{place}/verdict", TIMEOUT_S * 1000))
    except jax.errors.JaxRuntimeError as error:
        raise LostPeerError(
            f"process {state.process_id} of {state.num_processes} waited in vain to compare {what} with the others "
            f"(time-out {TIMEOUT_S} s): {first_line(error)}"
        ) from error


def differences(hosts: Sequence[str], facts: Sequence[Mapping[str, Any]]) -> list[str]:
    """What differs, one text for each fact and group of processes that is not with most. Of two halves, the one of
    process 0 counts as most.

    Args:
        hosts: name of the host, by process.
        facts: the same by process.
    """
    texts = []
    for key in dict.fromkeys(itertools.chain.from_iterable(facts)):
        groups: dict[str, list[int]] = collections.defaultdict(list)
        for process, own in enumerate(facts):
            groups[json.dumps(own.get(key), sort_keys=True)].append(process)
        most = max(groups.values(), key=len)
        for value, group in groups.items():
            if group is not most:
                others = "process 0 has" if most == [0] else f"{_numbers(most, hosts=None)} have"
                usual = _shown(facts[most[0]].get(key))
                texts.append(f"{key} is {_shown(json.loads(value))} in {_numbers(group, hosts)}; {others} {usual}")
    more = [] if len(texts) <= _SHOWN else [f"and {len(texts) - _SHOWN} more differences"]
    return texts[:_SHOWN] + more


def require_same_versions() -> None:
    """`require_same` for the programs: Python, JAX, libtpu and this package."""
    if several():
        require_same("versions", versions())


def versions() -> dict[str, Any]:
    """What decides how this process computes, apart from its configuration."""
    import jax

    facts = {name: _version(name) for name in ("jax", "jaxlib", "libtpu", "numpy", "orbax-checkpoint")}
    settings = {name: str(getattr(jax.config, name, None)) for name in _SETTINGS}
    python = ".".join(map(str, sys.version_info[:2]))
    return {"janus_jax": f"{janus_jax.__version__} (code {_code()[:8]})", "python": python, **facts, **settings}


@functools.cache
def _code() -> str:
    """sha256 over the package's modules: a version number does not change while somebody works on them."""
    package, digest = Path(janus_jax.__file__).parent, hashlib.sha256()
    for path in sorted(package.rglob("*.py")):
        digest.update(f"{path.relative_to(package)}".encode() + path.read_bytes())
    return digest.hexdigest()


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def _numbers(group: Sequence[int], hosts: Sequence[str] | None) -> str:
    """`process 3 (host a)`, or `processes 0-2, 5`."""
    if len(group) == 1:
        return f"process {group[0]}" + ("" if hosts is None else f" (host {hosts[group[0]]})")
    runs: list[list[int]] = []
    for number in group:
        if runs and number == runs[-1][-1] + 1:
            runs[-1] = [runs[-1][0], number]
        else:
            runs.append([number])
    return f"processes {', '.join('-'.join(map(str, run)) for run in runs)}"


def _shown(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value)


def _state() -> Any:
    """Where JAX keeps the coordinator's client; its public functions ask for devices first."""
    from jax._src import distributed

    return distributed.global_state
