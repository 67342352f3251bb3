"""What can go wrong between the workstation and the machines. Exit codes are those of `janus_jax.errors`."""

import enum

from janus_jax.errors import JanusError


class Kind(enum.Enum):
    """Why the cloud refused. The value is what the user reads."""

    QUOTA = "quota"
    STOCK_OUT = "no capacity"
    PERMISSION = "permission"
    SERVICE_DISABLED = "API not enabled"
    CREDENTIALS = "no credentials"
    NOT_FOUND = "not found"
    EXISTS = "already exists"
    INVALID = "invalid request"
    UNAVAILABLE = "unavailable"  # 500, 503, no connection: may pass
    UNKNOWN = "gcloud failed"

    @property
    def passes(self) -> bool:
        """Whether the same request may succeed later."""
        return self in (Kind.STOCK_OUT, Kind.UNAVAILABLE, Kind.UNKNOWN)


class CloudError(JanusError):
    """Google Cloud refused a request: names the resource, quotes the message, says what to look at."""

    exit_code = 16

    def __init__(self, kind: Kind, *parts: str):
        super().__init__(*parts)
        self.kind = kind


class HostError(JanusError):
    """A machine failed, cannot be reached or differs from the others: names it."""

    exit_code = 17
