"""Curves as lines: axes, gaps, extremes, runs of several objectives."""

import json
import re

import numpy as np
import pytest

from janus_jax.evaluation.report import charts
from janus_jax.training.curves import curves_of
from janus_jax.training.history import Line
from tests.support.reported import records


def curves(lines, label="a", objective="sft"):
    return curves_of([Line("m", n, json.dumps(line)) for n, line in enumerate(lines, 1)], label, objective)


def train(values, name="loss"):
    return [{"kind": "train", "step": step, name: value} for step, value in enumerate(values, 1)]


def points(line):
    return [(float(x), float(y)) for x, y in re.findall(r"[ML](-?[\d.]+) (-?[\d.]+)", line.path)]


def test_points_stand_where_axes_say():
    (chart,), thinned = charts.charts([curves(train([4.0, 2.0, 0.0]))])
    line = chart.lines[0]
    scale = {text: y for y, text in chart.y_ticks}
    assert not thinned and scale["4"] < scale["0"] and chart.x_ticks[0] == (charts.LEFT, "0")
    assert points(line)[0][1] == pytest.approx(scale["4"], abs=0.06)
    assert points(line)[2][1] == pytest.approx(scale["0"], abs=0.06)
    assert points(line)[2][0] == charts.RIGHT


def test_what_is_not_finite_is_a_gap():
    (chart,), _ = charts.charts([curves(train([1.0, None, float("inf"), 3.0, 4.0]))])
    batches = next(line for line in chart.lines if line.kind == "batches")
    assert batches.path.count("M") == 2 and len(points(batches)) == 3


@pytest.mark.parametrize(
    "values",
    [[None] * 4, [1e308, -1e308], [5e-324, 5e-324], [1e16, 1e16 + 2], [0.0], [7.0], [float("nan")], [1e300, 1.0]],
)
def test_any_values_make_a_chart_of_finite_coordinates(values):
    for name in ("loss", "grad_norm", "learning_rate", "rewards/accuracies"):
        for chart in charts.charts([curves(train(values, name))])[0]:
            assert all(np.isfinite([x for x, _ in (*chart.x_ticks, *chart.y_ticks)])) and len(chart.y_ticks) < 12
            assert all(np.isfinite(points(line)).all() for line in chart.lines)


def test_a_wide_gradient_norm_has_a_logarithmic_axis():
    (chart,), _ = charts.charts([curves(train([0.01, 1.0, 100.0], "grad_norm"))])
    assert chart.log and {"0.01", "1", "100"} <= {text for _, text in chart.y_ticks}


def test_of_a_long_line_every_extreme_is_drawn():
    values = np.ones(5000)
    values[[17, 4321]] = 9.0, -9.0
    (chart,), thinned = charts.charts([curves(train(values.tolist()))])
    drawn = points(next(line for line in chart.lines if line.kind == "batches"))
    assert thinned and len(drawn) < 500
    ends = [chart.y(9.0), chart.y(-9.0)]
    assert [min(y for _, y in drawn), max(y for _, y in drawn)] == pytest.approx(ends, abs=0.06)


def test_runs_of_other_objectives_have_panels_of_their_own():
    runs = [curves(records(), "a"), curves(records(pairs=True), "b", "dpo"), curves([], "empty")]
    titles = [chart.title for chart in charts.charts(runs)[0]]
    assert titles[:3] == ["loss, sft", "loss, dpo", "reward margin, dpo"] and "tokens/s" in titles
    shared = next(chart for chart in charts.charts(runs)[0] if chart.title == "tokens/s")
    assert {line.style for line in shared.lines} == {0, 1}
    assert charts.charts([curves([])]) == ([], False)


def test_a_single_point_can_be_seen():
    (chart,), _ = charts.charts([curves(train([3.0]))])
    assert chart.lines[0].path.endswith("h0")


def test_accuracies_whose_counts_are_no_counts_have_no_interval():
    lines = records(pairs=True)
    lines[3]["examples"] = None
    chart = next(c for c in charts.charts([curves([x for x in lines if x["kind"] == "train"])])[0] if c.middle)
    assert not [line for line in chart.lines if line.kind == "band"]


def test_runs_that_share_a_colour_have_other_marks():
    marks = [charts.mark_of(number) for number in range(2 * charts.STYLES)]
    assert len(set(marks[: charts.STYLES])) == charts.STYLES
    assert all(marks[n] != marks[n + charts.STYLES] for n in range(charts.STYLES))
