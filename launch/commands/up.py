"""`up`: creates the machines, or says that they are there."""

import argparse

from janus_jax.errors import ConfigError, counted
from launch.cloud import capacity, fit, machines
from launch.cloud.capacity import Type
from launch.cloud.refusals import console, quotas
from launch.context import Context
from launch.errors import CloudError
from launch.runs import stopping


def add(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "overrides", nargs="*", metavar="KEY=VALUE", help="changes of --config, as `janus train` takes them"
    )
    parser.add_argument("--config", metavar="CONFIG", help="create nothing on which this configuration does not fit")
    parser.add_argument("--plan", metavar="FILE", help="what `janus plan --json` wrote, instead of planning here")
    parser.add_argument(
        "--force", action="store_true", help="create the machines although the configuration does not fit"
    )
    parser.add_argument(
        "--adopt", action="store_true", help="take a queued resource or TPU VM of this name that others made"
    )
    parser.epilog = "Exits with 3 if the configuration does not fit, 16 if Google Cloud refuses."


def run(context: Context, arguments: argparse.Namespace) -> int | None:
    if arguments.overrides and arguments.config is None:
        raise ConfigError(arguments.overrides[0], "allowed: only with --config CONFIG")
    if arguments.config is not None and arguments.plan is not None:
        raise ConfigError("--config, --plan", "allowed: only one of them")
    if arguments.force and arguments.config is None and arguments.plan is None:
        raise ConfigError("--force", "allowed: only with --config or --plan")
    wanted = capacity.of(context.settings)
    for line in describe(context, wanted):
        context.say(line)
    fit.check(
        context,
        wanted,
        config=arguments.config,
        overrides=arguments.overrides,
        plan=arguments.plan,
        force=arguments.force,
    )
    try:
        made = machines.create(context, notify=context.say, adopt=arguments.adopt)
    except CloudError as error:
        if not context.dry_run:
            raise
        context.warn(f"not looked at: {error}")  # without credentials, the command can still be shown
        context.gcloud.change(machines.request(context.settings, wanted, "TOKEN", context.gcloud))
        return None
    if made.ready and not context.dry_run and context.settings.bucket:
        try:
            stopping.allow(context)
        except CloudError as error:
            context.warn(f"a stop record of `down` may still be there: {error}")
    if made.ready:
        health = "" if made.health == "HEALTHY" else f", {made.health}"
        context.say(f"{made.name}: ready{health}: {counted(len(made.workers), 'host')}; next: python -m launch setup")
    return None


def describe(context: Context, wanted: Type) -> list[str]:
    """What is asked for, what it costs, and what it counts against."""
    settings = context.settings
    size = f"{counted(wanted.chips * wanted.slices, 'chip')}, {counted(wanted.workers, 'host')}"
    slices = f"{wanted.slices} x " if wanted.slices > 1 else ""
    lines = [
        f"{settings.name}: {slices}{wanted.name}, {settings.provisioning}, in {settings.zone} of {settings.project}: "
        f"{size}, {wanted.runtime}"
    ]
    prices = {"on-demand": wanted.usd_on_demand_per_hour}
    if settings.provisioning == "spot":
        prices = {"spot": wanted.usd_per_hour, **prices}
    known = [f"{kind} " + ("unknown" if usd is None else f"${usd:,.2f} an hour") for kind, usd in prices.items()]
    lines.append(
        f"price: {', '.join(known)}; list prices as of {wanted.as_of}; see https://cloud.google.com/tpu/pricing"
    )
    if wanted.quotas:
        lines.append(f"quotas: {quotas(settings)}: {console(settings)}")
    else:
        lines.append(f"quotas: those of the project's reservations in {settings.zone}")
    return lines + ([f"note: {wanted.note}"] if wanted.note else [])
