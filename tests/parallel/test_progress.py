"""What stands still for too long, and which process is behind."""

from janus_jax.parallel.progress import Progress, State, overdue

NAMES = ["process 0 (host a)", "process 1 (host b)", "process 2 (host c)"]
BOUNDS = {"step": 60.0, "save": 600.0}


def test_phases_and_movements_are_counted_and_the_first_round_compiles():
    progress = Progress()
    seen = [progress.read().phase]
    with progress.phase("step"):
        for _ in range(3):
            seen.append(progress.read().phase)
            progress.moved()
        seen.append(progress.read().phase)
        with progress.phase("save"):
            seen.append(progress.read().phase)
        seen.append(progress.read().phase)
    assert seen == ["setup", "compile", "compile", "step", "step", "save", "step"]
    assert progress.read().phase == "setup" and progress.read().count == 8 and progress.read().age_s < 5
    progress.begin()
    with progress.phase("step"):  # of another run in this process
        assert progress.read().phase == "compile"


def test_the_process_that_is_behind_is_named():
    states = {0: State("step", 42, 70.0), 1: State("step", 41, 71.0), 2: State("step", 42, 70.0)}
    expected = "process 1 (host b) has made no progress in phase step for 71 s; timeouts.step allows 60 s"
    assert overdue(states, BOUNDS, NAMES) == f"{expected}; the others wait for it"


def test_the_bound_of_the_process_that_is_behind_counts():
    states = {0: State("step", 42, 70.0), 1: State("save", 41, 71.0)}
    assert overdue(states, BOUNDS, NAMES) is None  # a long save
    assert overdue({1: State("export", 1, 1e9)}, BOUNDS, NAMES) is None  # no bound
    assert overdue({0: State("step", 1, 59.0)}, BOUNDS, NAMES) is None


def test_all_at_the_same_point_and_one_alone():
    both = {0: State("step", 42, 61.0), 1: State("step", 42, 62.4)}
    assert overdue(both, BOUNDS, NAMES).endswith(
        "for 62 s; timeouts.step allows 60 s; all others stand at the same point"
    )
    assert overdue({0: State("step", 42, 61.0)}, BOUNDS, NAMES).startswith(
        "this process has made no progress in phase step"
    )
