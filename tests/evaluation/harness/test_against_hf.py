"""The same answers as `lm_eval --model hf` on the export: log-likelihoods, rolling windows, texts."""

import pytest

pytest.importorskip("lm_eval", reason="extra eval")
pytest.importorskip("accelerate", reason="lm_eval's model hf needs it")

import jax

from janus_jax.checkpoint.stored_model import open_model
from janus_jax.evaluation.harness.lm import JanusLM
from janus_jax.evaluation.harness.texts import Texts
from janus_jax.evaluation.harness.together import Together
from janus_jax.generation.engine import Engine
from tests.support import harness

LONG = "the quick brown fox don't naïve 世界 " * 20
PAIRS = [
    ("", "The bread rises."),  # CrowS-Pairs has no context
    ("", "<s>The bread rises."),
    ("the quick brown", " fox"),
    ("the quick brown ", "fox"),
    ("the quick brown", "fox"),
    ("don't 안녕 \n", "naïve 世界"),
    ("<s>the quick", " brown fox"),
    ("a </s> b <|im_start|>c", " d <|im_end|>"),
    (LONG, " fox"),
    (LONG, LONG[:100]),
]
TEXTS = ["The bread rises.", LONG, LONG[:300], "<s>x", "é"]
PROMPTS = [
    ("the quick brown", {"until": ["\n\n"], "max_gen_toks": 12}),
    ("don't 안녕", {"until": ["e", " f"], "max_gen_toks": 30, "do_sample": False, "temperature": 0.7}),
    ("<s>x", {"until": "a", "max_new_tokens": 9}),
    (LONG, {"until": [], "max_gen_toks": 20, "temperature": 0.0}),
]


@pytest.fixture(scope="module", params=[True, False], ids=["bos", "no_bos"])
def both(request, tmp_path_factory):
    """Ours, and theirs."""
    from lm_eval.models.huggingface import HFLM

    path = harness.model(tmp_path_factory.mktemp("model") / "lm", bos=request.param, longest=128)
    theirs = HFLM(
        pretrained=str(path), dtype="float32", device="cpu", batch_size=1, logits_cache=False
    )  # the cache mixes up places
    model = open_model(str(path))
    texts = Texts(model, chat=True)
    options = {"steps_per_call": 4, "stop_ids": (texts.own.eos_id,), "tokenizer": texts.own}
    engine = Engine.stored(model, rows=8, devices=jax.devices()[:1], **options)

    def ours(*instances):
        lm = JanusLM(texts, model.config.max_position_embeddings)
        lm.prepare(instances)
        lm.begin(Together(engine, 128), None, lambda _: None)
        return lm

    return ours, theirs


def made(kind, arguments):
    return [harness.instance(kind, *own, number=number) for number, own in enumerate(arguments)]


def test_log_likelihoods_are_those_of_hf(both):
    ours, theirs = both
    instances = made("loglikelihood", PAIRS)
    lm = ours(*instances)
    scores, expected = lm.loglikelihood(instances), theirs.loglikelihood(instances)
    assert [one for one, _ in scores] == pytest.approx([one for one, _ in expected], abs=1e-3)
    assert [greedy for _, greedy in scores] == [greedy for _, greedy in expected]
    assert [count for note, count in lm.notes.items() if "contexts are cut" in note] == [2]


def test_a_greedy_continuation_is_greedy(both):
    ours, theirs = both
    (prompt,) = made("generate_until", [("the quick brown", {"max_gen_toks": 4})])
    (text,) = ours(prompt).generate_until([prompt])
    pairs = made("loglikelihood", [("the quick brown", text)])
    assert ours(*pairs).loglikelihood(pairs)[0][1] == theirs.loglikelihood(pairs)[0][1]


def test_rolling_log_likelihoods_are_those_of_hf(both):
    ours, theirs = both
    instances = made("loglikelihood_rolling", [(text,) for text in TEXTS])
    scores = ours(*instances).loglikelihood_rolling(instances)
    assert scores == pytest.approx(theirs.loglikelihood_rolling(instances), abs=3e-3)


def test_texts_are_those_of_hf(both):
    ours, theirs = both
    instances = made("generate_until", PROMPTS)
    lm = ours(*instances)
    assert lm.generate_until(instances) == theirs.generate_until(instances)
    assert [count for note, count in lm.notes.items() if "prompts are cut" in note] == [1]


def test_conversations_are_those_of_hf(both):
    ours, theirs = both
    turns = [
        {"role": "system", "content": "be brief"},
        {"role": "user", "content": "the quick"},
        {"role": "assistant", "content": "brown fox"},
        {"role": "user", "content": "don't 안녕"},
    ]
    lm = ours()
    histories = [(turns, True), (turns[:2], True), (turns[:3], False)]
    contexts = [lm.apply_chat_template(history, add_generation_prompt=ends) for history, ends in histories]
    assert contexts == [theirs.apply_chat_template(history, add_generation_prompt=ends) for history, ends in histories]
    pairs = made("loglikelihood", [(context, " naïve fox") for context in contexts])
    prompts = made("generate_until", [(context, {"max_gen_toks": 8}) for context in contexts])
    lm.prepare([*pairs, *prompts])
    expected = theirs.loglikelihood(pairs)
    assert [one for one, _ in lm.loglikelihood(pairs)] == pytest.approx([one for one, _ in expected], abs=1e-3)
    assert lm.generate_until(prompts) == theirs.generate_until(prompts)
