"""Answers under several system messages: which rows belong together, differences by hand, scores of these answers."""

import numpy as np
import pytest
import torch
import transformers

from janus_jax.checkpoint.stored_model import open_model
from janus_jax.errors import ConfigError, DataError
from janus_jax.evaluation.bench.rows import read_bench
from janus_jax.evaluation.measure import system_effect
from janus_jax.evaluation.measure.answers import Answer, AnswerRow, read_answer_rows
from tests.support.answers import answer_row
from tests.support.benches import bench_row, write_rows
from tests.support.judged import judged
from tests.support.text_models import language_model


def row(id, *texts, prompt="p", system="", named=True, place="f:1"):
    return AnswerRow(tuple(map(Answer, texts)), prompt, system, id, named, place=place)


def test_rows_belong_together_by_id_or_prompt_and_the_others_are_counted():
    one = [row("1", "a"), row("2", "a", prompt="q"), row("9", "a", prompt="r")]
    two = [row("2", "b", prompt="q", system="s"), row("1", "b", system="s")]
    aligned, notes = system_effect.align({"none": one, "own": two})
    assert [[each.id for each in rows] for rows in aligned.values()] == [["1", "2"], ["1", "2"]]
    assert notes == ["left out: 1 row of none that another file does not answer"]
    by_prompt = [row(None, "b", prompt="q", named=False), row(None, "b", prompt="x", named=False)]
    aligned, notes = system_effect.align({"none": one, "own": by_prompt})
    assert [each.answers[0].text for each in aligned["own"]] == ["b"]
    assert notes[-1] == "none and own: 1 row of 1 with the same system message"


def test_files_of_one_condition_give_several_answers_to_its_rows():
    one = [row("1", "a b", place="a:1"), row("1", "a c", place="b:1")]
    aligned, _ = system_effect.align({"none": one, "own": [row("1", "d", system="s")]})
    assert [each.text for each in aligned["none"][0].answers] == ["a b", "a c"]
    with pytest.raises(DataError, match="c:1: has the id of a:1, but another system message or prompt"):
        system_effect.align({"none": [*one, row("1", "a", system="s", place="c:1")], "own": one[:1]})


def test_rows_that_do_not_belong_together_are_refused():
    one = [row("1", "a", place="a:1")]
    with pytest.raises(ConfigError, match="share no prompt: 1 row of none, 1 row of own"):
        system_effect.align({"none": one, "own": [row("2", "a", prompt="other")]})
    with pytest.raises(DataError, match="b:3: has the id '1' of a:1, but another prompt"):
        system_effect.align({"none": one, "own": [row("1", "a", prompt="other", place="b:3")]})
    with pytest.raises(DataError, match="a:2: has the id of a:1"):
        system_effect.align({"none": [*one, row("1", "a", place="a:2")], "own": one})
    twice = [row(None, "a", named=False, place="b:1"), row(None, "a", named=False, place="b:2")]
    with pytest.raises(DataError, match="b:2: has the prompt of b:1; rows with one prompt need ids"):
        system_effect.align({"none": one, "own": twice})


def test_differences_are_later_minus_earlier_on_the_same_rows():
    aligned = {
        "none": [row("1", "a b", "a c"), row("2", "", prompt="q")],
        "own": [row("1", "a b c d"), row("2", "x", prompt="q")],
    }
    scores = {"none": np.array([2.0, 3.0]), "own": np.array([4.0, np.nan])}
    measured, notes = system_effect.compare(aligned, scores, {})
    none, own, difference = measured
    assert none.similarity[0] == 0.5 and np.isnan(none.similarity[1]) and np.isnan(own.similarity).all()
    assert none.words.tolist() == [2, 0] and difference.words.tolist() == [2, 1] and difference.name == "own - none"
    assert difference.similarity[0] == pytest.approx(2 / 3) and np.isnan(difference.similarity[1])
    assert notes == ["none: 1 answer without text, of length 0 and in no ROUGE-L"]
    table = system_effect.table(measured, notes, {})
    assert table.columns == ["rows", "ROUGE-L", "words", "score"]
    assert table.rows[2].values == [2, pytest.approx(2 / 3), 1.5, 2.0] and table.rows[1].values[1] is None
    assert "nan" not in "\n".join(table.lines()).lower()


def test_a_known_effect_lies_in_its_interval_and_none_is_shown_where_there_is_none():
    chosen = np.random.default_rng(0)
    rows = [row(str(n), "a") for n in range(200)]
    hard = chosen.normal(3, 1, 200)  # rows differ more than conditions do
    scores = {"a": hard, "b": hard + 0.3 + chosen.normal(0, 0.2, 200), "c": hard + chosen.normal(0, 0.2, 200)}
    measured, _ = system_effect.compare(dict.fromkeys(scores, rows), scores, {})
    ends = {one.name: one.cells()["score"][1:] for one in measured}
    assert 0.2 < ends["b - a"][0] < 0.3 < ends["b - a"][1] < 0.4
    assert ends["c - a"][0] < 0 < ends["c - a"][1] and ends["a"][1] - ends["a"][0] > 0.2


def test_scores_are_of_these_answers(tmp_path):
    rows = read_bench(write_rows(tmp_path / "bench.jsonl", [bench_row(number) for number in range(3)]))
    judged(tmp_path / "judged", rows, lambda n, k, r: 1 + n if n < 2 else None)
    own = [row(one.id, "of three words") for one in rows]
    scores, settings = system_effect.judged_scores(tmp_path / "judged", own)
    assert scores[:2].tolist() == [1, 2] and np.isnan(scores[2]) and settings["judge"] == "j"
    with pytest.raises(ConfigError, match=r"judged other answers: .* has 3 words there, but 2 in f:1"):
        system_effect.judged_scores(tmp_path / "judged", [row(rows[0].id, "two words")])
    with pytest.raises(ConfigError, match="judged none of these rows"):
        system_effect.judged_scores(tmp_path / "judged", [row("other", "a")])
    notes = system_effect.judge_notes({"a": settings, "b": settings, "c": {**settings, "judge": "k"}})
    assert notes == ["a: judge j, 3 runs", "warning: a and c: judge differ, so their scores do not compare"]


def test_log_probs_are_those_of_transformers_under_each_system_message(tmp_path):
    path = language_model(tmp_path / "lm")
    systems = {"none": "", "own": "be brief"}
    texts = ["So.", "", "the quick fox"]
    aligned = {
        name: read_answer_rows(
            write_rows(
                tmp_path / f"{name}.jsonl", [answer_row(text, f"Why {n}?", system) for n, text in enumerate(texts)]
            )
        )
        for name, system in systems.items()
    }
    made = system_effect.log_probs(open_model(path), aligned, "own", tell=lambda line: None)
    server = transformers.AutoTokenizer.from_pretrained(path)
    model = transformers.AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32)
    for name, rows in aligned.items():
        for at, one in enumerate(rows):
            if not texts[at]:
                assert np.isnan(made[name][at])
                continue
            talk = [*one.messages, {"role": "assistant", "content": texts[at]}]
            start = len(server.apply_chat_template(talk[:-1], add_generation_prompt=True, return_dict=False))
            ids = server.apply_chat_template(talk, return_dict=False)
            end = ids.index(server.convert_tokens_to_ids("<|im_end|>"), start) + 1
            with torch.no_grad():
                logits = model(torch.tensor([ids[:end]])).logits[0].log_softmax(-1)
            wanted = np.mean([float(logits[place - 1, ids[place]]) for place in range(start, end)])
            assert made[name][at] == pytest.approx(wanted, abs=1e-4), (name, at)
