"""`janus data synthesize`: its options and what it prints."""

import json

import pytest
from typer.testing import CliRunner

from janus_jax.cli.data import app
from janus_jax.errors import ConfigError
from tests.support.endpoint_server import serving
from tests.support.synthesizing import QUESTIONS, answer, write_config

pytest.importorskip("openai")


def run(*arguments):
    return CliRunner().invoke(app, ["synthesize", *map(str, arguments)], catch_exceptions=True)


def test_a_dry_run_asks_nobody_and_writes_nothing(tmp_path):
    with serving(answer) as server:
        prices = {"prices": {"prompt": 1.0, "completion": 2.0}}
        result = run(write_config(tmp_path, server.url, endpoint=prices), "--limit", 2, "--dry-run")
        assert result.exit_code == 0 and not server.bodies and not (tmp_path / "out").exists()
    dropped, *table = result.stdout.splitlines()
    assert dropped == "instructions: 6 rows of 6 records"
    lines = {line.split()[0]: line.split()[1:] for line in table}
    assert lines["systems"][0] == lines["responses"][0] == "6" and "?" not in result.stdout
    *steps, total = (list(map(lambda one: float(one.replace(",", "")), values)) for values in list(lines.values())[1:])
    assert [sum(column) for column in zip(*steps, strict=True)] == pytest.approx(total, abs=0.03)


def test_a_dry_run_says_what_sources_drop_and_whether_the_budget_suffices(tmp_path):
    prompts = [QUESTIONS[0], QUESTIONS[0].upper(), "Warum geht der Teig von Brot auf, und was tut die Hefe darin?"]
    text = "".join(json.dumps({"prompt": one}) + "\n" for one in prompts)
    (tmp_path / "questions.jsonl").write_text(text)
    config = write_config(
        tmp_path, "http://127.0.0.1:9/v1", hierarchy={"subdimensions": 0}, bench={"instructions": 0},
        endpoint={"prices": {"prompt": 1.0, "completion": 2.0}},
    )  # fmt: skip
    first, *table = run(config, "--dry-run", "--step", "systems").stdout.splitlines()
    assert first == "instructions: 1 row of 3 records; dropped: 1 duplicate, 1 wrong_language"
    prompt, answers, most = (int(one.replace(",", "")) for one in table[1].split()[3:6])
    about = prompt + answers
    figures = f"(spent 0, to come about {about:,}, at most {most:,})"
    for tokens, verdict in ((most, "suffices"), (most - 1, "the run may stop"), (about - 1, "the run will probably")):
        output = run(config, "--dry-run", "--step", "systems", f"budget.tokens={tokens}").stdout
        last = output.splitlines()[-2]
        assert last.startswith(f"budget.tokens = {tokens:,}: {verdict}") and last.endswith(figures)
    *_, last, before = run(config, "--dry-run", "--step", "systems", "budget.money=1000").stdout.splitlines()
    assert last.startswith("budget.money = 1,000.00: suffices")
    assert before == "--step systems needs steps that are to be made before it: instructions, hierarchy, sets"


def test_a_dry_run_of_what_is_made_says_so_and_names_the_report(tmp_path):
    with serving(answer) as server:
        config = write_config(tmp_path, server.url)
        assert run(config).exit_code == 0
        asked = len(server.bodies)
        report = tmp_path / "out/report.html"
        expected = f"all steps are made, and nothing would be asked for; the report: {report}\n"
        assert run(config, "--dry-run").stdout == expected
        assert run(config, "--dry-run", "--step", "systems").stdout.startswith("systems is made, and nothing would")
        *_, last = run(config, "--dry-run", "collection.outliers=9").stdout.splitlines()
        assert last == "nothing would be asked for; still to be made: collection" and len(server.bodies) == asked
        # what the journals answer costs nothing, also if the budget is spent
        (tmp_path / "out/steps/responses/step.json").unlink()
        output = run(config, "--dry-run", "budget.tokens=10").stdout
        assert "responses " in output and "budget" not in output
        assert run(config, "budget.tokens=10").exit_code == 0 and len(server.bodies) == asked


def test_a_dry_run_names_the_limit_up_to_which_all_is_made(tmp_path):
    with serving(answer) as server:
        config = write_config(tmp_path, server.url, bench={"instructions": 0})
        assert run(config, "--limit", 1).exit_code == 0
        made = run(config, "--limit", 1, "--dry-run").stdout
        assert made.startswith("all steps are made for the 1 instruction of --limit, and nothing would be asked for")
        one = run(config, "--limit", 1, "--dry-run", "--step", "sets").stdout
        assert one.startswith("sets is made, and nothing would be asked for")


def test_a_dry_run_of_one_step_names_those_to_be_made_before_it(tmp_path):
    with serving(answer) as server:
        config = write_config(tmp_path, server.url)
        assert run(config, "--step", "instructions").exit_code == run(config, "--step", "hierarchy").exit_code == 0
        *_, last = run(config, "--dry-run", "--step", "collection").stdout.splitlines()
        before = "sets, systems, responses, rubrics"
        assert last == f"--step collection needs steps that are to be made before it: {before}"
        assert "the step systems, which it needs, is not made" in str(run(config, "--step", "collection").exception)
        assert run(config, "--step", "sets").exit_code == 0
        assert "to be made before it" not in run(config, "--dry-run", "--step", "systems").stdout


def test_one_step_is_made_and_paid_for(tmp_path):
    with serving(answer) as server:
        result = run(write_config(tmp_path, server.url), "--step", "hierarchy")
    assert result.exit_code == 0
    assert result.stdout.startswith("made: hierarchy in ") and "2,100 tokens spent in all" in result.stdout
    assert (tmp_path / "out/steps/hierarchy/rows.jsonl").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            ["--answers", "a.jsonl"],
            "--answers: allowed: only with --step, one of hierarchy, systems, responses, rubrics",
        ),
        (["--answers", "a.jsonl", "--step", "systems"], "--answers a.jsonl: no such file"),
        (["--dry-run", "--batch"], "--dry-run: not allowed with --batch or --answers"),
        (["seed=x"], "seed = x: allowed: a whole number"),
    ],
)
def test_options_that_are_not_allowed_are_named(tmp_path, arguments, message):
    result = run(write_config(tmp_path, "http://127.0.0.1:9/v1"), *arguments)
    assert isinstance(result.exception, ConfigError) and message in str(result.exception)
    assert not (tmp_path / "out").exists()
