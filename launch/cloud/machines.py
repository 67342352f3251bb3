"""The machines of a launch: looked at, created, waited for, adopted and deleted.

Labels of the machines are all that is remembered: `janus-launch` says whose they are, `janus-token` which request made
them. So every workstation sees the same, and nothing is left of a request that is gone. Machines that others made get
the labels, and `janus-adopted`, when they are adopted: that also ends with the machines.
"""

import contextlib
import secrets
import time
from collections.abc import Callable
from typing import Any, TypeVar

from janus_jax.errors import ConfigError, HeldError
from launch.cloud import capacity
from launch.cloud.gcloud import Gcloud, Say, kind_of
from launch.cloud.nodes import ADOPTED, LAUNCH, TOKEN, Machines, Worker, base, node_names, read, state_of
from launch.cloud.refusals import explained
from launch.context import Context
from launch.errors import CloudError, Kind
from launch.records import duration
from launch.settings import Settings

T = TypeVar("T")
SCOPE = "https://www.googleapis.com/auth/cloud-platform"  # gcloud sends its short form as it is, which is refused
PATIENCE_S = 900.0
"""How long an API that does not answer is asked again."""
SETTLE_S = 300.0
"""How long a node may be missing after its queued resource has become ACTIVE, and a deadline be overstepped."""

_QUEUED = ("ACCEPTED", "WAITING_FOR_RESOURCES")
__all__ = ["Machines", "Worker", "create", "delete", "find", "look", "not_ours", "request", "wait"]

_sleep, _clock = time.sleep, time.monotonic


def find(context: Context) -> Machines | None:
    """The machines of the launch's name, whoever made them; None if there are none.

    Raises:
        CloudError: Google Cloud refused to say.
    """
    gcloud, name = context.gcloud, context.settings.name
    queued = _describe(gcloud, "queued-resources", name)
    if queued is not None and state_of(queued) != "ACTIVE":
        return read(name, queued, [])  # its nodes are not there yet, or of no use any more
    nodes = gcloud.read(gcloud.tpu("tpu-vm", "list")) or []
    if queued is not None:
        expected = node_names(queued, name)
        nodes = [node for node in nodes if base(node["name"]) in expected or base(node.get("queuedResource")) == name]
        if len(nodes) < len(expected):  # lists have holes
            listed = {base(node["name"]) for node in nodes}
            missing = [_describe(gcloud, "tpu-vm", node) for node in expected if node not in listed]
            nodes += [node for node in missing if node is not None]
        return read(name, queued, nodes)
    nodes = [node for node in nodes if base(node["name"]) == name or node.get("labels", {}).get(LAUNCH) == name]
    return read(name, None, nodes) if nodes else None


def create(
    context: Context,
    *,
    notify: Say,
    adopt: bool = False,
    patient: bool = True,
    none_left: bool = False,
    before: Callable[[], None] = lambda: None,
) -> Machines:
    """Creates the machines and waits until they are ready.

    Machines of this launch that exist are waited for; what preempted or failed ones left is deleted first. An error or
    a signal takes the request back that this call has made.

    Args:
        adopt: take machines of this name that others made; delete adopted ones that are gone.
        patient: wait; if not, the machines are returned as they are once they have been asked for.
        none_left: `delete` has just seen that there are none.
        before: called right before each request for machines; an error of it leaves the request out.
    Raises:
        CloudError: Google Cloud refused, the machines were preempted at once, or others have some of this name.
        ConfigError: there are machines of another type, or the settings' labels are those of launch.
    """
    settings, wanted = context.settings, capacity.of(context.settings)
    if taken := {LAUNCH, TOKEN, ADOPTED} & set(settings.labels):
        raise ConfigError("labels", f"{', '.join(sorted(taken))}: launch sets it; allowed: other keys")
    machines = None if none_left else look(context, notify)
    if machines is not None and not machines.ours:
        if not adopt:
            raise not_ours(machines)
        return _adopt(context, machines, wanted, notify)
    if machines is not None and (not machines.gone or machines.state == "MISSING"):
        _require_same(machines, wanted)
        return wait(context, machines, notify=notify) if patient and not context.dry_run else machines
    if machines is not None and machines.adopted and not adopt:
        raise not_ours(machines)
    if machines is not None:
        notify(f"{settings.name}: {machines.words}: deleting what is left of it")
        delete(context, machines, notify=notify)
    token = secrets.token_hex(8)
    words = request(settings, wanted, token, context.gcloud)
    if context.dry_run:
        context.gcloud.change(words)
        return Machines(settings.name, "", "HEALTHY", (), (), True, token, "")
    has_asked = False

    def going() -> None:
        nonlocal has_asked
        before()
        has_asked = True

    try:
        machines = _ask(context, words, token, notify, going)
        return wait(context, machines, notify=notify) if patient else machines
    except HeldError:  # raised by `notify`: another watcher has taken over, and may be using what this one asked for
        raise
    except BaseException as error:
        if has_asked:
            _undo(context, token, notify, error)
        raise


def wait(context: Context, machines: Machines, *, notify: Say) -> Machines:
    """Waits until the machines are ready, and says every minute how it is going. Machines of this launch that fail or
    are preempted meanwhile are deleted; those that others made, adopted ones too, stay.

    Raises:
        CloudError: they failed, were preempted or deleted, or were not there in the settings' `valid_for`.
    """
    settings, began, shown, shown_s, delay_s, missing_s = context.settings, _clock(), "", 0.0, 10.0, None
    patience_s = seconds(settings.valid_for) + SETTLE_S if settings.valid_for else float("inf")
    while not machines.ready:
        now, lost = _clock(), ""
        missing_s = (missing_s or now) if machines.state == "MISSING" else None
        if machines.gone and (missing_s is None or now - missing_s > SETTLE_S):
            known = machines.error or machines.state == "FAILED"
            lost = machines.words if known else f"{machines.words}: preempted, or deleted by someone"
        elif machines.state in _QUEUED and now - began > patience_s:
            lost = f"{machines.state}: not served within valid_for = {settings.valid_for}"
        elif machines.state in ("STOPPED", "STOPPING"):
            start = context.gcloud.tpu("tpu-vm", "start", machines.nodes[0])
            raise CloudError(Kind.INVALID, machines.name, f"{machines.state}; start it: {' '.join(start)}")
        if lost:
            if machines.ours and not machines.adopted:
                notify(f"{machines.name}: {lost}: deleting it")
                delete(context, machines, notify=notify)
            else:
                lost += "; others made it; delete it: python -m launch down --adopt"
            kind = kind_of(machines.error) if machines.error else Kind.STOCK_OUT
            text = lost if kind is Kind.UNKNOWN else f"{kind.value}: {lost}"
            raise explained(CloudError(kind, text), settings)
        if machines.state != shown or now - shown_s >= 60:
            notify(f"{machines.name}: {machines.words}, for {duration(now - began)}")
            shown, shown_s = machines.state, now
        _sleep(delay_s)
        delay_s = min(30.0, 1.5 * delay_s)
        looked = look(context, notify)
        if looked is None or looked.token != machines.token:
            raise CloudError(Kind.NOT_FOUND, machines.name, "was deleted by someone else while we waited for it")
        machines = looked
    return machines


def delete(context: Context, machines: Machines, *, notify: Say | None = None) -> bool:
    """Deletes the machines and waits until they are gone. Whether there are no others of the name.

    Raises:
        CloudError: others made them, or Google Cloud refused.
    """
    gcloud, token, began, delay_s = context.gcloud, machines.token, _clock(), 5.0
    if not machines.ours:
        raise not_ours(machines)
    while True:
        commands = [gcloud.tpu("queued-resources", "delete", machines.name, "--force", "--quiet")]
        if not machines.is_queued:
            commands = [gcloud.tpu("tpu-vm", "delete", node, "--quiet") for node in machines.nodes]
        refused = None
        for words in commands:
            try:
                gcloud.change(words, timeout_s=900)
            except CloudError as error:
                if error.kind is not Kind.NOT_FOUND:
                    refused = error
        if context.dry_run:
            return True
        if refused is not None and not (_passes(refused) or _unsettled(refused)):
            raise explained(refused, context.settings)
        left = look(context, notify)
        if left is None or left.token != token:
            return left is None
        machines = left
        if _clock() - began > 2 * PATIENCE_S:
            raise explained(refused or CloudError(Kind.UNAVAILABLE, f"{left.state}: is still there"), context.settings)
        if notify is not None:
            notify(f"{left.name}: {left.state}: waiting until it is gone, for {duration(_clock() - began)}")
        _sleep(delay_s)
        delay_s = min(30.0, 1.5 * delay_s)
        # A workstation may have slept for a night meanwhile, and others made new machines of this name.
        left = look(context, notify)
        if left is None or left.token != token:
            return left is None
        machines = left


def request(settings: Settings, wanted: capacity.Type, token: str, gcloud: Gcloud) -> list[str]:
    """The words of gcloud that ask for the machines. Not --async, which never shows why an operation failed."""
    labels = {**settings.labels, LAUNCH: settings.name, TOKEN: token}
    one = [f"--node-id={settings.name}"]
    options = {
        "service-account": settings.service_account,
        "network": settings.network,
        "subnetwork": settings.subnetwork,
        "valid-until-duration": settings.valid_for,
    }
    return gcloud.tpu(
        "queued-resources",
        "create",
        settings.name,
        *(one if wanted.slices == 1 else [f"--node-count={wanted.slices}", f"--node-prefix={settings.name}"]),
        f"--accelerator-type={wanted.name}",
        f"--runtime-version={wanted.runtime}",
        *([] if settings.provisioning == "on-demand" else [f"--{settings.provisioning}"]),
        *(f"--{key}={value}" for key, value in options.items() if value is not None),
        *(["--internal-ips"] if settings.internal_ips else []),
        f"--scopes={SCOPE}",
        "--labels=" + ",".join(f"{key}={value}" for key, value in sorted(labels.items())),
    )


def not_ours(machines: Machines) -> CloudError:
    """The refusal to touch what others made."""
    what = "queued resource" if machines.is_queued else "TPU VM"
    return CloudError(
        Kind.EXISTS,
        machines.name,
        f"a {what} of this name is there ({machines.type}, {machines.state}, created {machines.created}), and this "
        "launch did not make it; choose another name, or add --adopt",
    )


def seconds(duration: str) -> float:
    """Of 90s, 30m, 6h or 2d."""
    return float(duration[:-1]) * {"s": 1, "m": 60, "h": 3600, "d": 86400}[duration[-1]]


def _describe(gcloud: Gcloud, what: str, name: str) -> dict[str, Any] | None:
    try:
        return gcloud.read(gcloud.tpu(what, "describe", name))
    except CloudError as error:
        if error.kind is not Kind.NOT_FOUND:
            raise
    return None


def _ask(context: Context, words: list[str], token: str, notify: Say, before: Callable[[], None]) -> Machines:
    """Makes the request, once, however often it must be sent. An answer may get lost, so a name that is taken may be
    taken by this very request."""

    def attempt() -> Machines | CloudError:
        refused = CloudError(Kind.UNAVAILABLE, "the request is not there, though it was accepted")
        before()
        try:
            context.gcloud.change(words, timeout_s=120)
        except CloudError as error:
            refused = error
            if error.kind is not Kind.EXISTS and not _passes(error):
                raise explained(error, context.settings) from None
        machines = look(context, notify)
        if machines is None:
            return refused
        if not machines.ours:
            raise not_ours(machines)
        return machines

    return _patiently(context, notify, attempt, lambda refused: PATIENCE_S)


def look(context: Context, notify: Say | None, patience_s: float = PATIENCE_S) -> Machines | None:
    """`find`, asked again while the API does not answer."""
    # Reads count against quotas of requests alone, which fill again.
    bounds = {Kind.UNAVAILABLE: patience_s, Kind.QUOTA: patience_s, Kind.UNKNOWN: 60.0}

    def attempt() -> Machines | CloudError | None:
        try:
            return find(context)
        except CloudError as error:
            return error

    return _patiently(context, notify, attempt, lambda refused: bounds.get(refused.kind, 0.0))


def _patiently(
    context: Context, notify: Say | None, attempt: Callable[[], T | CloudError], bound_s: Callable[[CloudError], float]
) -> T:
    """What `attempt` returns, tried again with growing pauses while that is an error and its time is not over. What it
    raises ends this at once."""
    began, delay_s = _clock(), 10.0
    while isinstance(outcome := attempt(), CloudError):
        if _clock() - began >= bound_s(outcome):
            raise explained(outcome, context.settings) from None
        if notify is not None:
            notify(f"{context.settings.name}: {_brief(outcome)}: trying again, for {duration(_clock() - began)}")
        _sleep(delay_s)
        delay_s = min(60.0, 2 * delay_s)
    return outcome


def _undo(context: Context, token: str, notify: Say, why: BaseException) -> None:
    """Deletes what the request with this token has made, if anything."""
    name, refusal = context.settings.name, why.kind if isinstance(why, CloudError) else None

    def tell(line: str) -> None:
        with contextlib.suppress(OSError):  # nobody may be reading any more
            notify(line)

    if refusal is None:
        tell(f"{name}: taking the request back")
    try:
        for _ in range(1 if refusal else 3):  # a request that was cut off may arrive late
            machines = look(context, tell, 120.0)
            if machines is not None:
                if machines.token == token:
                    delete(context, machines, notify=tell)
                return
            _sleep(0.0 if refusal else 3.0)
    except CloudError as error:
        if error.kind is not refusal or error.kind is Kind.UNAVAILABLE:
            context.warn(f"{name}: may still be there, and cost money: python -m launch down; {_brief(error)}")
    except KeyboardInterrupt:
        context.warn(f"{name}: may still be there, and cost money: python -m launch down")
        raise


def _adopt(context: Context, machines: Machines, wanted: capacity.Type, notify: Say) -> Machines:
    _require_same(machines, wanted)
    if not context.dry_run:
        machines = wait(context, machines, notify=notify)
    token = secrets.token_hex(8)
    for node in machines.nodes:
        labels = f"--update-labels={LAUNCH}={machines.name},{TOKEN}={token},{ADOPTED}=true"
        context.gcloud.change(context.gcloud.tpu("tpu-vm", "update", node, labels))
    return machines if context.dry_run else look(context, notify) or machines


def _require_same(machines: Machines, wanted: capacity.Type) -> None:
    for key, ours, theirs in (("type", wanted.name, machines.type), ("slices", wanted.slices, machines.slices)):
        if theirs and str(ours).lower() != str(theirs).lower():
            raise ConfigError(
                f"{key}: {ours}, but {machines.name} has {theirs}; change the setting, or delete it first"
            )


def _passes(error: CloudError) -> bool:
    return error.kind is Kind.UNAVAILABLE


def _unsettled(error: CloudError) -> bool:
    """Whether something refuses to be deleted because it is just changing its state."""
    return "FAILED_PRECONDITION" in str(error) and "belongs to a queued resource" not in str(error)


def _brief(error: CloudError) -> str:
    return str(error.args[-1]).partition(" (command: ")[0]
