"""`janus bench judge` against a scripted judge: nothing lost, nothing paid twice, no failure that is a score."""

import json
from collections import Counter

import pytest

from janus_jax.storage import pace
from tests.support.benches import answers_to, asked_about, bench_row, write_rows
from tests.support.endpoint_server import refused, said, serving

pytest.importorskip("openai")

ROWS = [bench_row(number) for number in range(4)]
VERDICTS = len(ROWS) * 2 * 3


@pytest.fixture(autouse=True)
def environment(monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", "sk-secret")
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.setattr(pace, "pause_after", lambda failures, after: 0.001)


@pytest.fixture
def files(tmp_path):
    bench = write_rows(tmp_path / "bench.jsonl", ROWS)
    return bench, write_rows(tmp_path / "answers.jsonl", answers_to(ROWS))


@pytest.fixture
def judge(janus, files, tmp_path):
    """Runs the command; (code, stdout, stderr without the temporary directory)."""

    def run(server, *options, bench=files[0], answers=files[1]):
        url = server if isinstance(server, str) else server.url
        arguments = ("bench", "judge", bench, "--answers", answers, "--judge", "j", "--base-url", url)
        code, out, err = janus(*arguments, "--out", tmp_path / "judged", *options)
        return code, out.replace(f"{tmp_path}/", ""), err.replace(f"{tmp_path}/", "")

    return run


def lines(tmp_path):
    return [json.loads(line) for line in (tmp_path / "judged/judgements.jsonl").read_text().splitlines()]


def by_rubric(body, count):
    row, rubric = asked_about(body)
    return said(f"Fine. [RESULT] {1 + (row + rubric) % 5}")


def test_each_rubric_is_asked_about_in_each_run(judge, files, tmp_path):
    with serving(by_rubric) as server:
        code, out, err = judge(server)
        assert (code, out) == (0, f"{VERDICTS} verdicts in judged; 240 tokens spent in all\n"), err
        output = lines(tmp_path)
        assert [(line["rubric"], line["run"]) for line in output[:6]] == [(k, r) for k in range(2) for r in range(3)]
        assert [line["score"] for line in output[::3]] == [1, 2, 2, 3, 3, 4, 4, 5]
        assert all(line["reason"] == "" and line["feedback"].startswith("Fine.") for line in output)
        assert {body["seed"] for body in server.bodies} == {0, 1, 2}
        body = server.bodies[0]
        assert {name: body[name] for name in ("model", "temperature", "top_p", "max_tokens")} == {
            "model": "j",
            "temperature": 1.0,
            "top_p": 0.9,
            "max_tokens": 1024,
        }
        task = body["messages"][-1]["content"]
        row, rubric = asked_about(body)
        for part in (
            f"Question {row}?",
            f"Answer {row}.",
            f"Reference {row}.",
            f'"score5_description": "kind {rubric}',
        ):
            assert part in task
        assert "You are helper" not in task
        assert judge(server)[0] == 0 and len(server.bodies) == VERDICTS and lines(tmp_path) == output
    assert b"sk-secret" not in b"".join(file.read_bytes() for file in (tmp_path / "judged").iterdir())


def test_other_settings_are_refused_by_name(judge, files, tmp_path):
    with serving(by_rubric) as server:
        assert judge(server)[0] == 0
        kept = {file.name: file.read_bytes() for file in (tmp_path / "judged").iterdir()}
        other = write_rows(tmp_path / "other.jsonl", answers_to(ROWS, "Other {number}."))
        prompts = tmp_path / "prompts"
        prompts.mkdir()
        (prompts / "absolute_system.txt").write_text("Judge.")
        (prompts / "absolute.txt").write_text("{instruction} {response} {rubric}")
        for options, says in (
            (("--temperature", 0.5), "temperature is 1.0 there, but 0.5 now"),
            (("--show-system",), "show_system is false there, but true now"),
            (("--runs", 1), "runs is 3 there, but 1 now"),
            (("--judge", "k"), 'judge is "j" there, but "k" now'),
            (("--prompts", prompts), "prompts is "),
            (("--no-seed",), "seed is 0 there, but null now"),
        ):
            code, _, err = judge(server, *options)
            assert code == 2 and f"error: --out judged/settings.json: {says}" in err, err
        for option, without in (("--temperature", "--no-temperature"), ("--top-p", "--no-top-p")):
            code, _, err = judge(server, option, 0.5, without)
            assert code == 2 and f"error: {option}: not allowed with {without}" in err, err
        code, _, err = judge(server, answers=other)
        assert code == 2 and "error: --out judged/rows.jsonl:1: has another answer to the row '" in err, err
        changed = write_rows(tmp_path / "changed.jsonl", [ROWS[0], {**ROWS[1], "source": "else"}, *ROWS[2:]])
        code, _, err = judge(server, bench=changed)
        assert code == 2 and "error: --out judged/rows.jsonl:2: has another row than '" in err, err
        assert len(server.bodies) == VERDICTS
        assert {file.name: file.read_bytes() for file in (tmp_path / "judged").iterdir()} == kept


def test_the_first_rows_grow_into_all_rows(judge, janus, tmp_path):
    with serving(lambda body, count: said("[RESULT] 4", prompt=300)) as server:
        assert judge(server, "--limit", 1)[0] == 0 and len(server.bodies) == 6
        code, out, _ = janus("bench", "table", tmp_path / "judged")
        assert code == 0 and "warning: judged: 1 of the bench's 4 rows are judged" in out
        first = lines(tmp_path)
        code, _, err = judge(server, "--limit", 3, "--token-budget", 6000, "--concurrent", 1)
        assert code == 2 and "budget" in err and 6 < len(server.bodies) < 18
        assert lines(tmp_path)[:6] == first and len(lines(tmp_path)) == 18
        out = janus("bench", "table", tmp_path / "judged")[1]
        assert "verdicts on these rows are not asked for yet" in out or "of the bench's 4 rows" in out
        assert judge(server)[0] == 0 and len(server.bodies) == VERDICTS
        whole = lines(tmp_path)
        assert len(whole) == VERDICTS and all(line["score"] for line in whole) and whole[:6] == first
        assert judge(server, "--limit", 2)[0] == 0 and lines(tmp_path) == whole and len(server.bodies) == VERDICTS
        assert "rows are judged" not in janus("bench", "table", tmp_path / "judged")[1]


def test_an_option_that_the_endpoint_refuses_is_named_and_can_be_left_out(judge, tmp_path):
    def strict(body, count):
        for name in ("seed", "max_tokens", "top_p"):
            if name in body:
                return refused(400, f"Unsupported parameter: {name!r} is not supported with this model.")
        return by_rubric(body, count) if count else said("no mark")

    with serving(strict) as server:
        given = []
        for name, *option in (
            ("seed", "--no-seed"),
            ("max_tokens", "--max-completion-tokens", 90),
            ("top_p", "--no-top-p"),
        ):
            code, _, err = judge(server, *given)
            assert code == 2 and f"refuses the option '{name}' (status 400" in err, err
            assert f"; {option[0]} is for such an endpoint" in err
            given += option
        before = len(server.bodies)
        assert judge(server, *given)[0] == 0
        assert all(line["score"] for line in lines(tmp_path))
        own = server.bodies[before:]
        assert len(own) == VERDICTS + len(ROWS) * 2  # the first reply to each question has no mark
        assert all(body["max_completion_tokens"] == 90 and "seed" not in body for body in own)
        asked = len(server.bodies)
        assert judge(server, *given)[0] == 0 and len(server.bodies) == asked


@pytest.mark.parametrize(
    ("refusal", "message"),
    [
        (
            refused(401, "bad key"),
            "--key-variable: URL: does not accept the key in $OPENAI_API_KEY (status 401: bad key)",
        ),
        (refused(400, "gone", "model_not_found"), "--judge, --base-url: URL: does not have the "),
        (refused(402, "pay first"), "--base-url: URL: refuses requests (status 402: pay first)"),
    ],
)
def test_what_the_endpoint_refuses_is_named_by_its_option(judge, janus, files, tmp_path, refusal, message):
    with serving(lambda body, count: refusal) as server:
        code, _, err = judge(server)
        assert code == 2 and f"error: {message.replace('URL', server.url)}" in err, err
        run = ("bench", "run", files[0], "j", "--out", tmp_path / "new.jsonl", "--base-url", server.url)
        code, _, err = janus(*run)
        option = message.partition(": ")[0].replace("--judge", "MODEL")
        assert code == 2 and f"error: {option}: {server.url}: " in err, err


def test_a_conversation_that_alone_is_refused_is_a_counted_failure(judge, tmp_path):
    def narrow(body, count):
        long = asked_about(body)[0] == 2
        return refused(400, "the request exceeds the available context size") if long else by_rubric(body, count)

    with serving(narrow) as server:
        code, _, err = judge(server)
        assert code == 0 and "warning: 6 of 24 verdicts failed" in err and "6: status 400" in err, err
        assert len(server.bodies) == VERDICTS
    with serving(lambda body, count: refused(400, "no such thing")) as server:
        code, _, err = judge(server, "--out", tmp_path / "none")
        assert code == 2 and "refuses conversation" in err and "no such thing" in err, err


def test_own_prompts_and_the_system_message(judge, tmp_path):
    prompts = tmp_path / "prompts"
    prompts.mkdir()
    (prompts / "absolute_system.txt").write_text("")
    (prompts / "absolute.txt").write_text('{instruction}|{response}|{"a": {rubric}}')
    with serving(by_rubric) as server:
        assert judge(server, "--prompts", prompts, "--show-system", "--runs", 1)[0] == 0
        for body in server.bodies:
            row, _ = asked_about(body)
            (message,) = body["messages"]
            start = f'You are helper {row}.\nQuestion {row}?|Answer {row}.|{{"a": {{\n    "criteria"'
            assert message["content"].startswith(start)
    (prompts / "absolute.txt").write_text("{response}")
    code, _, err = judge("http://127.0.0.1:9", "--prompts", prompts)
    assert code == 2 and "prompts/absolute.txt has no {rubric}" in err


def test_what_cannot_be_read_is_asked_again_and_then_a_counted_failure(judge, tmp_path):
    def stubborn(body, count):
        about = asked_about(body)
        if about == (1, 0):
            return said("Better than 3, but not a [RESULT] 4.5")
        if about == (2, 1) and body["seed"] < 6:
            return said("[RESULT] 3 or 4")
        return by_rubric(body, count) if about != (3, 1) else said(None, "content_filter", refusal="I will not.")

    with serving(stubborn) as server:
        code, _, err = judge(server, "--asks", 3)
        assert code == 0 and "warning: 6 of 24 verdicts failed" in err, err
        assert "3: no verdict in 3 replies" in err and "3: refused: I will not." in err
        asked = Counter(asked_about(body) for body in server.bodies)
        assert asked == Counter({(n, k): 3 for n in range(4) for k in range(2)}) + Counter({(1, 0): 6, (2, 1): 6})
        seeds = [body["seed"] for body in server.bodies if asked_about(body) == (1, 0)]
        assert sorted(seeds) == list(range(9))
        failed = [line for line in lines(tmp_path) if line["score"] is None]
        assert {(line["rubric"], line["asked"]) for line in failed} == {(0, 3), (1, 0)} and len(failed) == 6
        before = len(server.bodies)
        assert judge(server, "--asks", 1)[0] == 0  # only failures are tried again, with new draws
        more = server.bodies[before:]
        assert Counter(map(asked_about, more)) == {(1, 0): 3, (3, 1): 3}
        assert sorted(body["seed"] for body in more if asked_about(body) == (1, 0)) == [9, 10, 11]


def test_a_budget_stops_before_it_and_a_larger_one_goes_on(judge, tmp_path):
    def large(body, count):
        return said("[RESULT] 4", prompt=300)

    with serving(large) as server:
        code, out, err = judge(server, "--dry-run", "--prices", "1,2", "--no-key")
        assert code == 0 and out.startswith("24 requests (0 more are in the journal)") and "of money" in out, err
        assert not (tmp_path / "judged").exists() and server.bodies == []
        code, _, err = judge(server, "--token-budget", 8000, "--concurrent", 2)
        assert code == 2 and "the budget may not suffice" in err
        asked = len(server.bodies)
        output = lines(tmp_path)
        assert 0 < asked < VERDICTS == len(output)
        assert Counter(line["reason"] for line in output) == {"": asked, "not asked yet": VERDICTS - asked}
        assert judge(server)[0] == 0 and len(server.bodies) == VERDICTS
        assert all(line["score"] for line in lines(tmp_path))


def test_trouble_on_the_way_is_waited_out(judge, tmp_path):
    trouble = [refused(429, Retry_After="0"), refused(500), said(None)]
    trouble[2].body = "no json"

    def script(body, count):
        return trouble[count] if count < 3 and asked_about(body) == (0, 0) else by_rubric(body, count)

    with serving(script) as server:
        assert judge(server)[0] == 0
        assert all(line["score"] for line in lines(tmp_path))


def test_bad_input_is_named_before_anything_is_asked(judge, files, tmp_path, monkeypatch):
    answers = answers_to(ROWS)
    empty = [answers[0], {**answers[1], "answers": [{"text": " ", "finish_reason": "stop"}]}, *answers[2:]]
    other = [{"messages": [{"role": "user", "content": "Else?"}], "answers": [{"text": "x"}]}]
    no_rubric = [ROWS[0], bench_row(1, rubrics=None)]
    with serving(by_rubric) as server:
        for rows, option, says in (
            (empty, "answers", "bad.jsonl:2: column 'answers', item 1 is empty (' '); text is needed; --judge-empty"),
            (other, "answers", "bad.jsonl:1: answers str 'Else?', which no row of the bench asks"),
            (answers[:2], "answers", "bad.jsonl: 2 of 4 rows have no answer"),
            (no_rubric, "bench", "bad.jsonl:2: has no rubrics"),
        ):
            code, _, err = judge(server, **{option: write_rows(tmp_path / "bad.jsonl", rows)})
            assert code == 2 and f"error: {says}" in err, err
        monkeypatch.delenv("OPENAI_API_KEY")
        code, _, err = judge(server)
        assert (code, err) == (2, "error: $OPENAI_API_KEY: is not set; put the API key into it\n")
        assert judge(server, "--prices", "1")[0] == 2
        assert server.bodies == [] and not (tmp_path / "judged").exists()
        (tmp_path / "judged").mkdir()
        (tmp_path / "judged/mine.txt").write_text("x")
        code, _, err = judge(server, "--no-key")
        assert code == 2 and "judged: holds other files" in err


def test_an_endpoint_that_goes_down_loses_nothing(judge, tmp_path):
    code, _, err = judge("http://127.0.0.1:9/v1")
    assert code == 2 and "error: --base-url: http://127.0.0.1:9/v1: cannot be reached" in err
    assert "goes on" in err and "Traceback" not in err
    assert {line["reason"] for line in lines(tmp_path)} <= {"not asked yet"}


def test_verdicts_that_an_earlier_run_had_stay(judge, tmp_path):
    def late(body, count):
        about = asked_about(body)
        if about == (0, 0):
            return said(None, "content_filter")
        return said("no mark") if about == (1, 1) and body["seed"] < 3 else by_rubric(body, count)

    with serving(late) as server:
        assert judge(server, "--asks", 2)[0] == 0
    kept = lines(tmp_path)
    assert [line["asked"] for line in kept if line["score"] is None] == [0, 0, 0]
    code, _, err = judge(server, "--asks", 2)  # it is gone, and three verdicts would be asked for again
    assert code == 2 and "cannot be reached" in err
    assert lines(tmp_path) == kept
