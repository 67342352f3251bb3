"""The loop of `watch`: look, decide, do, until the run is done, stopped, or cannot go on."""

import contextlib
import dataclasses
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Literal

from janus_jax.errors import JanusError, first_line
from launch.cloud.bucket import Changed
from launch.cloud.gcloud import kind_of
from launch.context import Context
from launch.errors import CloudError, Kind
from launch.records import Run, seconds_of
from launch.runs.snapshot import ENDED, STOP, Reader, Snapshot, asked
from launch.watching.decide import Action, Do, decide, ending, failed, remember
from launch.watching.ending import Ending, is_own
from launch.watching.journal import Journal
from launch.watching.lease import Lease, LostLease
from launch.watching.seen import Bounds, Memory, Seen, Trouble
from launch.watching.steps import Steps

POLL_S = 20.0
_STOP_EVERY_S = 30.0


Step = Literal["look", "delete", "create", "setup", "start"]


class _Stopped(JanusError):
    """A person stopped the run while a step went on: "stop", or "down", with its machines."""


class Watch:
    """One watcher of one launch.

    Args:
        steps: what it does with the cloud and hosts; None: the real ones.
        reader: that has read a moment ago.
        poll_s: seconds between two looks.
    """

    def __init__(
        self,
        context: Context,
        *,
        steps: Steps | None = None,
        reader: Reader | None = None,
        poll_s: float = POLL_S,
        bounds: Bounds | None = None,
        sleep: Callable[[float], None] = time.sleep,
        down_at_end: bool = False,
        down_at_give_up: bool = False,
    ):
        self._context, self._steps = context, steps or Steps(context)
        self._poll_s, self._sleep = poll_s, sleep
        self._bounds = bounds or Bounds(settle_s=min(45.0, 2 * poll_s), pause_s=poll_s)
        self._down_at_end, self._down_at_give_up = down_at_end, down_at_give_up
        self._reader = reader or Reader(context.records)
        self._lease = Lease(context.records, context.me)
        self._journal = Journal(context.records, context.settings.name, context.say)
        self._ending = Ending(context, self._steps, self._lease, self._journal, self._wait_longer)
        self._memory = Memory()
        self._step: Step = "look"
        self._is_once = False
        self._asked, self._stop_generation = 0.0, 0
        self._now_s, self._is_fresh = 0.0, False
        self._machines: Any = None
        self._made = ""  # token of the machines that this action has made
        self._latest: tuple[str, str] | None = None
        self._silences = 0
        """Looks in a row at which the bucket did not answer."""
        self._silence: Kind | None = None

    def run(self, *, once: bool = False) -> int:
        """Watches until the end; with `once`, looks once and does what that calls for, but does not wait for machines.
        Returns the exit code.

        Raises:
            HeldError: another watcher is at it.
            CloudError: the bucket refuses.
        """
        try:
            return self._run(once)
        finally:  # from the first write on, whatever ends it
            self._lease.release()

    def _run(self, once: bool) -> int:
        self._memory = Memory.from_json(self._lease.take(self._reader.lease))
        self._is_fresh = True
        if not once and self._memory.gave_up:  # a person wants another try
            last = self._memory
            self._memory = Memory(run_id=last.run_id, earlier_s=last.earlier_s, others=last.others)
        self._latest = (self._memory.row, Do.WAIT.name) if once else None
        self._is_once = once
        with self._lease.kept():
            try:
                while True:
                    code = self._turn()
                    self._journal.send()
                    if once or code is not None:
                        return self._once(code) if once else code or 0
                    refusals = self._memory.refusals if self._memory.row == "no answer" else 0
                    self._sleep(max(self._poll_s, self._bounds.pause(self._silences or refusals)))
            except LostLease:
                self._journal.write("another watcher has taken over; this one ends and did nothing since")
                raise
            except KeyboardInterrupt:
                self._journal.write("interrupted: nobody watches now; the run goes on by itself")
                raise
            finally:
                self._journal.send()

    def _once(self, code: int | None) -> int:
        if code is not None:
            return code
        trouble = self._memory.trouble or {"exit_code": 0}
        return CloudError.exit_code if self._silences else int(str(trouble["exit_code"]))

    def _turn(self) -> int | None:
        """One look and one action; the exit code at the end, else None."""
        self._step = "look"
        try:
            self._now_s = self._lease.renewed_s if self._is_fresh else self._renew()
            self._is_fresh = False
            seen, snapshot = self.look(self._now_s)
        except CloudError as error:
            return self._unread(error)
        if self._silences:
            self._journal.write("the bucket answers again")
            self._silences, self._silence = 0, None
        action = decide(seen)
        if self._is_once and action.row == "requested" and action.do is Do.CREATE:
            action = dataclasses.replace(action, do=Do.WAIT)
        self._memory = remember(seen, action)
        self._lease.keep(self._memory.to_json())
        self._tell(seen, action)
        if action.do is Do.WAIT:
            return None
        if action.do in (Do.DONE, Do.STOPPED):
            return self._finish(action, seen)
        if action.do is Do.GIVE_UP:
            return self._give_up(action, seen, ending(action, seen))
        assert snapshot.run is not None
        try:
            self._act(action, snapshot.run, snapshot)
        except LostLease:
            raise
        except _Stopped as stopped:
            if stopped.args == ("down",) and self._made:  # `down` has looked before they were there
                self._down(self._made)
            return None  # the next look says who
        except Changed:
            self._journal.write("another workstation has changed the run; looking again")
        except JanusError as error:
            self._failed(error)
        with contextlib.suppress(CloudError):  # the next look asks again
            self._renew()
        return None

    def _wait_longer(self, times: int) -> None:
        self._sleep(self._bounds.pause(times))

    def _unread(self, error: CloudError) -> int | None:
        """The bucket refuses, or is not reached: then nothing is known, nor counted in the memory."""
        self._silences += 1
        if error.kind is not self._silence:
            self._silence = error.kind
            self._journal.write(f"look failed: {error}")
        trouble = Trouble("look", first_line(error), error.kind.name, error.exit_code)
        if trouble.refused or (not error.kind.may_be_network and self._silences > self._bounds.refusals):
            return self._give_up(Action(Do.GIVE_UP, "refused", str(error)), None, error.exit_code)
        return None

    def look(self, now_s: float) -> tuple[Seen, Snapshot]:
        """Looks at machines, records and, where heartbeats are old, hosts. Changes nothing there.

        Args:
            now_s: the store's time.
        Raises:
            CloudError: the bucket refused.
        """
        with ThreadPoolExecutor(2) as pool:
            finding, reading = pool.submit(self._steps.find), pool.submit(self._reader.read)
            snapshot = reading.result()
            state: str | None = ""
            try:
                self._machines = finding.result()
                state = None if self._machines is None else self._machines.state
                if self._memory.trouble is not None and self._memory.trouble["step"] == "look":
                    self._memory = dataclasses.replace(self._memory, trouble=None, refusals=0)
            except CloudError as error:
                self._machines = None
                self._failed(error)
        machines = self._machines
        run = snapshot.run
        if run is not None and run.run_id != self._memory.run_id:
            if self._memory.run_id:
                self._journal.follow(run.run_id)
                self._journal.write(f"watches another run from now on: {run.run_id}")
            trouble = self._memory.trouble if state == "" else None
            self._memory = Memory(run_id=run.run_id, trouble=trouble, others=self._memory.others)
        if machines is not None:
            self._memory = dataclasses.replace(self._memory, others=not is_own(machines))
            if self._is_once and machines.gone and self._memory.row == "requested":  # nobody waited to see it fail
                self._step = "create"
                self._failed(CloudError(kind_of(machines.error) if machines.error else Kind.STOCK_OUT, machines.words))
                self._step = "look"
        self._journal.follow(None if run is None else run.run_id)
        workers = self._steps.type().workers if machines is None or not machines.ready else len(machines.workers)
        hosts = snapshot.hosts(now_s)
        ready = machines is not None and machines.ready
        if run is not None and ready and sum(host.beats or host.state == ENDED for host in hosts) < workers:
            hosts = asked(run, workers, hosts, self._steps.states(machines))
        seen = Seen(
            now_s=now_s,
            workers=workers,
            run_id=None if run is None else run.run_id,
            hosts=hosts,
            machines=state,
            ready=ready,
            gone=machines is not None and machines.gone,
            ours=not self._memory.others,
            health="HEALTHY" if machines is None else machines.health,
            error="" if machines is None else machines.error,
            stopped=snapshot.stopped,
            memory=self._memory,
            bounds=self._bounds,
        )
        return seen, snapshot

    def _act(self, action: Action, run: Run, snapshot: Snapshot) -> None:
        """Carries out START or CREATE. Before each step the lease must hold, and nobody may have stopped the run."""
        machines: Any = self._machines
        self._stop_generation, self._made = snapshot.stop_generation, ""
        self._renew()  # what is cut off counts as a try
        if action.delete and machines is not None:
            with self._doing("delete", run):
                self._journal.write("deletes the machines")
                self._steps.delete(machines)
        if action.delete or machines is None:
            created_s = self._memory.created_s or (
                seconds_of(machines.created, self._now_s) if machines else self._now_s
            )
            earlier_s = self._memory.earlier_s + max(0.0, self._now_s - created_s)
            self._memory = dataclasses.replace(self._memory, earlier_s=earlier_s, created_s=0.0)
        if action.do is Do.CREATE:
            with self._doing("create", run):
                self._journal.write("asks for machines")
                machines = self._steps.create(
                    lambda line: self._notify(line, run),
                    patient=not self._is_once,
                    before=lambda: self._require_going(run),  # this workstation may have slept since the last look
                )
            self._made = machines.token
            if not machines.ready:
                self._memory = dataclasses.replace(self._memory, row="requested", lasted_s=0.0, trouble=None)
                return
        assert machines is not None, "START without machines"
        with self._doing("setup", run), self._steps.connect(machines) as group:
            self._journal.write("sets the hosts up")
            ready = self._steps.setup(group, run, lambda line: self._notify(line, run))
            self._steps.end(group, run.run_id)
            with self._doing("start", run):
                again = next_run(run, new=action.do is Do.CREATE or self._is_new(machines, snapshot))
                if ready.environment != run.environment:
                    self._journal.write(f"note: environment {ready.environment}, not {run.environment} as before")
                again = dataclasses.replace(again, environment=ready.environment)
                self._steps.start(group, ready, again, snapshot.stored)
        self._journal.write(f"started {run.run_id}: attempt {again.attempt}, start {again.start}")
        self._memory = dataclasses.replace(
            self._memory,
            row="starting",
            lasted_s=0.0,
            token=machines.token,
            created_s=seconds_of(machines.created, self._now_s),
            trouble=None,
        )

    def _is_new(self, machines: Any, snapshot: Snapshot) -> bool:
        """Whether the machines are others than those of the last start, also where nobody remembers that."""
        if self._memory.token:
            return machines.token != self._memory.token
        return seconds_of(machines.created, -1.0) > snapshot.newest_beat_s

    @contextlib.contextmanager
    def _doing(self, step: Step, run: Run) -> Iterator[None]:
        self._step = step
        self._require_going(run)
        yield

    def _notify(self, line: str, run: Run) -> None:
        self._journal.write(f"  {line}")
        if time.monotonic() - self._asked >= _STOP_EVERY_S:
            with contextlib.suppress(CloudError):  # nothing is known; a request that waits is not taken back for that
                self._require_going(run)

    def _require_going(self, run: Run) -> None:
        """Raises LostLease, or _Stopped if a person has stopped the run: before each step, and now and then in it."""
        generation = self._lease.check(STOP)
        self._asked = time.monotonic()
        if generation == self._stop_generation:
            return
        stop = self._context.records.read(STOP)
        if stop is not None and stop.value.get("run_id") == run.run_id:
            raise _Stopped("down" if stop.value.get("down") else "stop")
        self._stop_generation = generation

    def _renew(self) -> float:
        self._lease.keep(self._memory.to_json())
        return self._lease.renew()

    def _failed(self, error: JanusError) -> None:
        kind = error.kind.name if isinstance(error, CloudError) else ""
        trouble = Trouble(self._step, first_line(error), kind, error.exit_code)
        if self._memory.trouble != trouble.to_json() or self._step != "look":
            self._journal.write(f"{self._step} failed: {error}")
        self._memory = failed(self._memory, trouble)

    def _tell(self, seen: Seen, action: Action) -> None:
        """Logs an action, and a wait when its row is new."""
        step = f" at step {seen.newest}" if seen.newest >= 0 else ""
        what = {Do.WAIT: "waits", Do.START: "starts the run again", Do.CREATE: "makes machines and goes on"}
        latest = (action.row, action.do.name)
        if action.do in what and (action.do is not Do.WAIT or latest != self._latest):
            self._journal.write(f"{action.row}{step}: {action.reason}; {what[action.do]}")
        self._latest = latest

    def _finish(self, action: Action, seen: Seen) -> int:
        self._journal.write(f"{action.row}: {action.reason}")
        if action.do is Do.STOPPED and (code := self._ending.end_run(seen, self._machines)):
            return code
        if self._down_at_end and action.do is Do.DONE:
            return self._down()
        self._ending.say_cost(seen)
        return 0

    def _give_up(self, action: Action, seen: Seen | None, code: int) -> int:
        self._journal.write(f"gives up ({action.row}): {action.reason}")
        self._memory = dataclasses.replace(self._memory, gave_up=action.reason[:600])
        with contextlib.suppress(CloudError):
            self._renew()
        if self._down_at_give_up and seen is not None and not seen.beating:
            self._down()
        else:
            self._ending.say_cost(seen)
        return code

    def _down(self, token: str | None = None) -> int:
        return self._ending.down(self._memory.run_id, token, patient=not self._is_once)


def next_run(run: Run, *, new: bool) -> Run:
    """The record of the next start; `new`: on machines that were created since the last one."""
    return dataclasses.replace(run, attempt=run.attempt + new, start=run.start + 1)
