"""Brings every host to the same state: the checkout, Python with exact versions, the agent; and compares the hosts."""

import ast
import collections
import dataclasses
import hashlib
import json
import os
import shlex
import statistics
import tomllib
from collections.abc import Callable, Sequence
from typing import Any

from janus_jax.errors import ConfigError
from launch.cloud.gcloud import Say
from launch.context import Context
from launch.errors import HostError
from launch.records import printable
from launch.remote import ship, wheels
from launch.remote.hosts import Answer, Hosts, require

ENVIRONMENT_BYTES = 10 * 2**30
"""Free space that a host needs for a new environment: what lies there, and what pip holds while it installs."""
FREE_BYTES = 2 * 2**30
"""Free space that a host needs at the end."""
SKEW_S = 10.0
"""Clocks may differ by this from that of the middle host."""
LOOK_S, MAKE_S = 180, 2400


@dataclasses.dataclass(frozen=True)
class Ready:
    """Hosts that are set up."""

    code: str
    """Identity of the checkout."""
    environment: str
    """Identity of the Python environment; for `python` of the settings a name made from its path."""
    python: str
    """The interpreter, on the hosts; `~` is their home directory, as in `cwd`."""
    cwd: str
    """The checkout, on the hosts."""
    source: ship.Code = dataclasses.field(repr=False, compare=False)
    """Its files."""


@dataclasses.dataclass(frozen=True)
class _Target:
    code: ship.Code
    environment: str
    """Identity; empty where the settings name an interpreter."""
    python: str | None

    @property
    def recipe(self) -> dict[str, Any]:
        return _recipe(self.code)


def bring(
    context: Context,
    hosts: Hosts,
    *,
    revision: str | None = None,
    code: ship.Code | None = None,
    notify: Say = lambda line: None,
) -> Ready:
    """Sets all hosts up, in parallel. Where nothing is missing this is one round of ssh.

    Args:
        revision: of git; None: the checkout as it is.
        code: these files instead of the checkout.
        notify: is told what takes long.
    Raises:
        ConfigError: no such revision, or one from before `launch`.
        HostError: hosts that failed, or that differ from the others. The others are set up all the same.
        CloudError: the bucket refused, with `offline`.
    """
    code = code or ship.read(context.root, revision)
    if missing := {"launch/host/facts.py", _recipe(code)["CONSTRAINTS"], "pyproject.toml"} - set(code.files):
        raise ConfigError(f"--revision {revision}" if revision else context.root, f"has no {sorted(missing)[0]}")
    python = context.settings.python
    target = _Target(code, "" if python else environment_identity(code), python)
    answers = hosts.each("bash -s", stdin=_script(target, make=False), timeout_s=LOOK_S, tries=3)
    if context.dry_run:
        return _ready(target)
    facts, lacking, failed = _split(answers)
    if lacking:
        made = _make(context, hosts, target, lacking, notify)
        more, still, wrong = _split(made)
        wrong += [dataclasses.replace(item, code=1, err="is still not set up") for item in still]
        facts, failed = facts + more, failed + wrong
    if failed:
        order = sorted(failed, key=lambda item: item.host.number)
        ended = [dataclasses.replace(item, code=0) for item, _ in facts]
        require([*order, *ended], "setup", last=3)
    facts.sort(key=lambda pair: pair[0].host.number)
    _check(context, facts)
    return _ready(target)


def environment_identity(code: ship.Code) -> str:
    """Identity of the environment that a checkout asks for: new code with the same requirements needs no new one."""
    project, recipe = tomllib.loads(code.files["pyproject.toml"][0].decode())["project"], _recipe(code)
    extras = {name: project.get("optional-dependencies", {}).get(name, []) for name in recipe["EXTRAS"]}
    asked = [recipe["PYTHON_VERSION"], recipe["UV_VERSION"], project["dependencies"], extras]
    constraints = code.files[recipe["CONSTRAINTS"]][0]
    return hashlib.sha256(json.dumps(asked).encode() + constraints).hexdigest()[:16]


def _recipe(code: ship.Code) -> dict[str, Any]:
    """How a checkout makes its environment: constants of its own wheels.py, which may be of another time than this."""
    known = {name: getattr(wheels, name) for name in ("PYTHON_VERSION", "UV_VERSION", "CONSTRAINTS", "EXTRAS")}
    for node in ast.parse(code.files.get("launch/remote/wheels.py", (b"", False))[0]).body:
        match node:
            case ast.Assign(targets=[ast.Name(id=name)], value=value) if name in known:
                known[name] = ast.literal_eval(value)
    return known


def _ready(target: _Target) -> Ready:
    code = target.code.identity
    environment = target.environment or f"python-{hashlib.sha256((target.python or '').encode()).hexdigest()[:12]}"
    python = target.python or f"~/janus/env/{environment}/bin/python"
    return Ready(code, environment, python, f"~/janus/code/{code}", target.code)


def _script(target: _Target, *, make: bool, staged: str = "") -> bytes:
    """What `bash -s` reads: values, then prepare.sh as one block, which bash reads whole before it begins."""
    values = {
        "CODE": target.code.identity,
        "ENVIRONMENT": target.environment,
        "HOST_PYTHON": target.python or "",
        **{name: target.recipe[name] for name in ("PYTHON_VERSION", "UV_VERSION", "CONSTRAINTS")},
        "EXTRAS": " ".join(target.recipe["EXTRAS"]),
        "WHEELS": staged,
        "NEED_KB": str(ENVIRONMENT_BYTES >> 10),
        "MAKE": str(int(make)),
    }
    head = "".join(f"{name}={shlex.quote(value)}\n" for name, value in values.items())
    with open(
        os.path.join(os.path.dirname(os.path.dirname(os.path.abspath(__file__))), "host", "prepare.sh"),
        encoding="utf-8",
    ) as file:
        return f"{head}{{\n{file.read()}\n}}\n".encode()


def _make(context: Context, hosts: Hosts, target: _Target, lacking: Sequence[Answer], notify: Say) -> list[Answer]:
    """Makes what hosts lack. The answers of those that failed on the way, and of the others at the end."""
    failed: list[Answer] = []
    without_code = [item.host for item in lacking if "code" in item.out.splitlines()[-1]]
    if without_code:
        notify(f"sending the code to {_hosts(len(without_code))}")
        failed = [item for item in ship.send(hosts, target.code, without_code) if item.code]
    left = [item.host for item in lacking if item.host not in [answer.host for answer in failed]]
    staged = ""
    if count := sum("environment" in item.out.splitlines()[-1] for item in lacking):
        if context.settings.offline:
            staged = wheels.stage(context, target.code, target.environment, notify)
        python = f"Python {target.recipe['PYTHON_VERSION']}"
        notify(f"installing {python} and packages on {_hosts(count)}; this takes some minutes")
    made = hosts.each("bash -s", stdin=_script(target, make=True, staged=staged), only=left, timeout_s=MAKE_S, tries=3)
    return failed + made


def _hosts(count: int) -> str:
    return f"{count} host{'s' * (count != 1)}"


def _split(answers: Sequence[Answer]) -> tuple[list[tuple[Answer, dict[str, Any]]], list[Answer], list[Answer]]:
    """Answers with facts, those of hosts that lack something, and those of hosts that failed."""
    facts, lacking, failed = [], [], []
    for item in answers:
        last = (item.out.strip().splitlines() or [""])[-1]
        if item.code:
            failed.append(item)
        elif last.startswith("missing: "):
            lacking.append(item)
        else:
            try:
                facts.append((item, json.loads(last)))
            except ValueError:
                failed.append(dataclasses.replace(item, code=1, err=f"answered {printable(last)!r} instead of facts"))
    return facts, lacking, failed


def _check(context: Context, facts: Sequence[tuple[Answer, dict[str, Any]]]) -> None:
    """Compares the hosts.

    Raises:
        HostError: names each host that differs, and in what.
    """
    wrong = [*_differences(facts), *_skews(facts)]
    chips = _chips_per_host(context)
    for answer, value in facts:
        if value["free_bytes"] < FREE_BYTES:
            wrong.append(
                f"{answer.host.name}: disk too small: {_gb(value['free_bytes'])} GB free in {value['home']}, "
                f"{_gb(FREE_BYTES)} GB needed"
            )
        if value["versions"]["jax"] is None:
            wrong.append(f"{answer.host.name}: {value['interpreter']} has no jax")
        if value["chips"] != chips and not value["cpu"]:
            wrong.append(
                f"{answer.host.name}: {value['chips']} TPU chips, a {context.settings.type} has {chips} a host; is "
                "the runtime the one for this type? (a host with JAX_PLATFORMS=cpu needs none)"
            )
    if wrong:
        raise HostError(f"{context.settings.name}: the hosts cannot run together\n  " + "\n  ".join(wrong))


COMPARED: dict[str, Callable[[dict[str, Any]], Any]] = {
    "Python": lambda facts: facts["python"],
    "checkout": lambda facts: facts["code"],
    "kernel": lambda facts: facts["kernel"],
    "system": lambda facts: facts["os"],
    "processor": lambda facts: facts["machine"],
}
"""What must be the same on all hosts, besides the versions of packages."""


def _differences(facts: Sequence[tuple[Answer, dict[str, Any]]]) -> list[str]:
    wrong = []
    tables = [{**{name: read(value) for name, read in COMPARED.items()}, **value["versions"]} for _, value in facts]
    for name in tables[0]:
        counts = collections.Counter(table.get(name) for table in tables)
        (common, most), *others = counts.most_common()
        if not others:
            continue
        for (answer, _), table in zip(facts, tables, strict=True):
            if table.get(name) != common:
                rest = "most have" if most > 1 else f"{facts[0][0].host.name} has"
                wrong.append(f"{answer.host.name}: {name} {table.get(name) or 'missing'}; {rest} {common or 'none'}")
    return wrong


def _skews(facts: Sequence[tuple[Answer, dict[str, Any]]]) -> list[str]:
    """Hosts whose clocks are off. A host looks at its clock last of all, so the answer's end is the same moment."""
    ahead = [value["time_s"] - answer.at_s for answer, value in facts]
    middle = statistics.median_low(ahead)
    return [
        f"{answer.host.name}: its clock is {abs(shift - middle):.0f} s {'ahead of' if shift > middle else 'behind'} "
        "the others"
        for (answer, _), shift in zip(facts, ahead, strict=True)
        if abs(shift - middle) > SKEW_S
    ]


def _chips_per_host(context: Context) -> int:
    from launch.cloud import capacity

    kind = capacity.of(context.settings)
    return kind.chips // kind.hosts


def _gb(count: int) -> str:
    return f"{count / 2**30:.1f}"
