"""The official tools themselves read our files, in environments of their own, with a scripted judge.

ALPACA_EVAL_PYTHON and FSCHAT_PYTHON name the Pythons of these environments, ARENA_HARD_DIR a checkout of
Arena-Hard-Auto, and ARENA_HARD_PYTHON a Python that runs it; docs/helpfulness.md says how to make them.
"""

import json
import math
import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest

from tests.support.chat_models import chat_model
from tests.support.endpoint_server import said, serving
from tests.support.official import alpaca_question, arena_question, export_scripted, mt_question, write_questions

pytestmark = pytest.mark.slow
GOOD, BAD = "GOOD answer", "BAD answer"
OFFLINE = {
    "HF_HUB_OFFLINE": "1",
    "HF_DATASETS_OFFLINE": "1",
    "OPENAI_API_KEY": "any",
    "TOKENIZERS_PARALLELISM": "false",
}


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return chat_model(tmp_path_factory.mktemp("model"), max_position_embeddings=256)


def environment(name):
    """The Python that a variable names."""
    if name not in os.environ:
        pytest.skip(f"{name} names no Python")
    return os.environ[name]


def run(*command, cwd, env, stdin=""):
    done = subprocess.run(
        [*map(str, command)],
        cwd=cwd,
        env={key: value for key, value in os.environ.items() if key != "PYTHONPATH"} | OFFLINE | env,
        input=stdin,
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]
    return done.stdout


def test_alpaca_eval_counts_the_wins_of_our_file(model, tmp_path):
    """The judge prefers GOOD answers to the reference: 5 of 8, one of the others empty."""
    python = environment("ALPACA_EVAL_PYTHON")
    questions = write_questions(tmp_path / "q.json", [alpaca_question(number) for number in range(8)])
    answers = {f"Instruction {number}?/1": GOOD if number < 5 else BAD if number < 7 else "" for number in range(8)}
    export_scripted("alpaca_eval", model, questions, tmp_path / "out", lambda one: answers[one.name], reference=True)

    def judge(body, _):
        first = re.search(r'"m",\s*"output":\s*"""(.*?)"""', body["messages"][-1]["content"], re.DOTALL)
        second = re.search(r'"M",\s*"output":\s*"""(.*?)"""', body["messages"][-1]["content"], re.DOTALL)
        assert first and second and body["logprobs"] and body["top_logprobs"] == 5, body
        ours_first = "Reference" in second[1]
        token = "m" if (GOOD in (first if ours_first else second)[1]) == ours_first else "M"
        top = [{"token": one, "bytes": None, "logprob": math.log(0.9 if one == token else 0.1)} for one in "mM"]
        reply = said(token)
        reply.body["choices"][0]["logprobs"] = {"content": [{**top["mM".index(token)], "top_logprobs": top}]}
        reply.body |= {"created": 1, "model": body["model"]}
        return reply

    with serving(judge) as server:
        (tmp_path / "client.yaml").write_text(f'default:\n  - api_key: "any"\n    base_url: "{server.url}"\n')
        run(
            *(
                python,
                "-m",
                "alpaca_eval.main",
                "evaluate",
                "--model_outputs",
                tmp_path / "out/mine/model_outputs.json",
            ),
            *("--reference_outputs", tmp_path / "out/reference_outputs.json", "--fn_metric", "get_winrate"),
            *("--sort_by", "win_rate", "--output_path", tmp_path / "results", "--caching_path", "None"),
            cwd=tmp_path,
            env={"OPENAI_CLIENT_CONFIG_PATH": str(tmp_path / "client.yaml")},
        )
        assert len(server.bodies) == 8
    (board,) = (tmp_path / "results").rglob("leaderboard.csv")
    header, line = board.read_text().splitlines()[:2]
    facts = dict(zip(header.split(","), line.split(","), strict=True))
    assert line.startswith("mine,") and facts["n_total"] in ("8", "8.0") and facts["n_wins"] in ("5", "5.0")
    assert float(facts["win_rate"]) == pytest.approx(100 * (5 * 0.9 + 3 * 0.1) / 8)


PROMPTS = [
    {"name": "single-v1", "prompt_template": "Q: {question}\nA: {answer}"},
    {"name": "single-math-v1", "prompt_template": "Q: {question}\nR: {ref_answer_1}\nA: {answer}"},
    {
        "name": "single-v1-multi-turn",
        "prompt_template": "Q: {question_1}\nA1: {answer_1}\nQ: {question_2}\nA: {answer_2}",
    },
    {
        "name": "single-math-v1-multi-turn",
        "prompt_template": "Q: {question_1}\nR: {ref_answer_1}\nA1: {answer_1}\nQ: {question_2}\nR: {ref_answer_2}\n"
        "A: {answer_2}",
    },
]


def test_fschat_scores_both_turns_of_our_file(model, tmp_path):
    """The judge gives 9 to GOOD answers and 2 to others. First turns: 3 of 4 are good, second turns: 1 of 4."""
    python, bench = environment("FSCHAT_PYTHON"), tmp_path / "data" / "mt_bench"
    bench.mkdir(parents=True)
    rows = [mt_question(number, "writing") for number in (81, 82)]
    rows += [mt_question(number, "math", reference=[f"one {number}", f"two {number}"]) for number in (111, 112)]
    questions = write_questions(bench / "question.jsonl", rows)
    good = {"81/1", "82/1", "111/1", "112/2"}
    export_scripted("mt_bench", model, questions, bench, lambda one: GOOD if one.name in good else BAD, reference=True)
    fixed = {"type": "single", "system_prompt": "You judge.", "output_format": "[[rating]]"}
    write_questions(tmp_path / "data" / "judge_prompts.jsonl", [{**one, **fixed} for one in PROMPTS])

    def judge(body, _):
        task = body["messages"][-1]["content"]
        assert ("R: one 11" in task) == ("First 11" in task), task
        return said(f"Because. Rating: [[{9 if task.endswith(GOOD) else 2}]]")

    with serving(judge) as server:
        tool = (python, "-m", "fastchat.llm_judge.gen_judgment", "--model-list", "mine")
        run(*tool, cwd=tmp_path, env={"OPENAI_API_BASE": server.url}, stdin="\n")
        assert len(server.bodies) == 8
    shown = run(python, "-m", "fastchat.llm_judge.show_result", cwd=tmp_path, env={})
    scores = [float(one) for one in re.findall(r"^mine\s+(?:\d\s+)?([\d.]+)$", shown, re.MULTILINE)]
    assert scores == pytest.approx([(3 * 9 + 2) / 4, (9 + 3 * 2) / 4, (4 * 9 + 4 * 2) / 8]), shown


def test_arena_hard_auto_counts_the_wins_of_our_file(model, tmp_path):
    """The judge prefers GOOD answers to the baseline's, in both orders: 6 of 8."""
    if "ARENA_HARD_DIR" not in os.environ:
        pytest.skip("ARENA_HARD_DIR names no checkout of Arena-Hard-Auto")
    python, checkout = environment("ARENA_HARD_PYTHON"), Path(os.environ["ARENA_HARD_DIR"])
    for part in ("utils", "gen_judgment.py", "show_result.py"):
        source = checkout / part
        (shutil.copytree if source.is_dir() else shutil.copy)(source, tmp_path / part)
    bench = tmp_path / "data" / "arena-hard-v0.1"
    bench.mkdir(parents=True)
    rows = [arena_question(number) for number in range(8)]
    questions = write_questions(bench / "question.jsonl", rows)
    good = {f"{number:032x}/1" for number in range(6)}
    export_scripted("arena_hard", model, questions, bench, lambda one: f"# {GOOD}" if one.name in good else f"- {BAD}")
    ours = [json.loads(line) for line in (bench / "model_answer" / "mine.jsonl").read_text().splitlines()]
    other = [{**row, "model": "gpt-4-0314"} for row in ours]
    for number, row in enumerate(other):
        row["messages"] = [row["messages"][0], {"role": "assistant", "content": {"answer": "BASELINE"}}]
        row["metadata"] = {**row["metadata"], "token_len": 5 + number, "bold_count": {"**": number % 3, "__": 0}}
    write_questions(bench / "model_answer" / "gpt-4-0314.jsonl", other)

    def judge(body, _):
        first, second = re.findall(r"<\|(.*?)\|>", body["messages"][-1]["content"], re.DOTALL)
        ours_first = second == "BASELINE"
        wins = GOOD in (first if ours_first else second)
        return said("My verdict: " + ("[[A>B]]" if wins == ours_first else "[[B>A]]"))

    with serving(judge) as server:
        settings = {
            "judge_model": "judge",
            "temperature": 0.0,
            "max_tokens": 100,
            "bench_name": "arena-hard-v0.1",
            "reference": None,
            "regex_patterns": [r"\[\[([AB<>=]+)\]\]"],
            "prompt_template": "{QUESTION} <|{ANSWER_A}|> <|{ANSWER_B}|>",
            "model_list": ["mine"],
        }
        endpoint = {"model": "judge", "api_type": "openai", "parallel": 2, "temperature": 0.0, "max_tokens": 100}
        endpoint["endpoints"] = [{"api_base": server.url, "api_key": "any"}]
        (tmp_path / "settings.yaml").write_text(json.dumps(settings))  # YAML holds JSON
        (tmp_path / "endpoints.yaml").write_text(json.dumps({"judge": endpoint}))
        files = ("--setting-file", "settings.yaml", "--endpoint-file", "endpoints.yaml")
        run(python, "gen_judgment.py", *files, cwd=tmp_path, env={})
        assert len(server.bodies) == 16
    show = (python, "show_result.py", "--benchmark", "arena-hard-v0.1", "--judge-names", "judge")
    shown = run(*show, "--category", "arena-hard-v0.1", cwd=tmp_path, env={})
    score = re.search(r"mine\s+([\d.]+)\s", shown)
    assert score is not None and abs(float(score[1]) - 75) < 8, shown  # a mean of bootstrap samples
    run(*show, "--category", "arena-hard-v0.1", "--control-features", "markdown", "length", cwd=tmp_path, env={})
