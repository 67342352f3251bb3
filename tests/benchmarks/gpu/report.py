"""The table of docs/gpu.md, from results.json."""

import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from tests.benchmarks.gpu.stages import PLAIN

_ROWS = {"sft": "packed responses", "pairs": "pairs that share prompts", "one": "one sequence as long as the row"}


def report(directory: Path) -> str:
    """Markdown: the machine, attention alone, steps, steps beside TRL, decoding, and every stage that gave nothing.

    Raises:
        SystemExit: there is no results.json.
    """
    path = directory / "results.json"
    if not path.is_file():
        raise SystemExit(f"{path} is not there; python -m tests.benchmarks.gpu --out {directory} writes it")
    results = json.loads(path.read_text(encoding="utf-8"))
    parts = [_machine(results), _equality(results), _kernels(results), _steps(results), _beside_trl(results)]
    parts.append(_decode(results))
    return "\n\n".join([part for part in [*parts, _missing(results)] if part])


def _all(results: dict[str, Any], what: str) -> list[dict[str, Any]]:
    return [one for stage in results["stages"] for one in stage["measurements"] if one["what"] == what]


def _table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [list(head), ["---"] * len(head), *map(list, rows)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _number(value: float | None, form: str = ",.0f") -> str:
    return "" if value is None else format(value, form)


def _share(value: float | None) -> str:
    return "" if value is None else f"{100 * value:.1f} %"


def _machine(results: dict[str, Any]) -> str:
    versions = ", ".join(f"{name} {version}" for name, version in results["versions"].items())
    seen = [card["device"] for card in _all(results, "card")]
    card = results["card"] or ", ".join(seen) or "no GPU was seen"
    text = f"{card}; Python {results['python']}; {versions}; {results['begun'][:10]}."
    for one in _all(results, "card"):
        text += f" Here a product of large matrices runs at {one['matmul_tflops']:.0f} TFLOP/s in bfloat16 and a copy"
        text += f" moves {one['copy_tb_per_s']:.2f} TB/s."
    return f"A rehearsal on a CPU: its times say nothing. {text}" if results["rehearsal"] else text


def _equality(results: dict[str, Any]) -> str:
    rows = [
        (
            one["kernel"],
            _ROWS[one["rows"]],
            "yes" if one["equal"] else "**no**, so not timed",
            f"{one['error']:.2g}",
            f"{one['plain_error']:.2g}",
        )
        for one in _all(results, "equal")
    ]
    head = ("kernel", "rows", "equal", "largest error, 2-norm", "plain JAX in bfloat16")
    return _table(head, rows) if rows else ""


def _kernels(results: dict[str, Any]) -> str:
    measured = _all(results, "kernel")
    plain = {one["rows"]: one["ms"] for one in measured if one["kernel"] == PLAIN}
    rows = [
        (
            _ROWS[one["rows"]],
            "plain JAX" if one["kernel"] == PLAIN else one["how"] if one["kernel"] == "torch" else one["kernel"],
            f"{one['ms']:.2f}",
            _number(one["tflops"], ",.0f"),
            _number(plain[one["rows"]] / one["ms"], ".1f") if one["rows"] in plain else "",
        )
        for one in sorted(measured, key=lambda one: (list(_ROWS).index(one["rows"]), one["ms"]))
    ]
    head = ("rows", "attention", "ms, forward and backward", "TFLOP/s", "times as fast as plain JAX")
    return _table(head, rows) if rows else ""


def _steps(results: dict[str, Any]) -> str:
    rows = [
        (
            one["case"],
            f"{one['parameters'] / 1e9:.2f} B",
            _memory_setting(one["setting"]),
            one["attention_key"],
            _number(one["tokens_per_s"]),
            _share(one["mfu"]),
            _number(one["peak_gib"], ".1f"),
            _number(one["compile_s"]),
            _number(one["loss"], ".4f"),
        )
        for one in _all(results, "step")
    ]
    head = ("step", "parameters", "settings", "attention", "tokens/s", "MFU", "peak GiB", "compile, s", "first loss")
    return _table(head, rows) if rows else ""


def _memory_setting(setting: dict[str, Any]) -> str:
    weights = "bfloat16" if setting["bfloat16_weights"] else "float32"
    return f"{setting['rows']} rows, remat {setting['remat']}, weights {weights}, moments {setting['moments']}"


def _beside_trl(results: dict[str, Any]) -> str:
    ours: dict[str, float] = {}
    for one in _all(results, "step"):  # the first stage of a case has the best attention
        ours.setdefault(one["case"], one["tokens_per_s"])
    rows = [
        (
            one["case"],
            f"{one['attention']}{', compiled' if one['compiled'] else ''}"
            f"{', gradient checkpointing' if one['gradient_checkpointing'] else ''}",
            _number(one["tokens_per_s"]),
            _number(one["peak_gib"], ".1f"),
            _number(ours[one["case"]] / one["tokens_per_s"], ".2f") if one["case"] in ours else "",
        )
        for one in _all(results, "torch step")
    ]
    head = ("step", "TRL with", "tokens/s", "peak GiB", "janus_jax / TRL")
    return _table(head, rows) if rows else ""


def _decode(results: dict[str, Any]) -> str:
    measured = _all(results, "decode")
    theirs = {one["rows"]: one["tokens_per_s"] for one in measured if one["with_"] == "transformers"}
    rows = [
        (
            f"{one['rows']}",
            _number(one["tokens_per_s"]),
            _number(one["ms"], ".2f"),
            _number(one["bound_tokens_per_s"]),
            _share(one["bound_tokens_per_s"] and one["tokens_per_s"] / one["bound_tokens_per_s"]),
            _number(theirs.get(one["rows"])),
            _number(one["tokens_per_s"] / theirs[one["rows"]], ".2f") if one["rows"] in theirs else "",
        )
        for one in measured
        if one["with_"] == "janus_jax"
    ]
    head = (
        "rows",
        "tokens/s",
        "ms a token",
        "bound by memory, tokens/s",
        "of it",
        "transformers",
        "janus_jax / transformers",
    )
    return _table(head, rows) if rows else ""


def _missing(results: dict[str, Any]) -> str:
    lines = [
        f"- {stage['name']}: {stage['state']}{': ' if stage.get('reason') else ''}{stage.get('reason', '')}"
        for stage in results["stages"]
        if stage["state"] != "ok"
    ]
    lines += [
        f"- {one['kernel']} on {_ROWS[one['rows']]}: not timed: {one['reason']}" for one in _all(results, "not timed")
    ]
    lines += [f"- {one['case']}: did not fit: {one['reason']}" for one in _all(results, "does not fit")]
    return "\n".join(lines)
