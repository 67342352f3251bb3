"""A small DPO run killed at random moments of every phase, again and again, beside one that nobody disturbed.

    python -m tests.benchmarks.soak --out DIR

40 kills of one process with four devices and 20 of two processes with four devices each; half SIGKILL, half SIGTERM. It
takes about 40 minutes on two cores. All state lies in DIR: started again, it goes on. DIR/soak.json has every kill.
The exit code is 1 if anything was lost, repeated or different.
"""

import argparse
import collections
import dataclasses
import json
import random
import shutil
import socket
import sys
from pathlib import Path
from typing import Any

from janus_jax.parallel.environment import quiet_libraries
from janus_jax.storage.local import write_whole
from tests.support import killed_runs
from tests.support.killed_runs import PHASES, Hit, Kill, Start
from tests.support.same_ends import differences

EPOCHS, KILLS_OF_A_RUN = 5, 10
LAYOUTS = {
    "1 process x 4 devices": {"processes": 1, "mesh": {"data": 1, "fsdp": 2, "tensor": 2}, "share": 2 / 3},
    "2 processes x 4 devices": {"processes": 2, "mesh": {"data": 2, "fsdp": 2, "tensor": 2}, "share": 1 / 3},
}

_GLOO = "Gloo context initialization failed"
"""Simulated devices wait 30 s for a slower peer, which is too little on a machine that has much else to do."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, required=True, help="directory of all state")
    parser.add_argument("--kills", type=int, default=60)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    quiet_libraries()
    out = arguments.out.absolute()
    out.mkdir(parents=True, exist_ok=True)
    if not (out / "dpo" / "manifest.json").exists():
        shutil.rmtree(out / "dpo", ignore_errors=True)
        killed_runs.dataset(out)
    soaked = {name: Soak(out, number, **layout) for number, (name, layout) in enumerate(LAYOUTS.items())}
    for name, soak in soaked.items():
        print(f"{name}:", flush=True)
        soak.go_on(round(arguments.kills * LAYOUTS[name]["share"]), arguments.seed)
    report = {name: soak.state for name, soak in soaked.items()}
    (out / "soak.json").write_text(json.dumps(report, indent=1))
    for name, soak in soaked.items():
        print(f"\n{name}\n{table(soak.hits)}")
        for line in soak.wrong:
            print(f"WRONG: {line}")
    sys.exit(any(soak.wrong for soak in soaked.values()))


class Soak:
    """Runs of one layout, and what happened to them, in OUT/NUMBER."""

    def __init__(self, out: Path, number: int, *, processes: int, mesh: dict[str, int], share: float):
        self.out, self.root = out / str(number), out
        self.out.mkdir(exist_ok=True)
        self.processes, self.mesh = processes, mesh
        self._file = self.out / "state.json"
        fresh = {"runs": [], "lasts": {}, "slow_machine": 0}
        self.state: dict[str, Any] = json.loads(self._file.read_text()) if self._file.exists() else fresh

    @property
    def hits(self) -> list[dict[str, Any]]:
        return [hit for run in self.state["runs"] for hit in run["hits"] if not hit["missed"]]

    @property
    def wrong(self) -> list[str]:
        of_kills = [line for run in self.state["runs"] for hit in run["hits"] for line in hit["wrong"]]
        return of_kills + [line for run in self.state["runs"] for line in run["wrong"]]

    def go_on(self, kills: int, seed: int) -> None:
        """Kills until `kills` signals have met their phase, in runs of `KILLS_OF_A_RUN` each."""
        whole = self.out / "whole"
        if not (whole / "summary.json").exists():
            self._undisturbed(whole)
        while True:
            runs = self.state["runs"]
            if not runs or runs[-1]["ended"]:
                if len(self.hits) >= kills:
                    return
                runs.append({"planned": self._plan(kills, seed), "starts": [], "hits": [], "ended": False, "wrong": []})
            self._advance(runs[-1], f"run{len(runs)}", whole)
            self._store()

    def _store(self) -> None:
        write_whole(self._file, json.dumps(self.state, indent=1))

    def _plan(self, kills: int, seed: int) -> list[dict[str, Any]]:
        """The next kills, those of the reference pass first and those of the export last."""
        draw = random.Random(f"{seed} {self.processes} {len(self.state['runs'])}")
        turns = ((n % len(PHASES), n // len(PHASES)) for n in range(kills))
        wanted = [(PHASES[phase], ("SIGKILL", "SIGTERM")[(phase + turn) % 2]) for phase, turn in turns]
        left = collections.Counter(wanted)
        left.subtract((hit["kill"]["phase"], hit["kill"]["signal"]) for hit in self.hits)
        rest = [pair for pair in wanted if left[pair] > 0 and not left.subtract([pair])]
        chosen = draw.sample(rest, min(KILLS_OF_A_RUN, len(rest)))
        if chosen and all(phase == "restore" for phase, _ in chosen):  # which takes a checkpoint
            chosen.append(("epoch end", "SIGTERM"))
        order = {"reference": -1, "export": 1}
        planned = []
        for phase, signal in sorted(chosen, key=lambda pair: order.get(pair[0], 0)):
            victims = [0] if self.processes == 1 else draw.choice([[0], [1], [0, 1]])
            planned.append(dataclasses.asdict(Kill(phase, signal, draw.random(), tuple(victims))))
        return planned

    def _start(self, run: Path, name: str, *, cold: bool = False) -> Start:
        file = killed_runs.config(self.root, run, epochs=EPOCHS, mesh=self.mesh)
        notes = run.with_name(f"{run.name}.notes")
        notes.mkdir(exist_ok=True)
        cache = None if cold else self.out / "cache"
        return Start(file, notes / name, processes=self.processes, devices=4, port=_free_port(), cache=cache)

    def _undisturbed(self, whole: Path) -> None:
        """It also fills the cache of compiled programs, and times the phases."""
        for place in (whole, whole.with_name("whole.notes"), self.out / "cache"):
            shutil.rmtree(place, ignore_errors=True)
        start = self._start(whole, "0")
        if any(start.end(killed_runs.END_S)):
            raise SystemExit(start.printed())
        self.state["lasts"] = killed_runs.lengths([*killed_runs.events(start.notes[0])])
        print("  the undisturbed run is there", flush=True)

    def _advance(self, record: dict[str, Any], name: str, whole: Path) -> None:
        """One start: the next planned kill that can come, or none; after the last one the comparison."""
        run, number = self.out / name, len(record["starts"])
        saved = killed_runs.newest(run)
        planned = record["planned"]
        possible = [kill for kill in planned if kill["phase"] != "restore" or saved]
        cold = bool(possible) and possible[0]["phase"] == "compile"
        record["starts"].append(saved)
        self._store()  # if this soak is itself killed, the start that it killed is one of the run's
        start = self._start(run, str(number), cold=cold)
        if possible:
            kill = Kill(**possible[0] | {"victims": tuple(possible[0]["victims"])})
            planned.remove(possible[0])
            before = dict(self.state["lasts"])
            hit = killed_runs.killed(start, kill, self.state["lasts"], run)
            if not cold:
                self.state["lasts"]["compile"] = before.get("compile", 1.0)
            if hit.missed and any(_GLOO in start.printed(process) for process in range(self.processes)):
                planned.insert(0, dataclasses.asdict(kill))
                self.state["slow_machine"] = self.state.get("slow_machine", 0) + 1
                print(f"  {name}.{number}: {_GLOO}, with codes {hit.codes}; started again", flush=True)
                return
            record["hits"].append(json.loads(json.dumps(dataclasses.asdict(hit))))
            print(f"  {name}.{number}: {_line(hit)}", flush=True)
            ended = hit.missed
        else:
            ended = True
            if codes := [code for code in start.end(killed_runs.END_S) if code]:
                record["wrong"].append(f"{name}: the last start ended with {codes}: {start.printed()[-300:]}")
        if ended:
            record["ended"], record["planned"] = True, []
            record["wrong"] += self._compare(run, whole, record["starts"])
            text = "; ".join(record["wrong"]) or "bit for bit the undisturbed run"
            print(f"  {name}: {number + 1} starts: {text}", flush=True)

    def _compare(self, run: Path, whole: Path, saved: list[int | None]) -> list[str]:
        def notes(run: Path, number: int) -> list[Path]:
            files = (run.with_name(f"{run.name}.notes") / f"{number}.{process}" for process in range(self.processes))
            return [file for file in files if file.exists()]

        ours = [notes(run, number) for number in range(len(saved))]
        read, wrong = killed_runs.rows_read(ours)
        expected, _ = killed_runs.rows_read([notes(whole, 0)])
        if read != expected:
            wrong.append("the rows are not those of the undisturbed run")
        return [*wrong, *killed_runs.gaps(ours, saved), *differences(whole, run)]


def table(hits: list[dict[str, Any]]) -> str:
    """By the phase that each kill met: signals, checkpoints left half written, steps made again, exit codes."""
    lines = [f"{'phase':<16}{'SIGKILL':>8}{'SIGTERM':>8}{'half saved':>12}{'steps again':>13}  exit codes"]
    for phase in (*PHASES, "between phases"):
        met = [hit for hit in hits if _met(hit) == phase]
        signals = collections.Counter(hit["kill"]["signal"] for hit in met)
        half, again = sum(hit["half_written"] for hit in met), sum(_again(hit) for hit in met)
        codes = collections.Counter(code for hit in met for code in hit["codes"])
        counted = ", ".join(f"{code}: {count}" for code, count in sorted(codes.items()))
        lines.append(f"{phase:<16}{signals['SIGKILL']:>8}{signals['SIGTERM']:>8}{half:>12}{again:>13}  {counted}")
    slowest = max((hit["seconds"] for hit in hits), default=0)
    return "\n".join([*lines, f"{len(hits)} kills; the slowest end came {slowest} s after its signal"])


def _met(hit: dict[str, Any]) -> str:
    """The phase that was meant, if it was hit; of others that were open, the first."""
    open_ = [phase for phase in (hit["kill"]["phase"], *PHASES) if phase in hit["phases"]]
    return open_[0] if open_ else "between phases"


def _again(hit: dict[str, Any]) -> int:
    return max(0, (hit["trained"] or 0) - (hit["saved"] or 0))


def _line(hit: Hit) -> str:
    if hit.missed:
        return f"{hit.kill.phase}: the run ended first"
    inside = ", ".join(hit.phases) or "between phases"
    wrong = f"; WRONG: {'; '.join(hit.wrong)}" if hit.wrong else ""
    half = ", half-written checkpoint" if hit.half_written else ""
    return (
        f"{hit.kill.signal} to {list(hit.kill.victims)} for {hit.kill.phase} (in: {inside}): codes {hit.codes} after "
        f"{hit.seconds} s, step {hit.trained} made, {hit.saved} saved{half}{wrong}"
    )


def _free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


if __name__ == "__main__":
    main()
