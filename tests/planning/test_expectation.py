"""A plan beside steps that ran: which of them count, and what is refused."""

import dataclasses
import json

import pytest

from janus_jax.errors import ConfigError
from janus_jax.planning import expectation
from janus_jax.planning.chips.slices import find_slice
from janus_jax.planning.expectation import Measured
from janus_jax.planning.report.text import show
from janus_jax.planning.result import Timing
from janus_jax.storage.local import finite
from tests.support.plans import example_plan


@pytest.fixture
def plan():
    return example_plan()


def timing(path, plan, seconds, **changes):
    """What `janus time-step --json` writes for a step of `plan`, changed."""
    value = finite(Timing(dataclasses.replace(plan, **changes), "TPU v5 lite", 16, 1000, (seconds,), None).to_json())
    path.write_text(json.dumps(value))
    return expectation.read_timing(path)


def test_the_factor_is_what_a_step_took_over_its_bound(plan, tmp_path):
    least = plan.bound.seconds
    one = timing(tmp_path / "one.json", plan, 1.5 * least)
    assert (one.family, one.objective, one.remat) == ("v5e", "sft", "full") and one.factor == pytest.approx(1.5)
    expected = expectation.expect(plan, [one])
    assert expected.expected_seconds == pytest.approx(1.5 * least) and expected.expected.own
    assert expected.to_json()["expected_seconds"] == pytest.approx(1.5 * least)


def test_the_steps_most_like_it_count(plan, tmp_path):
    least, dpo = plan.bound.seconds, {"objective": "dpo"}
    changes = [({}, 2), ({}, 8), ({"remat": "dots"}, 3), (dpo, 7)]
    ran = [timing(tmp_path / f"{i}.json", plan, by * least, **how) for i, (how, by) in enumerate(changes)]
    best = expectation.expect(plan, ran).expected
    assert best.factor == pytest.approx(4) and (best.low, best.high) == (pytest.approx(2), pytest.approx(8))
    assert best.alike == ("objective", "remat") and len(best.sources) == 2
    assert expectation.expect(plan, ran[2:]).expected.factor == pytest.approx(3)
    assert expectation.expect(plan, ran[3:]).expected.alike == ()


def test_what_others_published_is_marked_and_counts_only_without_ones_own(plan, capsys):
    plan = dataclasses.replace(plan, target=find_slice("v6e-8"))
    other = expectation.expect(plan, [Measured("here", "v5e", 9.0, "sft", "full")])
    assert not other.expected.own and other.expected.sources[0].startswith("MaxText, Mistral-7B")
    show(other)
    words = " ".join(capsys.readouterr().out.split())
    assert "the bound times 2.05, as published for MaxText, Mistral-7B" in words and "was not measured" in words
    own = expectation.expect(plan, [Measured("here", "v6e", 1.5, "sft", "full")])
    assert own.expected.own and own.expected.factor == pytest.approx(1.5)


@pytest.mark.parametrize(("family", "mfu"), [("v6e", 0.416), ("h100", 0.492)])
def test_published_figures_give_the_mfu_that_is_known_of_them(family, mfu):
    """Model FLOPs utilisation with causal attention, as others computed it: 41.6 % and 49.2 %."""
    one = expectation.published(family)
    assert one.flops.model / one.flops.total / one.measured.factor == pytest.approx(mfu, abs=0.005)


def test_without_a_step_on_these_chips_nothing_is_expected(plan, capsys):
    assert expectation.expect(plan, []).expected is None
    show(plan)
    assert "expected: nothing: no step on v5e was measured" in " ".join(capsys.readouterr().out.split())


def test_hours_and_cost_are_expected_too(plan, capsys):
    plan = dataclasses.replace(plan, usd_per_hour=10.0, steps_per_epoch=None)
    hours = plan.bound.seconds * 1000 / 3600
    own = expectation.expect(plan, [Measured("here", "v5e", 2.0, "sft", "full")])
    show(own)
    text = f"at the bound, expected {2 * hours:,.2f} hours, {20 * hours:,.2f} USD; 10.00 USD per hour"
    assert text in " ".join(capsys.readouterr().out.split())
    show(dataclasses.replace(own, steps_per_epoch=1000, usd_per_hour=None))
    text = f"1,000 steps, {hours:,.2f} hours at the bound, expected {2 * hours:,.2f} hours; no price"
    assert text in " ".join(capsys.readouterr().out.split())


def test_simulated_devices_expect_nothing(plan):
    simulated = dataclasses.replace(plan, target=find_slice("cpu:8"), bound=None)
    assert expectation.expect(simulated, [Measured("a", "cpu", 2.0)]) is simulated


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "is no JSON"),
        ("[]", "is no JSON object"),
        ('"text"', "is no JSON object"),
        ('{"plan": {}}', "has no 'median_s'"),
        ('{"plan": [1], "median_s": 1}', r"plan = \[1\]: is no object"),
        ('{"plan": {}, "median_s": 1}', "has no 'plan.target'"),
    ],
)
def test_other_files_are_refused_by_name(tmp_path, text, message):
    path = tmp_path / "times.json"
    path.write_text(text)
    with pytest.raises(ConfigError, match=message) as refused:
        expectation.read_timing(path)
    assert str(refused.value).startswith(f"--measured {path}: ") and "janus time-step --json" in str(refused.value)


def test_steps_that_teach_nothing_are_refused(plan, tmp_path):
    with pytest.raises(ConfigError, match="no such file"):
        expectation.read_timing(tmp_path / "none.json")
    with pytest.raises(ConfigError, match="measured on cpu:8, whose steps have no bound"):
        timing(tmp_path / "a.json", plan, 1.0, target=find_slice("cpu:8"), bound=None)
    text = (tmp_path / "a.json").read_text()
    (tmp_path / "a.json").write_text(text.replace('"bound": null', '"bound": {"seconds": 0}'))
    with pytest.raises(ConfigError, match=r"plan\.bound\.seconds = 0: allowed: a finite number > 0"):
        expectation.read_timing(tmp_path / "a.json")
    with pytest.raises(ConfigError, match="was measured on v4, but this plan is for v5e"):
        expectation.require_used([Measured("a.json", "v4", 2.0)], "v5e")


@pytest.mark.parametrize("value", ["fast", "9", None, True, -1, 0, float("nan"), float("inf"), 10**400, [1.0]])
@pytest.mark.parametrize("key", ["median_s", "plan.bound.seconds"])
def test_seconds_that_are_no_positive_number_are_refused_by_key(plan, tmp_path, key, value):
    path = tmp_path / "times.json"
    timing(path, plan, 8.0)
    content = json.loads(path.read_text())
    (content if key == "median_s" else content["plan"]["bound"])[key.rpartition(".")[2]] = value
    path.write_text(json.dumps(content))
    with pytest.raises(ConfigError, match=rf"{key} = .*: allowed: a finite number > 0") as refused:
        expectation.read_timing(path)
    assert str(refused.value).startswith(f"--measured {path}: ") and len(str(refused.value)) < 400


@pytest.mark.parametrize(
    ("median", "least", "message"),
    [(1e300, 1e-320, "too far apart to divide"), (0.9, 1.0, "less than .* no step is faster than its bound")],
)
def test_seconds_that_give_no_factor_are_refused(plan, tmp_path, median, least, message):
    path = tmp_path / "times.json"
    timing(path, plan, 8.0)
    content = json.loads(path.read_text())
    content["median_s"], content["plan"]["bound"]["seconds"] = median, least
    path.write_text(json.dumps(content))
    with pytest.raises(ConfigError, match=message):
        expectation.read_timing(path)


def test_a_file_that_is_given_twice_is_refused(plan, tmp_path):
    one = timing(tmp_path / "one.json", plan, 8.0)
    (tmp_path / "same.json").symlink_to(tmp_path / "one.json")
    expectation.require_used([one, timing(tmp_path / "other.json", plan, 8.0)], "v5e")
    with pytest.raises(ConfigError, match=r"same\.json: is given twice"):
        expectation.require_used([one, expectation.read_timing(tmp_path / "same.json")], "v5e")
