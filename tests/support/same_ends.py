"""Whether two runs ended bit for bit alike."""

import json
from pathlib import Path
from typing import Any

import numpy as np

from tests.support.killed_runs import newest


def differences(whole: Path, run: Path) -> list[str]:
    """What of a run's end is not bit for bit that of the other's: weights, optimizer, position, metrics, reference,
    export, summary. Arrays are read with Orbax alone."""
    wrong, step = [], newest(whole)
    if newest(run) != step:
        return [f"the newest step is {newest(run)}, not {step}"]
    for item in ("params", "optimizer"):
        ours, theirs = (_arrays(place / "checkpoints" / str(step) / item) for place in (run, whole))
        wrong += [f"{item}: other arrays"] if ours.keys() != theirs.keys() else []
        wrong += [f"{item}: {name}" for name in ours if ours[name] != theirs.get(name)]
    for name, read in (("data", _json), ("meta", _meta)):
        ours, theirs = (read(place / "checkpoints" / str(step) / name / "metadata") for place in (run, whole))
        wrong += [name] if ours != theirs else []
    wrong += ["metrics.jsonl"] if _metrics(run) != _metrics(whole) else []
    wrong += ["summary.json"] if _summary(run) != _summary(whole) else []
    for name in ("train", "eval"):
        ours, theirs = (np.load(place / "reference" / f"{name}.npz")["logps"] for place in (run, whole))
        wrong += [f"reference {name}"] if ours.tobytes() != theirs.tobytes() else []
    for file in sorted((whole / "exports" / str(step)).glob("*.safetensors")):
        ours = run / "exports" / str(step) / file.name
        wrong += [f"export {file.name}"] if not ours.exists() or ours.read_bytes() != file.read_bytes() else []
    return wrong


def _arrays(item: Path) -> dict[str, tuple[Any, ...]]:
    import jax
    import orbax.checkpoint as ocp

    with ocp.PyTreeCheckpointer() as checkpointer:
        tree = checkpointer.metadata(item).item_metadata.tree
        as_numpy = jax.tree.map(lambda leaf: ocp.RestoreArgs(restore_type=np.ndarray), tree)
        restored = checkpointer.restore(item, args=ocp.args.PyTreeRestore(restore_args=as_numpy))
    leaves = jax.tree_util.tree_flatten_with_path(restored)[0]
    return {
        jax.tree_util.keystr(path): (leaf.dtype.name, leaf.shape, leaf.tobytes())
        for path, leaf in ((path, np.asarray(leaf)) for path, leaf in leaves)
    }


def _json(file: Path) -> Any:
    return json.loads(file.read_text())


def _meta(file: Path) -> Any:
    """Without the configuration, which names directories."""
    return {key: value for key, value in _json(file).items() if key != "config"}


def _metrics(run: Path) -> list[dict[str, Any]]:
    lines = map(json.loads, (run / "metrics.jsonl").read_text().splitlines())
    return [{key: value for key, value in line.items() if key not in ("tokens_per_s", "data_wait")} for line in lines]


def _summary(run: Path) -> dict[str, Any]:
    wanted = ("step", "total_steps", "ended", "examples", "left_out", "held_out", "best", "tokens")
    return {key: value for key, value in _json(run / "summary.json").items() if key in wanted}
