"""What can go wrong between the workstation and the machines. Exit codes are those of `janus_jax.errors`."""

import enum

from janus_jax.errors import EXIT_CODES, GIVE_UP, TWICE, JanusError


class Kind(enum.Enum):
    """Why the cloud refused. The value is what the user reads."""

    QUOTA = "quota"
    STOCK_OUT = "no capacity"
    PERMISSION = "permission"
    SERVICE_DISABLED = "API not enabled"
    CREDENTIALS = "no credentials"
    NOT_FOUND = "not found"
    EXISTS = "already exists"
    CHANGED = "changed meanwhile"  # 412: a condition on a generation does not hold
    INVALID = "invalid request"
    UNAVAILABLE = "unavailable"  # 500, 503, no connection: may pass
    UNKNOWN = "gcloud failed"

    @property
    def passes(self) -> bool:
        """Whether the same request may succeed later."""
        return self in (Kind.STOCK_OUT, Kind.UNAVAILABLE, Kind.UNKNOWN)

    @property
    def may_be_network(self) -> bool:
        """Whether nothing may be wrong but the network: as a workstation wakes, gcloud blames the credentials, too."""
        return self in (Kind.UNAVAILABLE, Kind.CREDENTIALS)


class CloudError(JanusError):
    """Google Cloud refused a request: names the resource, quotes the message, says what to look at."""

    exit_code = 16

    def __init__(self, kind: Kind, *parts: str):
        super().__init__(*parts)
        self.kind = kind


class HostError(JanusError):
    """A machine failed, cannot be reached or differs from the others: names it."""

    exit_code = 17


_ECHOES = (143, 129, 130, 10, 13)
"""Codes of hosts that ended because another did, those that say more of the cause first."""


def policy(code: int) -> str:
    """What an exit code of a run calls for: see `EXIT_CODES`."""
    return EXIT_CODES.get(code, ("unknown", TWICE))[1]


def cause(code: int) -> tuple[int, int]:
    """Sort key of the exit codes of a run's hosts: the one that says most of why it ended comes first, 0 last."""
    if code == 0:
        return (4, 0)
    if code in _ECHOES:
        return (3, _ECHOES.index(code))
    return ({GIVE_UP: 0, TWICE: 1}.get(policy(code), 2), code)
