"""`doctor`: what stands between this workstation and a running launch, one line a check."""

import argparse
import contextlib
import dataclasses
import os
import platform
import re
import secrets
import stat
import sys
from collections.abc import Callable

from janus_jax.errors import JanusError, counted
from launch.cloud.gcloud import require
from launch.cloud.refusals import no_bucket
from launch.context import Context
from launch.errors import CloudError, Kind
from launch.records import FOLDER, PORT

OLDEST_GCLOUD = (480,)
"""Before it, queued resources are not in the released commands with all that `up` asks for."""


@dataclasses.dataclass(frozen=True)
class Check:
    """One thing that was looked at."""

    what: str
    seen: str
    remedy: str = ""
    """What to do; empty: all is well."""


def add(parser: argparse.ArgumentParser) -> None:
    """The command has no arguments of its own."""


def run(context: Context, arguments: argparse.Namespace) -> int:
    """Prints each check; 1 if one of them fails."""
    problems = 0
    for look in CHECKS:
        check = _look(look, context)
        problems += bool(check.remedy)
        context.say(f"{'problem' if check.remedy else 'ok':<8} {check.what}: {check.seen}")
        if check.remedy:
            context.say(f"{'':<8} -> {check.remedy}")
    context.say(counted(problems, "problem") if problems else "all is well")
    return int(problems > 0)


def _look(look: Callable[[Context], Check], context: Context) -> Check:
    what = (look.__doc__ or "").rstrip(".")
    try:
        return look(context)
    except CloudError as error:
        if "is not installed" in str(error):
            return Check(what, str(error), "install it, or put its directory on PATH")
        return Check(what, str(error)[:400], REMEDIES.get(error.kind, "see the message"))
    except JanusError as error:
        return Check(what, str(error), "see the message")


REMEDIES = {
    Kind.CREDENTIALS: "gcloud auth login",
    Kind.PERMISSION: "check project and zone: names that do not exist are refused in the same way; then ask for the "
    "roles TPU Admin, Service Account User and Storage Object Admin in this project",
    Kind.SERVICE_DISABLED: "gcloud services enable tpu.googleapis.com compute.googleapis.com storage.googleapis.com",
    Kind.NOT_FOUND: no_bucket(),
    Kind.QUOTA: "ask for quota: https://console.cloud.google.com/iam-admin/quotas",
    Kind.INVALID: "check project, zone and names in launch/tpu.yaml",
    Kind.UNAVAILABLE: "try again later; check the network of this workstation",
}


def _python(context: Context) -> Check:
    """Python of this workstation."""
    remedy = "" if sys.version_info >= (3, 11) else "use Python 3.11 or newer"
    return Check("Python", f"{platform.python_version()} at {sys.executable}", remedy)


def _gcloud(context: Context) -> Check:
    """gcloud."""
    result = context.runner(["gcloud", "version"], None, 60)
    require(result, ["gcloud", "version"])
    match = re.search(r"Google Cloud SDK (\d+)[\d.]*", result.out)
    version = match.group(0) if match else "version unknown"
    old = match is not None and (int(match.group(1)),) < OLDEST_GCLOUD
    if old:
        return Check("gcloud", version, "gcloud components update")
    if context.settings.iap and not re.search(r"^alpha ", result.out, re.MULTILINE):
        return Check(
            "gcloud", f"{version} without its alpha commands, which iap needs", "gcloud components install alpha"
        )
    return Check("gcloud", version)


def _ssh(context: Context) -> Check:
    """ssh."""
    result = context.runner(["ssh", "-V"], None, 30)
    match = re.search(r"OpenSSH_(\d+)\.(\d+)", result.err + result.out)
    if match is None:
        return Check("ssh", "not OpenSSH", "install OpenSSH 7.6 or newer")
    old = (int(match.group(1)), int(match.group(2))) < (7, 6)  # StrictHostKeyChecking=accept-new
    return Check("ssh", match.group(0), "install OpenSSH 7.6 or newer" if old else "")


def _key(context: Context) -> Check:
    """ssh key."""
    path = os.path.expanduser(context.settings.ssh_key)
    if not os.path.exists(path):
        return Check("ssh key", f"{path} does not exist; gcloud makes it at the first connection")
    open_to_others = os.stat(path).st_mode & (stat.S_IRWXG | stat.S_IRWXO)
    # -P '' opens only a key without passphrase
    locked = context.runner(["ssh-keygen", "-y", "-P", "", "-f", path], None, 30).code != 0
    if open_to_others:
        return Check("ssh key", f"{path} can be read by others", f"chmod 600 {path}")
    if locked and context.runner(["ssh-add", "-l"], None, 30).code != 0:
        return Check("ssh key", f"{path} has a passphrase and no agent holds it", f"ssh-add {path}")
    return Check("ssh key", path)


def _account(context: Context) -> Check:
    """account."""
    active = context.gcloud.read(["gcloud", "auth", "list", "--filter=status:ACTIVE"], timeout_s=60)
    token_file = os.environ.get("CLOUDSDK_AUTH_ACCESS_TOKEN_FILE")
    if not active and not token_file:
        return Check("account", "none is active", "gcloud auth login")
    return Check("account", active[0].get("account", "?") if active else f"the token in {token_file}")


def _type(context: Context) -> Check:
    """accelerator type in the zone."""
    from launch.cloud import capacity

    settings = context.settings
    name = capacity.of(settings).name
    try:
        context.gcloud.read(context.gcloud.tpu("tpu-vm", "accelerator-types", "describe", name), timeout_s=120)
    except CloudError as error:
        if error.kind is not Kind.NOT_FOUND:
            raise
        listing = f"gcloud compute tpus tpu-vm accelerator-types list --zone={settings.zone}"
        return Check("accelerator type", f"{name} is not offered in {settings.zone}", f"see {listing}")
    return Check("accelerator type", f"{name} is offered in {settings.zone} of {settings.project}")


def _runtime(context: Context) -> Check:
    """runtime version in the zone."""
    from launch.cloud import capacity

    settings = context.settings
    name = settings.runtime or capacity.of(settings).runtime
    listed = context.gcloud.read(context.gcloud.tpu("tpu-vm", "versions", "list"), timeout_s=120) or []
    names = [item.get("version") or item["name"].rpartition("/")[2] for item in listed]
    if name not in names:
        return Check("runtime", f"{name} is not offered in {settings.zone}", f"allowed: {', '.join(names)}")
    return Check("runtime", name)


def _bucket(context: Context) -> Check:
    """bucket."""
    if context.settings.bucket is None:
        return Check("bucket", "none in the settings", "bucket: gs://BUCKET; `run`, `watch` and `logs` need one")
    if context.dry_run:
        return Check("bucket", f"{context.bucket.url} is not tried, with --dry-run")
    probe, value = context.bucket.at(FOLDER), {"token": secrets.token_hex(8)}
    name = f"doctor-{value['token']}.json"  # several doctors may be at work
    try:
        probe.write(name, value)
        stored = probe.read(name)
    finally:
        with contextlib.suppress(CloudError):  # no command needs the right to delete
            probe.remove(name)
    if stored is None or stored.value != value:
        return Check("bucket", f"{probe.url}/{name} does not hold what was written", "try again; else ask Google")
    return Check("bucket", f"{context.bucket.url} can be written and read")


def _network(context: Context) -> Check:
    """network."""
    settings = context.settings
    reach = "IAP (TCP 22 from 35.235.240.0/20)" if settings.iap else "ssh (TCP 22 from this workstation)"
    network = settings.network or "default"
    return Check(
        "firewall", f"not checked: the network {network} must let in {reach}, and TCP {PORT} between the machines"
    )


CHECKS = (_python, _gcloud, _ssh, _key, _account, _type, _runtime, _bucket, _network)
