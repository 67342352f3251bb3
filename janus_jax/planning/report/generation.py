"""A plan of generation on a terminal."""

from janus_jax.errors import counted
from janus_jax.planning.generation import GenerationPlan
from janus_jax.planning.report.text import CAVEAT, seconds


def text(plan: GenerationPlan, *, prices_of: str | None = None) -> str:
    """Lines for people, the verdict first.

    Args:
        prices_of: the date of the prices.
    """
    name = f"{'' if plan.num_slices == 1 else f'{plan.num_slices} x '}{plan.target.name}"
    lines = [_verdict(plan, name), ""]
    mesh = " x ".join(f"{axis} {size}" for axis, size in plan.mesh.items())
    lines += [
        f"mesh:      {mesh}",
        f"texts:     {plan.rows:,} at the same time: prompts of {plan.prompt:,} tokens, answers of up to {plan.new:,}",
        f"memory:    weights {_gib(plan.weights)} in {plan.dtype}, cache {_gib(plan.cache)} in {plan.cache_dtype} "
        f"({plan.length:,} slots a row), temporaries {_gib(plan.temporaries)} by arithmetic",
    ]
    if plan.not_compiled is None:
        peaks = ", ".join(f"{program} {_gib(peak)}" for program, peak in plan.peaks.items())
        versions = ", ".join(f"{name} {version}" for name, version in plan.versions.items())
        lines.append(f"compiled:  {peaks}, with what is beside them; in {plan.compile_s:.0f} s with {versions}")
    else:
        lines.append(f"compiled:  no: {plan.not_compiled}. All figures are arithmetic.")
    if plan.most_rows is not None:
        lines.append(f"most rows: {plan.most_rows:,} of this length, by arithmetic")
    lines += [f"note:      {note}" for note in plan.notes]
    if plan.speed is None:
        return "\n".join([*lines, "", "Simulated devices have no figures for a bound."])
    decode, prefill, speed = plan.speed.decode, plan.speed.prefill, plan.speed
    lines += [
        "",
        f"decode:    {seconds(max(decode.values()))} for a token of every row, {speed.tokens_per_s:,.0f} tokens/s; "
        f"{_parts(plan, decode)}; each device reads {_gib(speed.read_bytes)}",
        f"prefill:   {seconds(max(prefill.values()))} for {counted(plan.mesh['data'], 'prompt')}, "
        f"{speed.prompt_tokens_per_s:,.0f} tokens/s; {_parts(plan, prefill)}",
        f"bound:     {speed.with_prompts_per_s:,.0f} new tokens/s, prompts included, one answer to each",
    ]
    if (dollars := plan.usd_per_million) is not None:
        lines.append(f"cost:      ${dollars:,.2f} for a million new tokens at the bound, list prices of {prices_of}")
    return "\n".join([*lines, "", CAVEAT])


def _verdict(plan: GenerationPlan, name: str) -> str:
    if plan.usable is None:
        return f"{_gib(plan.needed)} on each device of {name}; simulated devices have no limit"
    sizes = f"{_gib(plan.needed)} of {_gib(plan.usable)} on each device of {name}"
    if plan.fits:
        return f"FITS: {sizes}"
    out = [program for program, peak in plan.peaks.items() if peak is None]
    return f"DOES NOT FIT: {sizes}" + (f"; the compiler ran out of memory on {', '.join(out)}" if out else "")


def _parts(plan: GenerationPlan, parts: dict[str, float]) -> str:
    names = {"compute": "compute", "hbm": "HBM", "ici": plan.target.network}
    return ", ".join(f"{names[part]} {seconds(value)}" for part, value in parts.items())


def _gib(size: float | None) -> str:
    return "more than there is" if size is None else f"{size / 2**30:,.2f} GiB"
