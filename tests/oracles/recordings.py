"""Reads a recording of another trainer: which examples each microbatch held, told from the fields that it has.

| layout | fields of a microbatch | where the prompt ends |
|---|---|---|
| `sft` | `input_ids`, `attention_mask` [B, L], `labels` (-100 where no loss is taken) | at the first label |
| `dpo` | `input_ids`, `attention_mask`, `completion_mask` [2B, L], chosen above rejected | at the first 1 |
| `orpo` | `{chosen,rejected}_{input_ids,attention_mask,labels}` [B, L], each its own L; CPO (SimPO) too | as `sft` |
| `rm` | `input_ids`, `attention_mask` [2B, L], chosen above rejected; `margin` [B] or none | nowhere: see `_read_rm` |

Padding goes by the attention mask and may stand on either side. Other fields are left alone.
"""

import dataclasses
import json
import re
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load_file

from janus_jax.errors import DataError

Fields = dict[str, np.ndarray]
Ids = dict[str, Any]
"""{prompt, chosen, rejected?, margin?}: an example as `janus_jax.training.replay` takes it."""

_PAIRS = ("dpo", "simpo", "orpo", "rm")


@dataclasses.dataclass(frozen=True)
class Layout:
    """How a trainer lays out a microbatch."""

    mark: str  # the field that it is known by
    read: Callable[[Fields], list[Ids]]
    objectives: tuple[str, ...]  # that can be replayed from it; the first is the one it usually comes from


@dataclasses.dataclass(frozen=True)
class Recording:
    """Everything that a recorded run says but for its weights."""

    directory: Path
    layout: str  # a key of LAYOUTS
    steps: list[list[list[Ids]]]  # optimizer steps -> microbatches -> examples
    log: list[dict[str, float]]  # what was logged, by optimizer step

    @property
    def objectives(self) -> tuple[str, ...]:
        """Names of the objectives that can be replayed; the first is the one that the layout usually comes from."""
        return LAYOUTS[self.layout].objectives


def read(directory: Path) -> Recording:
    """A recording's batches and log.

    Raises:
        DataError: the files are no recording, or not of one run.
        OSError: a file is missing.
    """
    try:
        batches = load_file(directory / "batches.safetensors")
        log = read_log(directory)
    except (SafetensorError, ValueError) as error:
        raise DataError(f"{directory}: {error}") from error
    layout, steps = read_steps(batches)
    if len(log) != len(steps):
        raise DataError(f"{directory}: log.json has {len(log)} steps, batches.safetensors {len(steps)}")
    return Recording(directory, layout, steps, log)


def read_log(directory: Path) -> list[dict[str, float]]:
    """The logged training steps, in order."""
    return [entry for entry in json.loads((directory / "log.json").read_text()) if "loss" in entry]


def read_padding(directory: Path) -> tuple[int, int]:
    """Id of the padding, and tokens of the longest padded row.

    Raises:
        DataError: padding of several ids, or none.
    """
    batches = load_file(directory / "batches.safetensors")
    rows = {key: ids for key, ids in batches.items() if key.endswith("input_ids")}
    padding = {i for key, ids in rows.items() for i in ids[batches[key[:-9] + "attention_mask"] == 0].tolist()}
    if len(padding) != 1:
        raise DataError(f"{directory}: padding has the ids {sorted(padding)}; one is expected")
    return padding.pop(), max(ids.shape[1] for ids in rows.values())


def read_steps(batches: Fields) -> tuple[str, list[list[list[Ids]]]]:
    """The layout's name and steps -> microbatches -> examples of `step{K:03d}.{micro}.{field}`.

    Raises:
        DataError: not such a recording; names the step, the microbatch and what is wrong.
    """
    grouped: dict[int, dict[int, Fields]] = {}
    for key, value in batches.items():
        match = re.fullmatch(r"step(\d+)\.(\d+)\.(\w+)", key)
        if not match:
            raise DataError(f"batches.safetensors: key {key!r}; step000.0.input_ids is expected")
        grouped.setdefault(int(match[1]), {}).setdefault(int(match[2]), {})[match[3]] = value
    _require_whole("steps", grouped)
    layouts = {_layout(fields) for micros in grouped.values() for fields in micros.values()}
    if len(layouts) != 1:
        raise DataError(f"batches.safetensors mixes {' and '.join(sorted(layouts))}")
    layout = layouts.pop()
    steps = []
    for step in sorted(grouped):
        _require_whole(f"step {step}: microbatches", grouped[step])
        steps.append([])
        for micro, fields in sorted(grouped[step].items()):
            try:
                steps[-1].append(LAYOUTS[layout].read(fields))
            except (ValueError, KeyError) as error:
                what = f"field {error} is missing" if isinstance(error, KeyError) else error
                raise DataError(f"step {step}, microbatch {micro}: {what}") from error
    return layout, steps


def _require_whole(what: str, numbered: dict[int, Any]) -> None:
    if sorted(numbered) != list(range(len(numbered))) or not numbered:
        raise DataError(f"{what} are numbered {sorted(numbered)}; 0, 1, 2 and on are expected")


def _layout(fields: Fields) -> str:
    for name, layout in LAYOUTS.items():
        if layout.mark in fields:
            return name
    known = ", ".join(f"{name} has {layout.mark}" for name, layout in LAYOUTS.items())
    raise DataError(f"fields {sorted(fields)} are of no known kind: {known}")


def _unpadded(ids: np.ndarray, attention: np.ndarray) -> np.ndarray:
    ids = ids[attention.astype(bool)]
    if not len(ids):
        raise ValueError("a sequence is all padding")
    return ids


def _split(ids: np.ndarray, attention: np.ndarray, completion: np.ndarray) -> tuple[list[int], list[int]]:
    """Prompt and completion of one padded sequence, told apart by the masks alone."""
    ids, completion = _unpadded(ids, attention), completion[attention.astype(bool)].astype(bool)
    start = int(np.argmax(completion)) if completion.any() else len(ids)
    if not completion[start:].all():
        raise ValueError("a completion must reach to the end of its sequence")
    start = max(start, 1)  # nothing precedes the first token, so no trainer can score it
    return ids[:start].tolist(), ids[start:].tolist()


def _split_rows(ids: np.ndarray, attention: np.ndarray, completion: np.ndarray) -> list[tuple[list[int], list[int]]]:
    return [_split(*row) for row in zip(ids, attention, completion, strict=True)]


def _halves(rows: list[Any]) -> Iterable[tuple[Any, Any]]:
    half, odd = divmod(len(rows), 2)
    if odd:
        raise ValueError(f"{len(rows)} sequences cannot be pairs")
    return zip(rows[:half], rows[half:], strict=True)


def _pair(chosen: tuple[list[int], list[int]], rejected: tuple[list[int], list[int]]) -> Ids:
    if chosen[0] != rejected[0]:
        raise ValueError("chosen and rejected must share their prompt")
    return {"prompt": chosen[0], "chosen": chosen[1], "rejected": rejected[1]}


def _read_sft(micro: Fields) -> list[Ids]:
    rows = _split_rows(micro["input_ids"], micro["attention_mask"], micro["labels"] != -100)
    return [{"prompt": prompt, "chosen": response} for prompt, response in rows]


def _read_dpo(micro: Fields) -> list[Ids]:
    rows = _split_rows(micro["input_ids"], micro["attention_mask"], micro["completion_mask"])
    return [_pair(*rows) for rows in _halves(rows)]


def _read_orpo(micro: Fields) -> list[Ids]:
    def rows(of: str) -> list[tuple[list[int], list[int]]]:
        return _split_rows(micro[f"{of}_input_ids"], micro[f"{of}_attention_mask"], micro[f"{of}_labels"] != -100)

    chosen, rejected = rows("chosen"), rows("rejected")
    if len(chosen) != len(rejected):
        raise ValueError(f"{len(chosen)} chosen and {len(rejected)} rejected sequences cannot be pairs")
    return [_pair(*rows) for rows in zip(chosen, rejected, strict=True)]


def _read_rm(micro: Fields) -> list[Ids]:
    """A reward is read at the end of a sequence, so where the prompt ends is nowhere said and changes nothing: it is
    what the two have in common, but for their last tokens."""
    whole = zip(micro["input_ids"], micro["attention_mask"], strict=True)
    pairs = [_common_prompt(*pair) for pair in _halves([_unpadded(*row) for row in whole])]
    margins = micro.get("margin", np.zeros(len(pairs), np.float32)).tolist()
    if len(margins) != len(pairs):
        raise ValueError(f"{len(margins)} margins cannot be those of {len(pairs)} pairs")
    return [pair | {"margin": margin} for pair, margin in zip(pairs, margins, strict=True)]


def _common_prompt(chosen: np.ndarray, rejected: np.ndarray) -> Ids:
    most = min(len(chosen), len(rejected)) - 1
    differ = np.flatnonzero(chosen[:most] != rejected[:most])
    common = int(differ[0]) if len(differ) else most
    if not common:
        raise ValueError("chosen and rejected must begin with the same token and go on")
    prompt, *responses = (ids.tolist() for ids in (chosen[:common], chosen[common:], rejected[common:]))
    return {"prompt": prompt, "chosen": responses[0], "rejected": responses[1]}


LAYOUTS = {
    "sft": Layout("labels", _read_sft, ("sft",)),
    "dpo": Layout("completion_mask", _read_dpo, _PAIRS),
    "orpo": Layout("chosen_input_ids", _read_orpo, ("orpo", *(name for name in _PAIRS if name != "orpo"))),
    "rm": Layout("input_ids", _read_rm, ("rm",)),  # the last, for the others may have input_ids too
}
