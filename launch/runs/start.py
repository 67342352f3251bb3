"""A run on all hosts of a launch: prepared on the workstation, started together, ended together."""

import dataclasses
import json
import os
import secrets
import time
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import yaml

from janus_jax.errors import ConfigError, HeldError, counted
from launch.cloud import capacity, refusals
from launch.cloud.bucket import Changed, Stored
from launch.context import Context
from launch.errors import CloudError, HostError, Kind
from launch.records import PORT, Run, Spec, printable
from launch.remote import ship
from launch.runs import alive, inputs
from launch.runs import command as commands

if TYPE_CHECKING:
    from launch.remote.environment import Ready
    from launch.remote.hosts import Answer, Host, Hosts

ALIVE = ("starting", "running")
_START = ("run_id", "attempt", "start")
_UNKNOWN: Any = object()


def previous(context: Context) -> Stored | None:
    """The record of the run that is, or was last, on this slice."""
    return context.records.read("run.json")


def require_bucket(context: Context) -> None:
    """Refuses a bucket that is not there, or that may not be written, before anything is touched.

    Raises:
        CloudError: says what to do.
        ConfigError: the settings name none.
    """
    records = context.records
    if context.dry_run:
        return
    try:
        records.write("clock.json", {})
    except CloudError as error:
        if error.kind is not Kind.NOT_FOUND:
            raise
        url = context.bucket.url
        remedy = refusals.no_bucket(url, capacity.region(context.settings.zone))
        raise CloudError(Kind.NOT_FOUND, url, f"no such bucket; {remedy}") from error


def prepare(
    context: Context,
    words: Sequence[str],
    *,
    workers: int,
    ready: "Ready",
    run_dir: str | None = None,
    shared_mount: str | None = None,
    env: Mapping[str, str] | None = None,
    before: Stored | None = _UNKNOWN,
) -> Run:
    """A new run: reads the configuration, decides the run directory, and uploads code, data and weights of this
    workstation.

    Args:
        words: `CONFIG [a.b=c ...]` or `janus ANY ...`.
        workers: number of hosts.
        run_dir: wins over the configuration's.
        shared_mount: a directory that is the same one on all hosts.
        env: environment variables of the command.
        before: `previous(context)`, if it was read.
    Raises:
        ConfigError: the command cannot run.
        CloudError: the bucket refused.
    """
    command = commands.read(words)
    before = (None if context.dry_run else previous(context)) if before is _UNKNOWN else before
    last = None if before is None else Run.from_json(before.value)
    if before is not None and last is not None:
        _require_ended_elsewhere(context, last, before)
    directory, why = None, ""
    if command.trains:
        directory, why = commands.run_dir(context, command, workers=workers, given=run_dir, shared_mount=shared_mount)
        _require_same_run(command, directory, last)
    urls: list[str] = []
    paths: dict[str, str] = {}
    files, host_words = {}, command.words
    if command.config is None:
        host_words = commands.replace_words(command, lambda name, word: _word(context, urls, name, word))
    else:
        files[command.config_name] = _resolved(context, command, directory, urls, paths)
        host_words = [command.words[0], command.config_name, *command.words[1:]]
    owner, attempt = secrets.token_hex(16), 1
    if directory is not None:
        context.say(f"run.dir: {directory} ({why})")
        if last is not None and last.run_dir == directory:
            owner, attempt = last.owner, last.attempt + 1  # it has ended: `start` asks all hosts here
            context.say(
                f"run.dir: the run {last.run_id} of this launch wrote there; it goes on from the newest step that it "
                "saved, if model and data are the same; the hosts check that, and end with code 2 if not"
            )
            if changes := commands.differences(last.files.values(), files.values()):
                context.say(f"run.dir: changed since {last.run_id}: {changes}")
    ship.keep(context.records, ready.source)
    return Run(
        run_id=Run.new_id(context.settings.name),
        owner=owner,
        command=host_words,
        files=files,
        run_dir=directory,
        code=ready.code,
        environment=ready.environment,
        created_s=time.time(),
        by=context.me,
        attempt=attempt,
        settings=context.settings.model_dump(mode="json"),
        env=dict(env or {}),
        inputs=urls,
        paths=paths,
    )


def start(
    context: Context,
    hosts: "Hosts",
    ready: "Ready",
    run: Run,
    *,
    address: str | None = None,
    before: Stored | None = _UNKNOWN,
) -> None:
    """Starts a run on all hosts together. On an error no host is left with half a run.

    Args:
        address: of worker 0 inside the network; None: as the cloud says.
        before: `previous(context)`, if it was read.
    Raises:
        HeldError: another run is on the slice, or a person has stopped this one.
        HostError: a host refused, or cannot be reached.
    """
    specs = _specs(context, hosts, ready, run, address)
    if not context.dry_run:
        require_free(hosts, run)
    prepared = hosts.agent("prepare", lambda host: specs[host.number], timeout_s=300)
    for host, answer in zip(hosts.hosts, prepared, strict=True):
        for line in answer.get("ended", ()):
            context.say(f"{host.name}: {printable(line)}")
    _record(context, run, before)
    try:
        hosts.agent("start", lambda host: specs[host.number], timeout_s=180)
    except BaseException:
        if not context.dry_run:
            context.warn("not all hosts started the run; ending it on the others")
            end(context, hosts, run.run_id, grace_s=5)
        raise
    if not context.dry_run:
        _obey_stop(context, hosts, run)


def states(context: Context, hosts: "Hosts") -> list[dict[str, Any]]:
    """As `end`, but changes nothing."""
    return _states(context, hosts.each("janus/agent state", stdin=b"{}\n", timeout_s=60, tries=3))


def end(
    context: Context, hosts: "Hosts", run_id: str, *, grace_s: float = 60, final: bool = False
) -> list[dict[str, Any]]:
    """Ends a run: SIGTERM on all hosts, so that it saves, and SIGKILL after the grace.

    Args:
        final: these hosts never start it again, also if a start is on its way.
    Returns:
        The states of the hosts then, in their order; {"error"} for one that cannot be reached.
    """
    message = json.dumps({"run_id": run_id, "grace_s": grace_s, "final": final}).encode()
    return _states(context, hosts.each("janus/agent stop", stdin=message, timeout_s=2 * grace_s + 120, tries=3))


def _states(context: Context, answers: "Sequence[Answer]") -> list[dict[str, Any]]:
    states = []
    for answer in answers:
        state = answer.value
        if state is None and answer.is_not_set_up:
            state = {"state": "none", "run_id": None}
        elif state is None:
            state = {"error": "dry run" if context.dry_run else answer.last()}
        states.append(state)
    return states


def require_all(context: Context, hosts: int) -> int:
    """The number of hosts, if it is that of the settings' type: with fewer the others would wait for the rest.

    Raises:
        HostError: it is not.
    """
    wanted = capacity.of(context.settings)
    if hosts != wanted.workers:
        slices = f"{counted(wanted.slices, 'slice')} of {wanted.name}"
        raise HostError(
            f"{context.settings.name}: Google Cloud lists {counted(hosts, 'host')}, "
            f"but {slices} have {wanted.workers}; try again in a minute, or `down` and `up`"
        )
    return hosts


def require_free(hosts: "Hosts", run: Run | None = None) -> None:
    """Refuses hosts on which a run goes on.

    Args:
        run: this very start of it may go on.
    Raises:
        HeldError: names the run.
    """
    busy: dict[tuple[str, str], list[Host]] = {}
    for host, state in zip(hosts.hosts, hosts.agent("state"), strict=True):
        same = run is not None and all(state[name] == getattr(run, name) for name in _START if name in state)
        if state.get("state") in ALIVE and not same:
            busy.setdefault((state["run_id"], state["state"]), []).append(host)
    for (run_id, state), where in busy.items():
        names = ", ".join(host.name for host in where[:3]) + (", ..." if len(where) > 3 else "")
        raise HeldError(f"run {run_id} is {state} on this slice ({names}); `python -m launch stop` ends it")


def require_quiet(context: Context) -> None:
    """Refuses a slice whose run sends heartbeats: `require_free` for those who have no way to the hosts yet.

    Raises:
        HeldError: names the run.
    """
    before = previous(context)
    if before is not None and (seen := alive.signs(context, before)):
        text = f"run {before.value['run_id']} of {before.value.get('by')} goes on on this slice"
        raise HeldError(f"{text}: {seen}; `python -m launch stop` ends it")


def next_start(run: Run) -> Run:
    """The same run once more, on the same machines."""
    return dataclasses.replace(run, start=run.start + 1)


def next_attempt(run: Run) -> Run:
    """The same run once more, on machines that were created again."""
    return dataclasses.replace(run, start=run.start + 1, attempt=run.attempt + 1)


def _require_ended_elsewhere(context: Context, last: Run, before: Stored) -> None:
    """`start` asks the hosts of this zone alone. A run of this launch may go on in another one."""
    place = [last.settings.get(key, getattr(context.settings, key)) for key in ("project", "zone")]
    if place == [context.settings.project, context.settings.zone]:
        return
    if seen := alive.signs(context, before):
        raise HeldError(
            f"run {last.run_id} of {last.by} goes on in {place[1]} of {place[0]}: {seen}; end it there with "
            f"`python -m launch stop`, or choose another name than {context.settings.name}"
        )


def _require_same_run(command: commands.Command, directory: str, last: Run | None) -> None:
    """A default run directory is the same one for all configurations of a launch."""
    assert command.config is not None
    if last is None or last.run_dir != directory or not last.files:
        return
    old = yaml.safe_load(next(iter(last.files.values())))
    name, other = command.config.objective.name, old.get("objective", {}).get("name")
    if other not in (None, name):
        raise ConfigError(
            f"run.dir = {directory}: run {last.run_id} wrote there, with objective {other}, not {name}; "
            f"say another directory, like run.dir={directory}-{name}"
        )


def _resolved(
    context: Context, command: commands.Command, directory: str | None, urls: list[str], paths: dict[str, str]
) -> str:
    """The configuration in full, as the hosts read it. Adds to `paths` what the hosts must have."""
    from janus_jax.config.changes import changed
    from janus_jax.config.run import to_yaml

    config = command.config
    assert config is not None
    if directory is None:  # of `time-step`, which reads neither data nor weights
        return to_yaml(config)
    for advice in config.advice():
        context.warn(f"note: {advice}")

    def replace(key: str, value: str) -> str:
        new = _uploaded(context, urls, key, value)
        if new is None and "://" not in value:
            what = "a path on the hosts" if key == "data.dir" else "a path on the hosts, or a hub id"
            context.say(f"{key}: {value} is not on this workstation; taken as {what}")
            if os.path.isabs(value) and key != "reference.dir":  # that one may be written first
                paths[key] = value
        return new or value

    return to_yaml(changed(config, {**commands.replace_inputs(config, replace), "run.dir": directory}))


def _word(context: Context, urls: list[str], name: str, word: str) -> str | None:
    """As `_uploaded`, for a word that may be no path at all: `sft` may be a kind of data, and a directory."""
    if "/" in word or "." in word:
        return _uploaded(context, urls, name, word)
    if os.path.lexists(word):
        context.say(f"{name}: {word} is left as it is; ./{word} would upload what is here")
    return None


def _uploaded(context: Context, urls: list[str], key: str, value: str) -> str | None:
    """The URL of an input; None if it is neither in a bucket nor on this workstation."""
    if value.startswith("gs://"):
        urls.append(value)
        return value
    local = None if "://" in value else inputs.look(key, value)
    if local is None:
        return None
    urls.append(inputs.stage(context, key, local))
    return urls[-1]


def _specs(
    context: Context, hosts: "Hosts", ready: "Ready", run: Run, address: str | None
) -> dict[int, dict[str, Any]]:
    count = require_all(context, len(hosts.hosts))
    if count > 1 and address is None:
        from launch.cloud import machines

        known = machines.find(context)
        if known is None or not known.workers:
            raise HostError(context.settings.name, "has no machines any more")
        address = min(known.workers, key=lambda worker: worker.number).internal
    spec = Spec(
        run=run.to_json(),
        worker=0,
        workers=count,
        coordinator=f"[{address}]:{PORT}" if address and ":" in address else f"{address}:{PORT}",
        hosts_per_slice=1 + max(host.index for host in hosts.hosts),
        bucket=context.records.url,
        python=ready.python,
        cwd=ready.cwd,
    )
    if count == 1:
        spec = dataclasses.replace(spec, coordinator=None)
    return {host.number: dataclasses.replace(spec, worker=host.number).to_json() for host in hosts.hosts}


def _record(context: Context, run: Run, before: Stored | None) -> None:
    """Writes run.json, unless somebody else has meanwhile, or the run was stopped."""
    if context.dry_run:
        return
    before = previous(context) if before is _UNKNOWN else before
    try:
        context.records.write("run.json", run.to_json(), generation=0 if before is None else before.generation)
    except Changed:
        now = previous(context)
        other = {} if now is None else now.value
        if other != run.to_json():  # else an earlier try arrived, and its answer was lost
            text = f"run {other.get('run_id')} of {other.get('by')} was started on this slice at the same time"
            raise HeldError(text) from None
    if run.start > 1:
        stopped = context.records.read("stop.json")
        if stopped is not None and stopped.value.get("run_id") == run.run_id:
            raise HeldError(
                f"run {run.run_id} was stopped by {stopped.value.get('by')}; `python -m launch run` starts anew"
            )


def _obey_stop(context: Context, hosts: "Hosts", run: Run) -> None:
    """Ends a run that was stopped while its start was on its way. A record of an earlier run stays: it names no other.

    Raises:
        HeldError: it was stopped.
    """
    try:
        stored = context.records.read("stop.json")
    except CloudError as error:
        context.warn(f"note: the run has started; a stop record was not looked for: {error}")
        return
    if stored is not None and stored.value.get("run_id") == run.run_id:
        end(context, hosts, run.run_id)
        raise HeldError(f"run {run.run_id} was stopped by {stored.value.get('by')} while it started, and is ended")
