"""Searches meshes, rows per device, remat and moments: estimates every possible cell and compiles the best.

    cells = sweep(load_config("configs/sft_65k.yaml"), "v5litepod-16", limit=12)
    print(cells[0].changes, cells[0].serial_tokens_per_s)

Each cell is compiled in its own process and its result is cached, so an interrupted sweep continues where it stopped.
"""

import concurrent.futures
import contextlib
import dataclasses
import functools
import json
import os
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Literal

from janus_jax.config.changes import changed, overrides
from janus_jax.config.run import RunConfig
from janus_jax.errors import ConfigError
from janus_jax.model.remat import HOST, as_text
from janus_jax.planning.chips.slices import check_count, devices, find_slice, load_chips
from janus_jax.planning.inputs import Inputs
from janus_jax.planning.search.cache_key import cache_key, code_hash
from janus_jax.planning.search.candidates import FITTING, InputsCache, SearchSpace, choices
from janus_jax.planning.search.estimate import Estimate, estimate
from janus_jax.planning.search.keep import fitting_list
from janus_jax.storage import staging

BYTES_PER_WORKER = 2 * 2**30
"""Host memory to compile a step of a 7B model."""

Status = Literal["fits", "too large", "hopeless", "left out", "failed"]
_RANKS: tuple[Status, ...] = ("fits", "too large", "failed", "left out", "hopeless")


@dataclasses.dataclass(frozen=True)
class Cell:
    """One configuration of a sweep and its result."""

    changes: tuple[str, ...]  # overrides of the given configuration
    mesh: dict[str, int]
    rows_per_device: float
    microbatches: int
    remat: str
    moments: str
    estimated_bytes: int
    status: Status
    reason: str | None = None  # why it does not fit or was not compiled
    plan: dict[str, Any] | None = None  # `Plan.to_json`, if compiled
    was_known: bool = False  # from an earlier sweep

    @property
    def peak(self) -> int | None:
        """Bytes that a device needs, from the compiler."""
        return None if self.plan is None else self.plan["memory"]["needed"]

    @property
    def tokens_per_s(self) -> float | None:
        """Tokens per second of the whole mesh, at the bound."""
        return None if self.plan is None or self.plan["bound"] is None else self.plan["bound"]["tokens_per_s"]

    @property
    def serial_tokens_per_s(self) -> float | None:
        """Tokens per second if nothing overlaps. Cells are ranked by it: at the bound, all meshes that are limited by
        compute are equal, however much they send."""
        if self.plan is None or self.plan["bound"] is None:
            return None
        return self.plan["tokens_per_step"] / self.plan["bound"]["serial_seconds"]

    def to_json(self) -> dict[str, Any]:
        """What `--json` writes."""
        derived = ("peak", "tokens_per_s", "serial_tokens_per_s")
        return dataclasses.asdict(self) | {name: getattr(self, name) for name in derived}


Job = dict[str, Any]
"""`config`, `topology`, `num_slices`, `chips`, the hash of the `code`, and the `path` of the result."""


def sweep(
    config: RunConfig,
    topology: str,
    num_slices: int = 1,
    space: SearchSpace | None = None,
    *,
    chips: str | os.PathLike[str] | None = None,
    limit: int | None = None,
    workers: int | None = None,
    cache: str | os.PathLike[str] | None = None,
    report: Callable[[Cell], None] | None = None,
    run: Callable[[Job], dict[str, Any]] | None = None,
) -> list[Cell]:
    """All cells: first those that fit, fastest first. The others say why they do not fit or were not compiled.

    Args:
        chips: as for `plan`.
        limit: maximum number of cells to compile, best estimates first. Cached results count.
        workers: number of processes that compile at once; None: as many as cores and memory allow.
        cache: directory of results; None: `plans` in $JANUS_CACHE.
        report: called with each cell as soon as it is compiled.
        run: compiles one job in place of a process.
    Raises:
        ConfigError: unknown slice, libtpu is missing, or training would accept no cell.
        DataError, ConversionError: as training would.
    """
    space, target = space or SearchSpace(), find_slice(topology)
    table = load_chips(chips)
    check_count(target, num_slices, table)
    chip = table.chip(target)
    usable = None if chip is None else chip.usable_hbm_bytes_per_device
    inputs_of, cells = InputsCache(target.devices * num_slices), []
    problem: ConfigError | None = None
    for changes in choices(config, target.devices * num_slices, num_slices, space, inputs_of):
        try:
            if changes["remat"] == FITTING:
                full = changed(config, changes | {"remat": "full"})
                kept = fitting_list(full, target, num_slices, usable, inputs=inputs_of(full))
                if kept is None:
                    continue
                changes["remat"] = list(kept)
            variant = changed(config, changes)
            inputs = inputs_of(variant)
            estimated = estimate(variant, target, num_slices, chip=chip, inputs=inputs)
            cells.append(_Candidate(changes, variant, inputs, estimated))
        except ConfigError as error:
            problem = problem or error
    if not cells:
        raise problem or ConfigError(
            f"{topology}: the rows of this configuration divide over no mesh and number of microbatches"
        )
    cells.sort(key=lambda cell: cell.order(usable))
    directory = Path(cache) if cache is not None else staging.cache() / "plans"
    job = {"topology": topology, "num_slices": num_slices, "chips": chips and os.fspath(chips), "code": code_hash()}
    done, jobs, chosen = [], [], 0
    for cell in cells:
        if cell.estimate.is_hopeless(usable):
            done.append(cell.as_cell(config, "hopeless", _too_much(cell.estimate, usable)))
        elif chosen == limit:
            done.append(cell.as_cell(config, "left out", f"{limit} others have better estimates"))
        else:
            chosen += 1
            path = directory / f"{cache_key(cell.config, cell.inputs, target, num_slices, chip)}.json"
            if (known := _read(path)) is not None:
                done.append(cell.as_compiled(config, known, was_known=True))
            else:
                written = cell.config.model_dump(mode="json", by_alias=True)
                jobs.append((cell, job | {"config": written, "path": str(path)}))
    if jobs and run is None:
        devices(target, num_slices)  # fails here rather than in every process
    with _results(jobs, run, workers or _workers()) as results:
        for cell, result in results:
            done.append(cell.as_compiled(config, result))
            if report is not None:
                report(done[-1])
    return sorted(done, key=_rank)


@dataclasses.dataclass(frozen=True)
class _Candidate:
    changes: dict[str, Any]
    config: RunConfig
    inputs: Inputs
    estimate: Estimate

    def order(self, usable: int | None) -> tuple[Any, ...]:
        """Cells that probably fit first; then by time per token, load of the host, and memory."""
        bound, config = self.estimate.bound, self.config
        seconds = 0.0 if bound is None else bound.serial_seconds / self.inputs.tokens_per_step
        over = usable is not None and self.estimate.bytes > usable
        return over, *_equals(as_text(config.remat), config.moments, seconds), self.estimate.bytes

    def as_cell(self, given: RunConfig, status: Status, reason: str | None = None, **more: Any) -> Cell:
        plain = given.model_dump(mode="json", by_alias=True)
        differing = {key: value for key, value in self.changes.items() if _at(plain, key) != value}
        return Cell(
            changes=tuple(overrides(differing)),
            mesh=self.config.mesh.model_dump(),
            rows_per_device=self.estimate.rows_per_device,
            microbatches=self.inputs.shape.microbatches,
            remat=as_text(self.config.remat),
            moments=self.config.moments,
            estimated_bytes=self.estimate.bytes,
            status=status,
            reason=reason,
            **more,
        )

    def as_compiled(self, given: RunConfig, result: dict[str, Any], *, was_known: bool = False) -> Cell:
        plan = result.get("plan")
        if plan is None:
            return self.as_cell(given, "failed", result["error"], was_known=was_known)
        status = "fits" if plan["fits"] else "too large"
        return self.as_cell(given, status, plan["reason"], plan=plan, was_known=was_known)


def _at(values: Any, key: str) -> Any:
    return functools.reduce(lambda node, part: node[part], key.split("."), values)


def _too_much(estimated: Estimate, usable: int | None) -> str:
    needed, available = estimated.bytes / 2**30, (usable or 0) / 2**30
    return f"needs about {needed:.1f} GiB by estimate but only {available:.2f} GiB is usable"


def _read(path: Path) -> dict[str, Any] | None:
    try:
        result = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return result if isinstance(result, dict) and result.keys() & {"plan", "error"} else None


@contextlib.contextmanager
def _results(
    jobs: list[tuple[_Candidate, Job]], run: Callable[[Job], dict[str, Any]] | None, workers: int
) -> Iterator[Iterator[tuple[_Candidate, dict[str, Any]]]]:
    """Yields results as they arrive. Leaving the block ends the processes."""
    running = _Processes()
    pool = concurrent.futures.ThreadPoolExecutor(workers)
    futures = {pool.submit(run or running, job): cell for cell, job in jobs}
    try:
        yield ((futures[future], future.result()) for future in concurrent.futures.as_completed(futures))
    finally:
        pool.shutdown(wait=False, cancel_futures=True)
        running.end()


class _Processes:
    """Runs each job in its own process."""

    def __init__(self) -> None:
        self.alive: set[subprocess.Popen[str]] = set()
        self.ended = False

    def __call__(self, job: Job) -> dict[str, Any]:
        paths = os.pathsep.join(dict.fromkeys(os.path.abspath(path) for path in sys.path))
        process = subprocess.Popen(
            [sys.executable, "-m", "janus_jax.planning.search.worker"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env={**os.environ, "JAX_PLATFORMS": "cpu", "PYTHONPATH": paths},
            text=True,
        )
        self.alive.add(process)
        if self.ended:
            process.kill()
        out, err = process.communicate(json.dumps(job))
        self.alive.discard(process)
        if process.returncode:
            last = err.strip().splitlines()[-1:] or ["it printed no reason"]
            return {"error": f"the process ended with code {process.returncode}: {last[0]}"}
        return json.loads(out.splitlines()[-1])

    def end(self) -> None:
        self.ended = True
        for process in list(self.alive):
            process.kill()


def _workers() -> int:
    """As many as cores and memory allow."""
    try:
        kib = re.search(r"^MemAvailable: +(\d+)", Path("/proc/meminfo").read_text(encoding="ascii"), re.MULTILINE)
    except OSError:
        return 1
    return 1 if kib is None else max(1, min(os.cpu_count() or 1, int(kib[1]) * 1024 // BYTES_PER_WORKER))


def _rank(cell: Cell) -> tuple[Any, ...]:
    """Sorts by status, then speed. Cells without a bound stay in the order of their estimates."""
    rank, speed = _RANKS.index(cell.status), cell.serial_tokens_per_s
    if not speed:
        return (rank, float("inf"))
    return rank, *_equals(cell.remat, cell.moments, 1 / speed), cell.peak


def _equals(remat: str, moments: str, seconds: float) -> tuple[Any, ...]:
    """Seconds to three digits, then costs that no bound counts: transfers to the host, then rounded moments."""
    return float(f"{seconds:.3g}"), remat == "offload" or HOST in remat, moments != "float32"
