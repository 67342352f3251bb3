"""A run that is killed at moments of several phases ends as one that never was: the short form of
`python -m tests.benchmarks.soak`. test_notices.py has SIGTERM at many moments."""

import pytest

from tests.support import killed_runs
from tests.support.killed_runs import Kill, Start
from tests.support.same_ends import differences

KILLS = (Kill("save", "SIGKILL", 0.5), Kill("export", "SIGKILL", 0.5))


@pytest.fixture(scope="module")
def chain(tmp_path_factory):
    """The undisturbed run, a run that is killed and started again, the notes of its starts, what it had saved before
    each, and the kills."""
    root = tmp_path_factory.mktemp("kills")
    killed_runs.dataset(root)

    def start(name, number):
        changes = {"export": {"hf": True, "dtype": "float32", "verify": "digest"}}
        file = killed_runs.config(root, root / name, epochs=1, mesh={"data": 1, "fsdp": 2, "tensor": 1}, **changes)
        return Start(file, root / f"{name}.{number}", devices=2, cache=root / "cache")

    whole = start("whole", 0)
    assert whole.end(killed_runs.END_S) == [0], whole.printed()
    lasts = killed_runs.lengths([*killed_runs.events(whole.notes[0])])
    starts, saved, hits = [], [], []
    for number, kill in enumerate(KILLS):
        saved.append(killed_runs.newest(root / "run"))
        starts.append(start("run", number))
        hits.append(killed_runs.killed(starts[-1], kill, lasts, root / "run"))
    saved.append(killed_runs.newest(root / "run"))
    starts.append(start("run", len(KILLS)))
    assert starts[-1].end(killed_runs.END_S) == [0], starts[-1].printed()
    return root, whole.notes, [one.notes for one in starts], saved, hits


def test_each_kill_meets_its_phase_and_loses_nothing(chain):
    *_, hits = chain
    assert [hit.wrong for hit in hits] == [[]] * len(KILLS)
    assert not any(hit.missed for hit in hits)
    assert [hit.codes for hit in hits] == [[-9], [-9]]


def test_the_run_ends_bit_for_bit_as_the_undisturbed_one(chain):
    root, whole, starts, saved, _ = chain
    assert differences(root / "whole", root / "run") == []
    exports = [[*(place / "exports").iterdir()] for place in (root / "whole", root / "run")]
    assert [*map(len, exports)] == [1, 1] and exports[0][0].name == exports[1][0].name  # nothing half-written stays
    read, wrong = killed_runs.rows_read(starts)
    assert (read, wrong) == killed_runs.rows_read([whole])
    assert len(read) == killed_runs.STEPS_OF_EPOCH and all(rows for rows in read.values())
    assert killed_runs.gaps(starts, saved) == []


def test_rows_of_another_step_and_a_step_left_out_are_seen(chain):
    _, whole, *_ = chain
    shifted = whole[0].with_name("shifted")
    shifted.write_text(whole[0].read_text().replace('"step": 3', '"step": 4', 1))
    assert killed_runs.rows_read([whole, [shifted]])[1]
    assert killed_runs.gaps([whole], [5]) and not killed_runs.gaps([whole], [None])
