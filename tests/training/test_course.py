"""Which lengths a run may be extended to. Training with them is in test_extended_runs.py."""

import dataclasses
import types

import pytest

from janus_jax.errors import ConfigError
from janus_jax.training.course import Course, Extension, Past, course_of, without_decay
from tests.support.run_configs import run_config

EPOCHS: dict = {"total_steps": lambda epochs: 20 * epochs, "rows": 4, "rows_for": lambda epochs, steps: 4}
COSINE = {"name": "cosine", "learning_rate": 1e-3, "warmup_steps": 10, "steps": 100, "epochs": None}


def begun(path, step, stopped=False, course=None, **schedule):
    """The newest checkpoint of a run with these changes of COSINE."""
    config = run_config(path, "run", schedule=COSINE | schedule)
    meta = {"config": config.model_dump(mode="json", by_alias=True), "stopping": {"stopped": stopped}}
    return Past(step, meta | ({} if course is None else {"course": dataclasses.asdict(course)}))


def course(path, past, batch=None, packed=None, **schedule):
    config = run_config(path, "run", schedule=COSINE | schedule, batch=batch or {})
    return course_of(config, types.SimpleNamespace(**EPOCHS | (packed or {})), past)


@pytest.mark.parametrize(
    ("step", "stopped", "changes", "expected"),
    [
        (100, False, {"steps": 150, "extend": "restart"}, Extension(100, 150, "restart")),
        (60, False, {"steps": 150, "extend": "restart"}, Extension(100, 150, "restart")),
        (60, False, {"steps": 150, "extend": "stretch"}, Extension(60, 150, "stretch")),
        (60, True, {"steps": 80, "extend": "restart"}, Extension(60, 80, "restart")),
        (60, False, {"steps": None, "epochs": 6, "extend": "restart"}, Extension(100, 120, "restart")),
        (60, False, {"steps": None, "epochs": 5}, None),
        (60, False, {"extend": "restart"}, None),
    ],
)
def test_an_extension_begins_where_the_run_would_end(tmp_path, step, stopped, changes, expected):
    extended = course(tmp_path, begun(tmp_path, step, stopped), **changes)
    assert extended == Course(100, () if expected is None else (expected,))
    # A process that goes on from a later checkpoint reads the same.
    past = begun(tmp_path, step + 1, course=extended, **changes)
    assert course(tmp_path, past, **changes) == extended == Course.of_meta(past.meta)


def test_a_constant_rate_is_that_of_the_end(tmp_path):
    lowest = {"min_rate_ratio": 0.25}
    extended = course(tmp_path, begun(tmp_path, 60, **lowest), **lowest, steps=150, extend="constant")
    assert extended.extensions[0].rate == pytest.approx(2.5e-4, rel=1e-6)
    stopped = course(tmp_path, begun(tmp_path, 55, stopped=True), steps=150, extend="constant")  # half way down
    assert stopped.extensions[0].start == 55 and stopped.extensions[0].rate == pytest.approx(5e-4, rel=1e-6)


@pytest.mark.parametrize(
    ("step", "changes", "message"),
    [
        (
            100,
            {"steps": 150},
            "schedule.steps = 150: run.dir=run holds a run of 100 steps; set schedule.extend to rest",
        ),
        (100, {"steps": None, "epochs": 6}, r"schedule.epochs = 6 \(120 steps\): .* of 100 steps; set schedule.extend"),
        (
            60,
            {"steps": 50, "extend": "stretch"},
            "of 100 steps, 60 of them done; allowed: 100, or with schedule.extend mo",
        ),
        (
            100,
            {"steps": 80, "extend": "stretch"},
            "holds a run of 100 steps; allowed: 100, or with schedule.extend more tha",
        ),
        (100, {"steps": 110, "extend": "restart"}, "warm-up of 10 steps takes all 10 added steps; allowed: more steps"),
        (
            100,
            {"steps": 150, "extend": "constant"},
            "extend = constant: its rate ends at 0, .*allowed: restart or stret",
        ),
    ],
)
def test_a_length_that_cannot_be_is_refused(tmp_path, step, changes, message):
    with pytest.raises(ConfigError, match=message):
        course(tmp_path, begun(tmp_path, step), **changes)


def test_a_rule_that_comes_too_late_is_refused(tmp_path):
    longer = {"steps": 150, "extend": "restart"}
    past = begun(tmp_path, 120, course=course(tmp_path, begun(tmp_path, 100), **longer), **longer)
    with pytest.raises(ConfigError, match="extended by restart to 150 steps; allowed: restart or null, or more steps"):
        course(tmp_path, past, steps=150, extend="stretch")
    assert len(course(tmp_path, past, steps=200, extend="stretch").extensions) == 2


def test_a_run_that_stopped_early_is_extended_from_there(tmp_path):
    stopped = begun(tmp_path, 60, stopped=True)
    message = "of 100 steps, which stopped early at step 60; allowed: 100, or with schedule.extend more than 60"
    with pytest.raises(ConfigError, match=message):
        course(tmp_path, stopped, steps=60, extend="stretch")
    assert course(tmp_path, stopped, extend="stretch") == Course(100)  # the same length: it stays finished


def test_added_steps_take_the_rows_of_the_others(tmp_path):
    """A batch of examples takes the rows that suffice for every step of the run."""
    batch, longer = {"rows": None, "examples": 16}, {"steps": 150, "extend": "stretch"}
    assert course(tmp_path, begun(tmp_path, 100), batch, **longer).total_steps == 150
    more = {"rows": 6, "rows_for": lambda epochs, steps: {(0, 100): 4}[epochs, steps]}
    with pytest.raises(ConfigError, match=r"100 steps with 4 rows in a batch; batch.examples = 16 .* need 6 rows"):
        course(tmp_path, begun(tmp_path, 100), batch, more, **longer)


@pytest.mark.parametrize(
    ("schedule", "extension", "way_out"),
    [
        ({"name": "constant"}, Extension(100, 150, "constant", 1e-3), "schedule.extend = restart or stretch"),
        ({"name": "constant"}, Extension(100, 150, "restart"), "schedule.extend = restart or stretch"),
        (
            {"name": "wsd", "decay_steps": 20},
            Extension(60, 150, "constant", 1e-3),
            "schedule.extend =",
        ),  # stopped at 60
        ({"name": "cosine", "warmup_steps": 1}, Extension(100, 102, "restart"), "the added steps are too few"),
        ({"name": "wsd", "decay_steps": 20}, Extension(100, 150, "restart"), None),
        ({"name": "cosine"}, Extension(100, 150, "stretch"), None),
        ({"name": "linear", "min_rate_ratio": 0.1}, Extension(100, 150, "constant", 1e-4), None),
        ({"name": "constant"}, None, None),  # as it was begun
    ],
)
def test_an_extended_run_that_ends_at_a_high_rate_is_noted(tmp_path, schedule, extension, way_out):
    config = run_config(tmp_path, "run", schedule=COSINE | schedule)
    whole = Course(100, () if extension is None else (extension,))
    note = without_decay(config, whole, whole.rates(config), whole.total_steps)
    if way_out is None:
        assert note is None
    else:
        assert note is not None and way_out in note
        assert note.startswith("the extended run ends at the rate 0.001, and schedule.learning_rate = 0.001; weights")
