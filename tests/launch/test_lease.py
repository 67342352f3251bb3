"""One watcher a launch: a second is refused by name, and takes over from one that is gone."""

import time

import pytest

from janus_jax.errors import HeldError
from launch.errors import CloudError, Kind
from launch.records import STALE_S
from launch.watching.lease import Lease, LostLease
from tests.support.launches import FakeBucket, Store

URL = "gs://bkt/launch/demo"


@pytest.fixture
def store() -> Store:
    return Store()


def lease(store: Store, by: str = "ann@here") -> Lease:
    return Lease(FakeBucket(URL, store), by)


def test_a_second_watcher_is_refused_by_name(store):
    lease(store).take()
    store.now += STALE_S - 1
    with pytest.raises(HeldError, match="ann@here") as caught:
        lease(store, "bob@there").take()
    assert caught.value.exit_code == 15


def test_a_watcher_that_ended_hands_over_at_once_with_what_it_knows(store):
    first = lease(store)
    first.take()
    first.keep({"tries": 3})
    first.release()
    assert lease(store, "bob@there").take() == {"tries": 3}


def test_a_watcher_that_is_gone_loses_the_lease_and_stops_when_it_comes_back(store):
    first = lease(store)
    first.take()
    store.now += STALE_S + 1
    second = lease(store, "bob@there")
    second.take()
    for step in (first.renew, lambda: first.check("stop.json")):
        with pytest.raises(LostLease, match="bob@there"):
            step()
    first.release()  # takes nothing from the other
    assert second.renew() == store.now


def test_a_check_alone_sees_that_another_has_taken_over(store):
    first = lease(store)
    first.take()
    store.now += STALE_S + 1
    lease(store, "bob@there").take()
    with pytest.raises(LostLease, match="bob@there"):
        first.check("stop.json")


def test_of_two_that_take_over_at_once_one_is_refused(store):
    lease(store).take()
    store.now += STALE_S + 1
    second, third = lease(store, "bob@there"), lease(store, "eve@work")

    def clock(call, url):  # the third takes it between the second's look and write
        if call == "clock" and third is not None:
            store.refusal = lambda call, url: None
            third.take()

    store.refusal = clock
    with pytest.raises(HeldError, match="eve@work"):
        second.take()


def test_a_write_that_was_sent_twice_is_still_ours(store):
    first = lease(store)
    first.take()

    def again(call, url):
        if call == "write":
            store.refusal = lambda call, url: None
            content, *_ = store.objects[f"{URL}/watch.json"]
            store.put(f"{URL}/watch.json", content)  # landed, its answer was lost; the second try meets the condition

    store.refusal = again
    assert first.renew() == store.now
    first.renew()


def test_a_bucket_that_refuses_is_not_a_lost_lease(store):
    first = lease(store)
    first.take()
    store.refusal = lambda call, url: CloudError(Kind.UNAVAILABLE, url, "503")
    with pytest.raises(CloudError):
        first.renew()
    store.refusal = lambda call, url: None
    first.renew()


def test_long_steps_do_not_lose_the_lease(store):
    first = lease(store)
    first.take()
    before = store.objects[f"{URL}/watch.json"][1]
    with first.kept(every_s=0.01):
        deadline = time.monotonic() + 5
        while store.objects[f"{URL}/watch.json"][1] < before + 3 and time.monotonic() < deadline:
            time.sleep(0.01)
    assert store.objects[f"{URL}/watch.json"][1] >= before + 3
    first.release()
    lease(store, "bob@there").take()


@pytest.mark.parametrize("moment", ["taken", "renewed"])
def test_ctrl_c_while_it_is_written_leaves_none(store, moment, monkeypatch):
    first, write = lease(store), FakeBucket.write

    def interrupt(*words, **options):
        write(*words, **options)  # before its generation is known
        monkeypatch.undo()
        raise KeyboardInterrupt

    if moment == "renewed":
        first.take()
    monkeypatch.setattr(FakeBucket, "write", interrupt)
    with pytest.raises(KeyboardInterrupt):
        (first.renew if moment == "renewed" else first.take)()
    first.release()
    lease(store, "bob@there").take()


def test_a_refused_watcher_releases_nothing(store):
    first, second = lease(store), lease(store, "bob@there")
    first.take()
    with pytest.raises(HeldError):
        second.take()
    second.release()
    first.renew()
