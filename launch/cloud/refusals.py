"""What to look at when Google Cloud refuses machines."""

import re

from launch.cloud import capacity
from launch.errors import CloudError, Kind
from launch.settings import Settings


def explained(error: CloudError, settings: Settings) -> CloudError:
    """The error with the name in front and what to do at the end; unchanged if it has that already."""
    if len(error.args) > 1:
        return error
    text = str(error).partition(" (command: ")[0].rstrip(".")
    hint = _hint(error.kind, text, settings)
    return CloudError(error.kind, settings.name, f"{text}{hint and f'; {hint}'}")


def quotas(settings: Settings, text: str = "") -> str:
    """The two quotas to look at, with their places: those that a message names, or else the type's."""
    named = re.search(r"(TPU\w+?PerProjectPer)(Zone|Region)ForTPUAPI", text)
    names = capacity.of(settings).quotas
    if named:
        names = tuple(f"{named[1]}{place}ForTPUAPI" for place in ("Zone", "Region"))
    places = (settings.zone, capacity.region(settings.zone))
    return " and ".join(f"{name} in {place}" for name, place in zip(names, places, strict=False))


def console(settings: Settings) -> str:
    """Where quotas are seen and asked for."""
    return f"https://console.cloud.google.com/iam-admin/quotas?project={settings.project}"


def no_bucket(url: str = "gs://BUCKET", region: str = "REGION") -> str:
    """What to do about a bucket that is not there."""
    return f"check the name; to create the bucket: gcloud storage buckets create {url} --location={region}"


def _hint(kind: Kind, text: str, settings: Settings) -> str:
    zone, project = settings.zone, settings.project
    match kind:
        case Kind.QUOTA if names := quotas(settings, text):
            return (
                f"look at two quotas: {names} (the region's may be 0 although the zone has some): {console(settings)}; "
                f"failed and suspended requests count too: gcloud compute tpus queued-resources list --zone={zone} "
                f"--project={project}"
            )
        case Kind.STOCK_OUT:
            return f"try again later, another zone than {zone}, or another provisioning than {settings.provisioning}"
        case Kind.PERMISSION:
            account = settings.service_account or "the machines' service account"
            return (
                f"you need roles/tpu.admin in project {project}, and roles/iam.serviceAccountUser on {account}; "
                f"a zone that you have no access to ({zone}) is refused in the same way"
            )
        case Kind.SERVICE_DISABLED:
            return f"gcloud services enable tpu.googleapis.com --project={project}"
        case Kind.CREDENTIALS:
            return "gcloud auth login"
        case Kind.INVALID | Kind.NOT_FOUND if "FAILED_PRECONDITION" not in text:
            return (
                f"does {zone} have {settings.type}? gcloud compute tpus tpu-vm accelerator-types list --zone={zone} "
                f"--project={project}; runtime versions: gcloud compute tpus tpu-vm versions list --zone={zone} "
                f"--project={project}"
            )
        case _:
            return ""
