"""The loader: one sequence of rows whatever the mesh and the hosts, resumable anywhere, with errors that come out."""

import dataclasses
import functools
import itertools
import os
import subprocess
import sys
import threading

import jax
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from janus_jax.data.dataset import TokenizedDataset
from janus_jax.data.epoch import BatchSettings, Position
from janus_jax.data.loader import Loader
from janus_jax.data.rows import pack
from janus_jax.errors import ConfigError, DataError
from janus_jax.parallel.mesh import DEFAULT_RULES, MeshShape, build_mesh
from tests.support.repository import ROOT
from tests.support.training_examples import random_examples, write_dataset

EXAMPLES = 61
ROWS = BatchSettings(row_length=40, max_sequence_length=18, rows=8, microbatches=2)  # 18 < 24, the longest
GROUPS = dataclasses.replace(ROWS, rows=None, examples=10)
SETTINGS = [ROWS, GROUPS]
MODES = pytest.mark.parametrize("unit", SETTINGS, ids=["rows", "examples"])


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> dict[str, TokenizedDataset]:
    root = tmp_path_factory.mktemp("data")
    for kind in ("sft", "dpo"):
        write_dataset(root / kind, {"train": random_examples(EXAMPLES, pairs=kind == "dpo", seed=5)}, kind=kind)
    return {kind: TokenizedDataset(root / kind, "train") for kind in ("sft", "dpo")}


@functools.cache
def mesh_of(*sizes: int):
    return build_mesh(MeshShape(*sizes))


def make(data, unit: BatchSettings, *, kind="dpo", mesh=(2, 2, 2, 1), **arguments) -> Loader:
    branches = 2 if kind == "dpo" else 1
    arguments = {"seed": 3, "epochs": 4, **arguments}
    return Loader(data[kind], unit, mesh=mesh_of(*mesh), rules=DEFAULT_RULES, branches=branches, **arguments)


def on_host(loaded):
    return jax.tree.map(np.asarray, loaded.batch)


def ids(loaded) -> list[int]:
    """Numbers of the examples in a batch, ascending."""
    result = np.asarray(loaded.batch.example_id)
    return sorted(result[result >= 0].tolist())


def take(loader: Loader, count: int, start: Position | None = None) -> list:
    return list(loader.batches(start or Position(), count))


def assert_same(ours, theirs) -> None:
    for a, b in zip(jax.tree.leaves(ours), jax.tree.leaves(theirs), strict=True):
        np.testing.assert_array_equal(a, b)


# --- The same rows everywhere


@pytest.mark.parametrize("mesh", [(1, 1, 8, 1), (4, 1, 1, 2), (1, 2, 2, 2)], ids=str)
def test_the_rows_do_not_depend_on_the_mesh(data, mesh):
    expected = take(make(data, ROWS), 7)
    result = take(make(data, ROWS, mesh=mesh), 7)
    assert_same([on_host(b) for b in result], [on_host(b) for b in expected])
    assert [b.position for b in result] == [b.position for b in expected]


def test_examples_and_position_of_a_step_do_not_depend_on_the_mesh_where_rows_do(data):
    """On 8 row shards 10 examples take more rows than on one; a run may still move between the two."""
    spread, together = make(data, GROUPS, mesh=(4, 2, 1, 1)), make(data, GROUPS, mesh=(1, 1, 8, 1))
    assert spread.rows > together.rows
    expected = take(spread, 16)
    result = take(together, 5)
    result += take(make(data, GROUPS, mesh=(2, 1, 4, 1)), 11, result[-1].next_position)
    assert [ids(b) for b in result] == [ids(b) for b in expected]


@MODES
@pytest.mark.parametrize("hosts", [1, 2, 4])
def test_hosts_read_disjoint_rows_that_make_the_whole(data, monkeypatch, unit, hosts):
    """Each of several make-believe hosts holds some of the 4 rows of a microbatch."""
    whole = make(data, unit)
    per_micro = whole.rows // unit.microbatches
    positions = list(itertools.islice(whole.positions(), 7))
    expected = [whole._load(position, None).batch for position in positions]
    parts, read = [], []
    for host in range(hosts):
        local = np.arange(per_micro)[host::hosts]
        monkeypatch.setattr(Loader, "_local_rows", lambda self, local=local: local)
        mine = make(data, unit)
        monkeypatch.setattr(mine, "dataset", Spy(data["dpo"], read))
        parts.append((local, [mine._load(position, None).batch for position in positions]))
    for number, batch in enumerate(expected):
        joined = jax.tree.map(np.zeros_like, batch)
        for local, batches in parts:
            for target, rows in zip(jax.tree.leaves(joined), jax.tree.leaves(batches[number]), strict=True):
                target[:, local] = rows
        assert_same(joined, batch)
    in_batches = [i for batch in expected for i in batch.example_id[batch.valid].tolist()]
    assert sorted(read) == sorted(in_batches)  # a host reads its own examples only


class Spy:
    """A data set that notes what is read."""

    def __init__(self, dataset, read):
        self._dataset, self._read = dataset, read

    def read(self, indices):
        self._read.extend(int(i) for i in indices)
        return self._dataset.read(indices)

    def __getattr__(self, name):
        return getattr(self._dataset, name)


# --- Every example, in an order of its own


@MODES
@pytest.mark.parametrize("overlong", ["drop", "truncate"])
@pytest.mark.parametrize("kind", ["sft", "dpo"])
def test_every_example_comes_once_an_epoch(data, unit, overlong, kind):
    loader = make(data, dataclasses.replace(unit, overlong=overlong), kind=kind)
    stored = data[kind].lengths
    fits = stored[:, 0] + stored[:, 1:].max(1) <= unit.max_sequence_length
    assert 0 < fits.sum() < EXAMPLES
    if overlong == "truncate":
        fits = stored[:, 0] < unit.max_sequence_length
    for epoch in (0, 1):
        batches = list(loader.epoch(epoch))
        seen = [i for loaded in batches for i in ids(loaded)]
        assert sorted(seen) == np.flatnonzero(fits).tolist()
        assert sum(loaded.examples for loaded in batches) == len(seen)
        assert len(batches) == loader.steps(epoch)
        if unit.examples:
            assert {loaded.examples for loaded in batches[:-1]} == {unit.examples}
    assert loader.total_steps(3) == sum(loader.steps(epoch) for epoch in range(3))


@pytest.mark.parametrize("kind", ["sft", "dpo"])
def test_truncated_examples_are_the_stored_ones_cut_from_the_right(data, kind):
    loader = make(data, dataclasses.replace(ROWS, overlong="truncate"), kind=kind)
    stored = {example.example_id: example for example in data[kind].read(range(EXAMPLES))}
    shortened = 0
    for loaded in loader.epoch(0):
        batch = on_host(loaded)
        for micro, row, segment in zip(*np.nonzero(batch.valid), strict=True):
            example = stored[int(batch.example_id[micro, row, segment])]
            here = batch.segment[micro, row] == segment + 1
            for branch, response in ((1, example.chosen), (2, example.rejected)):
                targets = batch.targets[micro, row][here & (batch.branch[micro, row] == branch)]
                if response is not None:
                    room = ROWS.max_sequence_length - len(example.prompt)
                    assert targets.tolist() == response[:room].tolist()
                    shortened += len(response) > room
    assert shortened > 0


def test_a_truncated_response_keeps_its_last_token_where_a_reward_is_read(data):
    cut = dataclasses.replace(ROWS, overlong="truncate")
    loader = make(data, cut, head="value")
    stored = {e.example_id: e for e in data["dpo"].read(range(EXAMPLES))}
    shortened = 0
    for loaded in loader.epoch():
        batch = on_host(loaded)
        for *row, slot in np.argwhere(batch.weights > 0):
            segment, branch = (int(field[*row, slot]) for field in (batch.segment, batch.branch))
            example = stored[int(batch.example_id[*row, segment - 1])]
            response = example.chosen if branch == 1 else example.rejected
            assert batch.tokens[*row, slot] == response[-1]
            fed = int(((batch.segment[*row] == segment) & (batch.branch[*row] == branch)).sum()) - 1
            shortened += fed < len(response)
    assert shortened > 5


def test_batches_say_what_they_hold(data):
    for loaded in make(data, ROWS).epoch(0):
        batch = on_host(loaded)
        assert loaded.tokens == (batch.segment > 0).sum()
        assert loaded.fill == pytest.approx((batch.segment > 0).mean())
        assert loaded.examples == batch.valid.sum()


def test_a_batch_is_the_packed_examples_of_its_rows(data):
    """Row by row, against packing the stored examples by hand."""
    loader = make(data, ROWS)
    batch = on_host(take(loader, 1)[0])
    for micro in range(2):
        for row in range(4):
            members = batch.example_id[micro, row][batch.valid[micro, row]]
            alone = pack([data["dpo"].read(members)], row_length=ROWS.row_length, max_segments=loader.max_segments)
            assert_same(jax.tree.map(lambda x, m=micro, r=row: x[m, r], batch), jax.tree.map(lambda x: x[0], alone))


@MODES
def test_seed_and_epoch_give_other_orders_and_nothing_else_does(data, unit):
    def order(epoch=0, **arguments):
        return [ids(loaded) for loaded in make(data, unit, **arguments).epoch(epoch)]

    first = order()
    assert first == order()
    assert first != order(seed=4) and first != order(epoch=1)


def test_without_shuffling_the_seed_changes_nothing(data):
    orders = [[ids(b) for b in make(data, ROWS, seed=seed, shuffle=False).epoch(seed)] for seed in (0, 1)]
    assert orders[0] == orders[1]


# --- Positions


@MODES
@settings(max_examples=8)
@given(start=st.integers(0, 15))
def test_reading_from_any_position_continues_the_sequence(data, unit, start):
    """Batches number start, start + 1, ... of several epochs, whether or not an epoch ends between."""
    whole = reference_sequence(data, unit)
    loader = make(data, unit)
    assert 2 * loader.steps(0) < 15  # two ends of epochs are among them
    position = Position() if start == 0 else whole[start - 1].next_position
    resumed = take(loader, 3, position)
    assert [b.position for b in resumed] == [b.position for b in whole[start : start + 3]]
    assert_same([on_host(b) for b in resumed], [on_host(b) for b in whole[start : start + 3]])


_sequences: dict[BatchSettings, list] = {}


def reference_sequence(data, unit):
    if unit not in _sequences:
        _sequences[unit] = take(make(data, unit), 18)
    return _sequences[unit]


@MODES
def test_epochs_follow_each_other_and_are_counted(data, unit):
    loader = make(data, unit)
    steps = loader.steps(0)
    batches = take(loader, steps + 1)
    assert batches[steps - 1].next_position == batches[steps].position == Position(1, 0)
    assert [loader.epochs_before(b.position) for b in batches] == pytest.approx(
        [*(i / steps for i in range(steps)), 1.0]
    )


@MODES
def test_a_position_beyond_its_epoch_is_the_next_epoch(data, unit):
    loader = make(data, unit)
    beyond = Position(0, 1000 * loader.rows * (unit.examples or 1))
    assert take(loader, 1, beyond)[0].position == Position(1, 0)


@pytest.mark.parametrize(
    ("unit", "message"),
    [
        (ROWS, "position row 3 is not a multiple of the 8 rows of a batch"),
        (GROUPS, "position row 3 is not a multiple of the 10 examples of a batch"),
    ],
    ids=["rows", "examples"],
)
def test_a_position_inside_a_batch_is_refused(data, unit, message):
    with pytest.raises(DataError, match=message):
        take(make(data, unit), 1, Position(0, 3))


def test_no_more_is_read_than_was_asked_for(data, monkeypatch):
    loader, read = make(data, GROUPS), []
    monkeypatch.setattr(loader, "dataset", Spy(data["dpo"], read))
    batches = list(loader.epoch(0))
    assert sorted(read) == sorted(i for b in batches for i in ids(b))
    assert take(loader, 0) == []


def test_a_number_of_steps_settles_the_rows_of_all_epochs_that_it_takes(data):
    tight = dataclasses.replace(GROUPS, row_length=30, examples=20, microbatches=1)

    def rows(**arguments):
        return make(data, tight, mesh=(1, 1, 8, 1), **arguments).rows

    per_epoch = make(data, tight).steps(0)
    by_epochs = [rows(epochs=epochs) for epochs in (1, 5, 20)]
    assert by_epochs == [rows(epochs=1, steps=epochs * per_epoch) for epochs in (1, 5, 20)]
    assert by_epochs[0] < by_epochs[-1]  # a later epoch needs more rows than the first
    loader = make(data, tight, mesh=(1, 1, 8, 1), epochs=1, steps=20 * per_epoch)
    assert sum(1 for _ in loader.batches(Position(), 20 * per_epoch)) == 20 * per_epoch


# --- What goes wrong


@pytest.mark.parametrize(("kind", "branches"), [("sft", 2), ("dpo", 1)])
def test_data_of_another_kind_is_refused(data, kind, branches):
    place, wanted = ("single responses", "pairs") if kind == "sft" else ("pairs", "single responses")
    with pytest.raises(DataError, match=rf"holds {place} \(kind {kind}\), but the objective reads {wanted}"):
        Loader(data[kind], ROWS, mesh=mesh_of(1, 1, 8, 1), rules=DEFAULT_RULES, branches=branches)


def test_rows_that_do_not_divide_are_refused(data):
    with pytest.raises(ConfigError, match=r"batch\.rows=8 is not a multiple of batch\.microbatches=3"):
        make(data, dataclasses.replace(ROWS, microbatches=3))
    with pytest.raises(
        ConfigError, match=r"batch\.rows: 4 rows in a microbatch do not divide over 8 .* multiple of 16,"
    ):
        make(data, ROWS, mesh=(8, 1, 1, 1))


def test_a_record_that_cannot_be_read_stops_the_caller_and_the_thread(data, monkeypatch):
    loader = make(data, ROWS)
    good = take(loader, 3)

    class Damaged(Spy):
        def read(self, indices):
            if set(indices) & set(ids(good[2])):
                raise DataError("tokens: cannot be read")
            return super().read(indices)

    monkeypatch.setattr(loader, "dataset", Damaged(data["dpo"], []))
    batches = loader.batches()
    assert [ids(next(batches)) for _ in range(2)] == [ids(b) for b in good[:2]]
    with pytest.raises(DataError, match="tokens: cannot be read"):
        next(batches)
    assert_no_loader_thread()


def test_closing_ends_the_thread(data):
    batches = make(data, ROWS).batches()
    next(batches)
    batches.close()
    assert_no_loader_thread()


def assert_no_loader_thread() -> None:
    for thread in threading.enumerate():
        if thread.name.startswith("loader"):
            thread.join(timeout=60)
            assert not thread.is_alive()


def test_a_reader_left_open_lets_the_interpreter_end_quietly(data):
    code = f"""
from janus_jax.data.dataset import TokenizedDataset
from janus_jax.data.loader import Loader
from janus_jax.data.epoch import BatchSettings
from janus_jax.parallel.mesh import DEFAULT_RULES, MeshShape, build_mesh
dataset = TokenizedDataset({str(data["sft"].directory)!r}, "train")
loader = Loader(dataset, BatchSettings(40, 40, rows=8), mesh=build_mesh(MeshShape()), rules=DEFAULT_RULES, branches=1)
batches = loader.batches()
print(next(batches).examples)
"""
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=ROOT,
        env={**os.environ, "JAX_ENABLE_COMPILATION_CACHE": "false"},  # another process may be writing there
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert int(done.stdout) > 0
