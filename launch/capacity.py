"""What an accelerator type is: chips, hosts, software, price, and the quotas that it counts against."""

import dataclasses

from launch.settings import Settings


@dataclasses.dataclass(frozen=True)
class Type:
    """Of one launch: its accelerator type, times its slices."""

    name: str
    """Google's name of a slice: v5litepod-16, also where the settings say v5e-16."""
    family: str
    chips: int
    """Of a slice."""
    hosts: int
    """Of a slice."""
    slices: int
    runtime: str
    """TPU software version."""
    usd_per_hour: float | None
    """List price of all slices; None: unknown."""
    as_of: str
    """Month of that price."""

    @property
    def workers(self) -> int:
        """Hosts of all slices."""
        return self.hosts * self.slices


def of(settings: Settings) -> Type:
    """The settings' type.

    Raises:
        ConfigError: unknown type, or several slices of a family that has single ones only.
    """
    raise NotImplementedError
