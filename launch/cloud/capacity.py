"""What an accelerator type is: chips, hosts, software, price, and the quotas that it counts against."""

import dataclasses

from janus_jax.errors import ConfigError
from janus_jax.planning.chips.slices import accelerator_types, check_count, families, find_slice, load_chips
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
    """List price of all slices as they are provisioned; None: unknown."""
    usd_on_demand_per_hour: float | None
    as_of: str
    """Month of these prices."""
    quotas: tuple[str, ...]
    """Names of the quotas that it counts against: of the zone, of its region. None for reserved machines."""
    note: str = ""
    """What the user should know before creating it."""

    @property
    def workers(self) -> int:
        """Hosts of all slices."""
        return self.hosts * self.slices

    @property
    def most_usd_per_hour(self) -> float | None:
        """What an hour costs at most: the list price, or the on-demand one where that of spot machines is unknown."""
        return self.usd_on_demand_per_hour if self.usd_per_hour is None else self.usd_per_hour

    @property
    def price(self) -> str:
        """`most_usd_per_hour` in words."""
        if self.most_usd_per_hour is None:
            return "the price of this type is not known"
        text = f"${self.most_usd_per_hour:,.2f} an hour"
        if self.usd_per_hour is not None:
            return f"{text}, list price of {self.as_of}"
        return f"at most {text}: on-demand list price of {self.as_of}, spot unknown"


def of(settings: Settings) -> Type:
    """The settings' type.

    Raises:
        ConfigError: not a type that is offered, or several slices of a family that has single ones only.
    """
    table, slices = load_chips(), settings.slices
    try:
        target = find_slice(settings.type)
        if target.family not in families():
            raise ConfigError(f"{settings.type!r}: allowed: an accelerator type of TPUs, like v5litepod-16")
        name = next(
            (known for known in accelerator_types(target.family) if find_slice(known).topology == target.topology), None
        )
        if name is None:
            raise ConfigError(
                f"{settings.type!r}: is planned but not offered; allowed: {', '.join(accelerator_types(target.family))}"
            )
    except ConfigError as error:
        error.args = ("type", *error.args)
        raise
    try:
        check_count(target, slices, table)
    except ConfigError as error:
        error.args = ("slices", *error.args)
        raise
    family, chip = families()[target.family], table.chips[target.family]
    spot = settings.provisioning == "spot"
    on_demand, of_spot = (
        None if price is None else price * target.chips * slices for price in (chip.usd_on_demand, chip.usd_spot)
    )
    kind = family.quota.format(
        spot="Preemptible" if spot else "",
        pod="Pod" if target.hosts > 1 else "",
        serving="Serving" if target.hosts == 1 else "",
    )
    return Type(
        name=name,
        family=target.family,
        chips=target.chips,
        hosts=target.hosts,
        slices=slices,
        runtime=settings.runtime or family.runtime,
        usd_per_hour=of_spot if spot else on_demand,
        usd_on_demand_per_hour=on_demand,
        as_of=table.as_of,
        quotas=()
        if settings.provisioning == "reserved"
        else tuple(f"{kind}PerProjectPer{place}ForTPUAPI" for place in ("Zone", "Region")),
        note="" if family.tpu_api else f"Google documents {target.family} for GKE alone; the TPU API may refuse it",
    )


def region(zone: str) -> str:
    """us-central2 of us-central2-b."""
    return zone.rpartition("-")[0]
