"""What `watch` does when the network fails, the workstation or cron sleeps, or the machines are not its own."""

import pytest

from launch.errors import CloudError, Kind
from launch.records import STALE_S
from launch.watching import watch as logic
from tests.support.launches import run_record
from tests.support.watching import Life, beats, log, preempt, put, restarted, watch

NO_NETWORK = CloudError(Kind.UNAVAILABLE, "unavailable: Failed to resolve 'storage.googleapis.com'")


def refuse(store, error: CloudError | None = NO_NETWORK):
    """The bucket answers no more."""
    store.refusal = lambda call, url: error


def answer(store):
    store.refusal = lambda call, url: None


@pytest.mark.parametrize("step", ["delete", "create", "setup", "start"])
def test_a_network_that_fails_in_a_step_is_no_end(store, steps, step):
    put(store, run_record())
    preempt(steps)()
    steps.answers = {n: {"state": "none"} for n in range(2)}
    start = steps.start
    steps.start = lambda *arguments: [start(*arguments), beats(store, "ended", code=0)]
    act = getattr(steps, step)

    def cut_off(*arguments, **options):
        setattr(steps, step, act)
        refuse(store)
        raise NO_NETWORK

    setattr(steps, step, cut_off)
    assert watch(store, steps, Life(store, lambda: None, lambda: answer(store)))[0].run() == 0
    assert steps.done[-1].startswith("start")


def test_a_start_that_succeeded_before_the_network_failed_is_no_failed_start(store, steps):
    put(store, run_record())
    preempt(steps)()
    steps.answers = {n: {"state": "none"} for n in range(2)}
    start = steps.start

    def cut_off(*arguments):
        start(*arguments)
        refuse(store)

    steps.start = cut_off
    life = Life(store, lambda: answer(store), lambda: beats(store, step=3), lambda: beats(store, "ended", code=0))
    assert watch(store, steps, life)[0].run() == 0
    assert steps.done == ["delete", "create", "setup", "start 2.2"]
    assert "start failed" not in log(store)


def test_a_network_that_fails_while_machines_are_waited_for_does_not_take_the_request_back(store, steps, monkeypatch):
    put(store, run_record())
    preempt(steps)()
    create = steps.create

    def waiting(notify, **options):
        def away(line):
            refuse(store)
            notify(line)
            answer(store)

        return create(away, **options)

    steps.create = waiting
    monkeypatch.setattr(logic, "_STOP_EVERY_S", 0)  # every line asks the bucket whether to go on
    assert watch(store, steps, Life(store, *restarted(store)))[0].run() == 0
    assert steps.done == ["delete", "create", "setup", "start 2.2"]


@pytest.mark.parametrize("kind", [Kind.UNAVAILABLE, Kind.CREDENTIALS])
def test_a_bucket_that_is_not_reached_for_days_is_waited_for_with_pauses(store, steps, kind):
    put(store, run_record())
    beats(store)
    outage = [lambda: refuse(store, CloudError(kind, "the network is away")), *[lambda: None] * 60]
    life = Life(store, *outage, lambda: [answer(store), preempt(steps)()], *restarted(store))
    began = store.now
    assert watch(store, steps, life)[0].run() == 0
    assert steps.done == ["delete", "create", "setup", "start 2.2"]
    assert store.now - began > 60 * 600
    assert log(store).count("the network is away") == 1 and "answers again" in log(store)


def test_a_bucket_that_is_not_reached_at_a_look_for_cron_is_no_success(store, steps):
    put(store, run_record())
    beats(store)
    store.refusal = lambda call, url: NO_NETWORK if call == "text" else None
    assert watch(store, steps)[0].run(once=True) == 16 and steps.done == []


@pytest.mark.parametrize(("kind", "looks"), [(Kind.PERMISSION, 1), (Kind.NOT_FOUND, 25)])
def test_a_bucket_that_refuses_ends_watching(store, steps, kind, looks):
    put(store, run_record())
    beats(store)
    life = Life(store, lambda: refuse(store, CloudError(kind, "the bucket refuses")))
    assert watch(store, steps, life)[0].run() == 16
    assert life.looks == looks and steps.done == []


@pytest.mark.parametrize("step", ["find", "delete", "create"])
def test_credentials_that_are_refused_for_a_moment_after_a_sleep_do_not_end_watching(store, steps, step):
    put(store, run_record())
    preempt(steps)()
    steps.errors[step] = [CloudError(Kind.CREDENTIALS, "There was a problem refreshing your current auth tokens")]
    start = steps.start
    steps.start = lambda *arguments: [start(*arguments), beats(store, "ended", code=0)]
    assert watch(store, steps, Life(store))[0].run() == 0
    assert steps.done[-1] == "start 2.2"


@pytest.mark.parametrize("sleep_s", [8 * 3600, 3600])  # a lid that was closed; cron
def test_time_between_two_looks_is_not_time_in_which_hosts_were_silent(store, steps, sleep_s):
    put(store, run_record())
    beats(store)
    steps.answers = {n: {"state": "unreachable"} for n in range(2)}
    store.now += STALE_S + 1
    asleep = [lambda: None, lambda: setattr(store, "now", store.now + sleep_s)]
    life = Life(store, *asleep, lambda: None, lambda: beats(store, "ended", code=0))
    assert watch(store, steps, life)[0].run() == 0
    assert steps.done == []


def test_looks_of_cron_add_up(store, steps):
    put(store, run_record())
    beats(store)
    steps.answers = {n: {"state": "unreachable"} for n in range(2)}
    looks = 0
    while not steps.done:
        store.now += 3600
        watch(store, steps)[0].run(once=True)
        looks += 1
        assert looks < 20
    assert looks == 9 and steps.done[0] == "delete"


def test_machines_that_were_adopted_are_neither_deleted_nor_replaced(store, steps):
    put(store, run_record())
    steps.existing.adopted = True
    beats(store)
    life = Life(store, preempt(steps))
    assert watch(store, steps, life)[0].run() == 16
    assert steps.done == [] and "not ours" in log(store)


def test_adopted_machines_that_vanish_are_not_replaced_until_others_are_there(store, steps):
    put(store, run_record())
    steps.existing.adopted = True
    beats(store)
    assert watch(store, steps, Life(store, lambda: setattr(steps, "existing", None)))[0].run() == 16
    assert watch(store, steps)[0].run(once=True) == 16
    assert watch(store, steps)[0].run() == 16 and steps.done == []
    steps.machines()
    preempt(steps)()  # machines of this launch
    assert watch(store, steps, Life(store, *restarted(store)))[0].run() == 0
    assert steps.done == ["delete", "create", "setup", "start 2.2"]


def test_adopted_machines_stay_at_the_end(store, steps):
    put(store, run_record())
    steps.existing.adopted = True
    beats(store, "ended", code=0)
    assert watch(store, steps, down_at_end=True)[0].run() == 0
    assert steps.done == [] and "down --adopt" in log(store)


def test_cron_asks_for_machines_and_does_not_wait_for_them(store, steps):
    put(store, run_record())
    preempt(steps)()
    steps.served = "WAITING_FOR_RESOURCES"
    steps.answers = {n: {"state": "none"} for n in range(2)}

    def look():
        store.now += 600
        return watch(store, steps)[0].run(once=True)

    assert [look() for _ in range(20)] == [0] * 20
    assert steps.done == ["delete", "create"]
    steps.machines(token=steps.existing.token)
    assert [look() for _ in range(2)] == [0] * 2
    assert steps.done == ["delete", "create", "setup", "start 2.2"]


@pytest.mark.parametrize(
    ("error", "requests"),
    [("QUOTA_EXHAUSTED: 8 TPUV4sPerProjectPerZoneForTPUAPI quota exceeded", 1), ("no more capacity", 24)],
)
def test_cron_counts_requests_that_fail_as_a_watcher_that_waits_does(store, steps, error, requests):
    put(store, run_record())
    preempt(steps)()
    steps.served = "WAITING_FOR_RESOURCES"
    code, looks = 0, 0
    while not code:
        store.now += 2000
        code, looks = watch(store, steps)[0].run(once=True), looks + 1
        if steps.done[-1:] == ["create"]:
            steps.machines("FAILED", error=error)
        assert looks < 60
    assert code == 16 and steps.done.count("create") == requests
    assert error in log(store)


@pytest.mark.parametrize("kind", [Kind.UNAVAILABLE, Kind.CREDENTIALS])
def test_machines_are_deleted_at_the_end_however_long_the_network_was_away(store, steps, kind):
    put(store, run_record())
    beats(store, "ended", code=0)
    steps.errors["delete"] = [CloudError(kind, "the network is away") for _ in range(40)]
    assert watch(store, steps, Life(store), down_at_end=True)[0].run() == 0
    assert steps.existing is None


def test_cron_leaves_machines_that_it_cannot_delete_to_its_next_look(store, steps):
    put(store, run_record())
    beats(store, "ended", code=0)
    steps.errors["delete"] = [NO_NETWORK]
    codes = [watch(store, steps, down_at_end=True)[0].run(once=True) for _ in range(2)]
    assert codes == [16, 0] and steps.done == ["delete"] * 2 and steps.existing is None


def test_with_nothing_known_of_the_hosts_no_machines_are_deleted(store, steps):
    put(store, run_record())
    beats(store)
    store.refusal = lambda call, url: CloudError(Kind.PERMISSION, "403") if call == "text" else None
    assert watch(store, steps, Life(store), down_at_give_up=True)[0].run() == 16
    assert steps.done == []


def test_faults_that_passed_are_not_in_a_row(store, steps):
    put(store, run_record())
    preempt(steps)()
    steps.served = "WAITING_FOR_RESOURCES"
    for number in range(80):
        store.now += 600
        steps.errors["find"] = [CloudError(Kind.UNAVAILABLE, "503")] * (number % 2)
        watch(store, steps)[0].run(once=True)
    assert steps.done == ["delete", "create"] and "gives up" not in log(store)
