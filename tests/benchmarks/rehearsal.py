"""The whole way from a workstation to a trained model, with everything that goes wrong on it, on this machine.

    python -m tests.benchmarks.rehearsal --out DIR

The real gcloud talks to the TPU API of `tests/support/cloud.py`; two machines of four CPU devices are directories. An
SFT and a DPO of the demo's data run twice: once in peace, once with processes killed and the slice preempted while
`watch` looks on. Losses of every step and exported weights must be equal bit for bit, and nothing may be left at the
end. Takes about half an hour on two cores. Writes DIR/report.json and DIR/report.md (docs/rehearsal.md keeps one).
After an error, the same command takes the results of uninterrupted runs from DIR and goes on from there.
"""

import argparse
import dataclasses
import datetime
import hashlib
import json
import os
import platform
import re
import shutil
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable
from importlib import metadata
from pathlib import Path
from typing import Any

from tests.support.cloud import BUCKET, Cloud, alone, cloud
from tests.support.fake_tpu import STEP_BY_STEP
from tests.support.quick import variables
from tests.support.repository import ROOT

PATIENCE_S = 1800
PLAIN, TRIED = "plain", "tried"


@dataclasses.dataclass(frozen=True)
class Stage:
    """One training run of the rehearsal."""

    name: str
    config: str
    steps: int
    every: int
    """Steps between checkpoints."""

    def words(self, kind: str, data: Path) -> list[str]:
        """Words behind `run` for the run of this kind."""
        changes = [f"data.dir={data / self.name}", f"run.dir={url(kind, self)}", "schedule.epochs=null"]
        changes += [f"schedule.steps={self.steps}", f"checkpoint.every_steps={self.every}", "checkpoint.keep=2"]
        changes += [f"eval.every_steps={self.steps}", "logging.every_steps=1"]
        if self.name == "dpo":
            changes.append(f"init.from={url(kind, SFT)}")
        return [self.config, *changes]


SFT = Stage("sft", "configs/demo_sft.yaml", steps=18, every=5)
DPO = Stage("dpo", "configs/demo_dpo.yaml", steps=10, every=4)


def url(kind: str, stage: Stage) -> str:
    """The run directory."""
    return f"{BUCKET}/runs/{kind}-{stage.name}"


class Rehearsal:
    """What happened, for the report."""

    def __init__(self, place: Cloud, out: Path):
        self.cloud, self.out, self.began = place, out, time.monotonic()
        self.events: list[dict[str, Any]] = []

    def note(self, what: str, **more: Any) -> None:
        """An event of the report; also shown at once."""
        event = {"at_s": round(time.monotonic() - self.began, 1), "what": what, **more}
        self.events.append(event)
        print(f"{event['at_s']:7.1f} s  {what}", *(f"{key}={value}" for key, value in more.items()), flush=True)

    def launch(self, *words: object, **more: Any) -> str:
        """Runs a command of launch; notes how long it took; returns what it printed."""
        began = time.monotonic()
        done = self.cloud.launch(*words, timeout_s=PATIENCE_S, **more)
        shown = "launch " + " ".join(map(str, words[:2]))
        self.note(shown, seconds=round(time.monotonic() - began, 1))
        return done.stdout

    def directory(self, kind: str, stage: Stage) -> Path:
        """Where the bucket server keeps the run directory."""
        return self.cloud.buckets / url(kind, stage).removeprefix("gs://")

    def saved(self, kind: str, stage: Stage) -> int:
        """Newest whole checkpoint; 0 if there is none."""
        marks = self.directory(kind, stage).glob("checkpoints/*/commit_success.txt")
        return max((int(mark.parent.name) for mark in marks if mark.parent.name.isdigit()), default=0)

    def until(self, what: str, holds: Callable[[], bool], watcher: subprocess.Popen, log: Path) -> None:
        """Waits until something holds. `watch` must not end before that."""
        deadline = time.monotonic() + PATIENCE_S
        while not holds():
            assert watcher.poll() is None, f"watch ended before {what}:\n{log.read_text()}"
            assert time.monotonic() < deadline, f"waited in vain for {what}:\n{log.read_text()}"
            time.sleep(0.1)

    # --- What goes wrong

    def kill_worker(self, number: int) -> None:
        """Kills the training processes of one worker; its supervisor lives."""
        host = self.cloud.hosts("janus")[number]
        self.note(
            f"kill -9 of the training on worker {number}", processes=len(self.cloud.kill(host, matching=" train "))
        )

    def kill_all(self, number: int) -> None:
        """Kills everything on one worker."""
        host = self.cloud.hosts("janus")[number]
        self.note(f"kill -9 of everything on worker {number}", processes=len(self.cloud.kill(host)))

    def preempt(self) -> None:
        """Takes the machines away."""
        before = self.cloud.hosts("janus")
        self.cloud.preempt("janus")
        self.note("the slice is preempted", hosts=before)

    # --- The parts

    def peaceful(self, stage: Stage, data: Path) -> None:
        """The uninterrupted run; its results stay in a file for the next call with the same code."""
        if (kept := self.kept(stage)).exists():
            self.note(f"{stage.name}: uninterrupted run of an earlier call", file=kept.name)
            return
        if stage is DPO and not self.directory(PLAIN, SFT).exists():
            self.kept(SFT).unlink()
            self.peaceful(SFT, data)
        self.launch("run", "--wait", *stage.words(PLAIN, data))
        kept.write_text(json.dumps(self.results(PLAIN, stage)))

    def kept(self, stage: Stage) -> Path:
        """File of the results of an uninterrupted run, for this code and these flags of XLA."""
        code = subprocess.run(["git", "rev-parse", "HEAD:janus_jax"], cwd=ROOT, capture_output=True, text=True).stdout
        key = hashlib.sha256(f"{code} {stage} {os.environ['XLA_FLAGS']}".encode()).hexdigest()[:8]
        return self.out / f"plain-{stage.name}-{key}.json"

    def troubled(self, stage: Stage, data: Path, troubles: list[tuple[int, Callable[[], None]]]) -> None:
        """The run to which things happen: each once a checkpoint of its step is there.

        Args:
            troubles: step and what happens then, in order.
        """
        self.launch("run", *stage.words(TRIED, data))
        log = self.cloud.scratch / f"watch-{stage.name}.log"
        with self.cloud.launching("watch", "--poll", 2, log=log) as watcher:
            for step, happen in troubles:
                self.until(f"step {step} of {stage.name}", lambda s=step: self.saved(TRIED, stage) >= s, watcher, log)
                before = self.saved(TRIED, stage)
                happen()
                self.until("the next save", lambda b=before: self.saved(TRIED, stage) > b, watcher, log)
                self.note("the run has gone on", saved=self.saved(TRIED, stage))
            code = watcher.wait(PATIENCE_S)
        self.note(f"watch of {stage.name} ended", code=code)
        assert code == 0, log.read_text()

    def losses(self, kind: str, stage: Stage) -> dict[str, list[float]]:
        """The losses of every step. A step that was trained again, after a start from an older checkpoint, has one."""
        losses: dict[str, list[float]] = {}
        for part in sorted(self.directory(kind, stage).glob("metrics/*.jsonl")):
            for line in map(json.loads, part.read_text().splitlines()):
                if line["kind"] == "train" and line["loss"] not in losses.setdefault(str(line["step"]), []):
                    losses[str(line["step"])].append(line["loss"])
        return losses

    def results(self, kind: str, stage: Stage) -> dict[str, Any]:
        """Losses by step, and hashes of the exported weights."""
        files = sorted(self.directory(kind, stage).glob("**/*.safetensors"))
        hashes = {file.name: hashlib.sha256(file.read_bytes()).hexdigest() for file in files}
        return {"losses": self.losses(kind, stage), "weights": hashes}

    def compare(self, stage: Stage) -> dict[str, Any]:
        """Losses by step and hashes of the exported weights, of both runs; they must be equal."""
        plain, tried = json.loads(self.kept(stage).read_text()), self.results(TRIED, stage)
        assert plain["weights"] and set(plain["losses"]) == set(map(str, range(1, stage.steps + 1))), plain
        assert plain == tried, {"differ": stage.name, PLAIN: plain, TRIED: tried}
        [last] = plain["losses"][str(stage.steps)]
        self.note(f"{stage.name}: equal bit for bit", steps=stage.steps, final_loss=last)
        return {"final_loss": last, "steps": stage.steps, "weights": plain["weights"]}


def build_data(out: Path) -> Path:
    """The demo's data sets, in out/sft and out/dpo."""
    code = (
        "import sys\nfrom pathlib import Path\n"
        "from janus_jax.data.build.pipeline import build\nfrom janus_jax.data.sample import write_sample\n"
        "out = Path(sys.argv[1])\n"
        "for kind in ('sft', 'dpo'):\n"
        "    build(write_sample(kind, out / 'records' / kind), out / kind, kind=kind, tokenizer=None)\n"
    )
    subprocess.run([sys.executable, "-c", code, str(out)], check=True, cwd=ROOT)
    return out


def rehearse(out: Path) -> dict[str, Any]:
    """The whole way; returns the report.

    Raises:
        AssertionError: a command failed, a result differs, or something is left.
    """
    data = build_data(out / "data")
    with alone(), cloud(out / "scratch", STEP_BY_STEP) as place:
        place.settings()
        rehearsal = Rehearsal(place, out)
        printed = {name: rehearsal.launch(name) for name in ("doctor", "up", "setup")}
        printed["setup again"] = rehearsal.launch("setup")
        for stage in (SFT, DPO):
            rehearsal.peaceful(stage, data)
        rehearsal.troubled(
            *(SFT, data),
            [(5, lambda: rehearsal.kill_worker(1)), (10, rehearsal.preempt), (15, lambda: rehearsal.kill_all(0))],
        )
        rehearsal.troubled(DPO, data, [(4, rehearsal.preempt)])  # at once after the save: the lock is fresh
        equal = {stage.name: rehearsal.compare(stage) for stage in (SFT, DPO)}
        printed["status"] = rehearsal.launch("status")
        printed["logs"] = rehearsal.launch("logs")[-2000:]
        printed["pull"] = rehearsal.launch("pull", url(TRIED, DPO), out / "pulled")
        pulled = {
            file.name: hashlib.sha256(file.read_bytes()).hexdigest()
            for file in sorted((out / "pulled").glob("**/*.safetensors"))
        }
        assert pulled == equal["dpo"]["weights"], pulled
        printed["down"] = rehearsal.launch("down")
        watched = {stage.name: (place.scratch / f"watch-{stage.name}.log").read_text() for stage in (SFT, DPO)}
        numbers = {
            "requests to the TPU API": len(place.tpu.log),
            "ssh connections": sum(1 for event in place.connections() if event.get("tool") == "ssh"),
            "most ssh connections at once": place.most_at_once(),
            "machines made": place.tpu.hosts,
        }
    rehearsal.note("nothing is left: server, processes, keys")
    return {
        "about": about(),
        "events": rehearsal.events,
        "equal": equal,
        "numbers": numbers,
        "printed": printed,
        "watch": watched,
    }


def about() -> dict[str, str]:
    """When, where, and with which versions."""
    shown = subprocess.run(["gcloud", "version"], capture_output=True, text=True).stdout.splitlines()[0]
    return {
        "date": f"{datetime.datetime.now(datetime.UTC):%Y-%m-%d}",
        "gcloud": shown.removeprefix("Google Cloud SDK "),
        "JAX": metadata.version("jax"),
        "Python": platform.python_version(),
        "machine": f"{platform.system()} {platform.machine()}, {os.cpu_count()} cores, shared with other work",
    }


def page(report: dict[str, Any]) -> str:
    """The report as a page of the docs."""
    events = [
        f"| {event['at_s']:.0f} | {event['what']} | "
        + ", ".join(_shown(key, value) for key, value in event.items() if key not in ("at_s", "what"))
        + " |"
        for event in report["events"]
    ]
    return "\n".join(
        [
            "# The rehearsal of launch/",
            "",
            "`python -m tests.benchmarks.rehearsal --out DIR` wrote this page. It is no run on Google Cloud: the API,",
            "the bucket, the metadata server, ssh and the machines were stand-ins on one computer. gcloud was the real",
            "one. Two machines of four CPU devices trained the demo's model: an SFT, then a DPO from it. Each ran once",
            "in peace, and once while processes were killed and the machines taken away. The losses of all steps and",
            "the exported weights are the same, bit for bit. At the end nothing was left: no resource on the server,",
            "no process, no key outside of the rehearsal's directory.",
            "",
            *(f"- {name}: {value}" for name, value in report["about"].items()),
            *(f"- {name}: {number}" for name, number in report["numbers"].items()),
            "",
            "| run | steps | last loss, of both | exported files, equal bit for bit |",
            "|---|---|---|---|",
            *(
                f"| {name} | {equal['steps']} | {equal['final_loss']!r} | {len(equal['weights'])} |"
                for name, equal in report["equal"].items()
            ),
            "",
            "## What happened",
            "",
            "| second | what | |",
            "|---|---|---|",
            *events,
            "",
            *(line for name, log in report["watch"].items() for line in _watched(name, log)),
        ]
    )


def _shown(key: str, value: Any) -> str:
    return f"{value} s" if key == "seconds" else f"{key.replace('_', ' ')} {value}"


def _watched(name: str, log: str) -> list[str]:
    lines = textwrap.TextWrapper(116, initial_indent="    ", subsequent_indent="        ", break_on_hyphens=False)
    shown = [part for line in log.splitlines() for part in lines.wrap(re.sub(r"/\S*/scratch", "SCRATCH", line))]
    return [f"What `watch` said of {name}:", "", *shown, ""]


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="directory for everything; an earlier one is replaced")
    out = parser.parse_args().out.resolve()
    if shutil.which("gcloud") is None:
        sys.exit("gcloud is not installed here")
    for name in ("scratch", "data", "pulled"):
        shutil.rmtree(out / name, ignore_errors=True)
    out.mkdir(parents=True, exist_ok=True)
    for name, value in variables(out / "compiled").items():
        os.environ.setdefault(name, value)
    report = rehearse(out)
    (out / "report.json").write_text(json.dumps(report, indent=1))
    (out / "report.md").write_text(page(report))
    print(f"wrote {out / 'report.md'}")


if __name__ == "__main__":
    main()
