"""Ends of texts, cancelled texts, and requests that cannot be answered."""

import dataclasses
import functools
import itertools
import random

import jax
import jax.numpy as jnp
import pytest

from janus_jax.errors import ConfigError, DataError
from janus_jax.generation import programs
from janus_jax.generation.engine import Engine
from janus_jax.generation.memory import longest_row
from janus_jax.generation.requests import Request
from janus_jax.generation.sampling import SamplingOptions
from janus_jax.generation.stopping import StoppingOptions
from janus_jax.text.tokenizer import load_tokenizer
from tests.support.models import SMALL, random_params
from tests.support.tokenizers import byte_level

CONFIG = dataclasses.replace(SMALL, vocab_size=400)
DRAWN = SamplingOptions(temperature=1.0)


@pytest.fixture(scope="module")
def engine(tmp_path_factory):
    tokenizer = load_tokenizer(byte_level(tmp_path_factory.mktemp("t") / "t"))
    return Engine.live(
        CONFIG, random_params(CONFIG), rows=2, steps_per_call=4, stop_ids=[tokenizer.eos_id], tokenizer=tokenizer
    )


def asked(**stopping):
    return Request([5, 6, 7], sampling=DRAWN, name="p", stopping=StoppingOptions(**{"max_new_tokens": 30} | stopping))


def told(engine, request):
    events = list(engine.generate([request]))
    assert [event.reason for event in events[:-1]] == [None] * (len(events) - 1)
    return [i for event in events for i in event.ids], "".join(event.text for event in events), events[-1].reason


def test_texts_end_before_stop_strings_and_ids(engine):
    ids, text, reason = told(engine, asked())
    assert (len(ids), reason) == (30, "length") and text == engine.detokenizer.decode(ids)
    part = text[len(text) // 2 :][:3]
    some, cut, reason = told(engine, asked(stop=[part, "never"]))
    assert (cut, reason) == (text[: text.find(part)], "stop") and some == ids[: len(some)]
    assert part in engine.detokenizer.decode(some) and part not in engine.detokenizer.decode(some[:-1])

    stop = ids[9]
    first = ids.index(stop)
    assert told(engine, asked(stop_ids=[stop])) == (ids[: first + 1], engine.detokenizer.decode(ids[:first]), "stop")
    later, _, _ = told(engine, asked(stop_ids=[stop], min_new_tokens=first + 1))
    assert later[:first] == ids[:first] and later[first] != stop


def test_a_text_is_no_longer_than_the_model_allows(engine):
    longest = CONFIG.max_position_embeddings
    ids, _, reason = told(engine, Request([3] * (longest - 5), stopping=StoppingOptions(max_new_tokens=100)))
    assert (len(ids), reason) == (5, "length")


def test_cancelled_texts_give_no_events(engine):
    session = engine.session()
    for number in range(3):
        session.submit(number, asked())
    assert {event.request for event in session.step()} == {0, 1}
    session.cancel(0)
    assert {event.request for event in session.step()} == {1, 2}
    session.cancel(1)
    session.cancel(2)
    assert not session.busy and session.step() == []


def test_prompts_of_a_width_are_computed_together(monkeypatch):
    """Short ones are not as wide as long ones, and a prompt is computed once for all of its samples."""
    calls = []

    def prefill(params, tokens, lengths, **static):
        calls.append((tokens.shape, sorted(map(int, lengths))))
        shapes = jax.eval_shape(functools.partial(original, **static), params, tokens, lengths)
        return jax.tree.map(lambda part: jnp.zeros(part.shape, part.dtype), shapes)

    original = programs.prefill
    monkeypatch.setattr(programs, "prefill", prefill)
    config = dataclasses.replace(CONFIG, max_position_embeddings=512)
    engine = Engine.live(config, random_params(config), rows=8, steps_per_call=1)
    lengths = [5, 100, 6, 7, 70, 8, 9]
    requests = [Request([3] * length, stopping=StoppingOptions(2)) for length in lengths]
    list(engine.generate([*requests, Request([3] * 10, samples=20, stopping=StoppingOptions(2))]))
    assert calls == [((4, 64), [4, 5, 6, 7]), ((1, 64), [8]), ((1, 64), [9]), ((1, 96), [69]), ((1, 128), [99])]


BAD = {
    "prompt is empty": (Request([]), "request 1.*empty"),
    "prompt is too long": (Request([1] * CONFIG.max_position_embeddings), "request 1.*64 tokens; allowed: at most 63"),
    "unknown id": (Request([5, 400]), "request 1.*400; allowed: 0 to 399"),
    "unknown stop id": (asked(stop_ids=[400]), "request 1.*400"),
    "too many ids": (Request([1], top=21), "request 1.*top=21: allowed: 0 to 20"),
    "no samples": (Request([1], samples=0), "request 1.*samples=0"),
}


@pytest.mark.parametrize("request_, message", BAD.values(), ids=BAD)
def test_bad_requests_are_named(engine, request_, message):
    with pytest.raises((ConfigError, DataError), match=message):
        list(engine.generate([request_]))


def test_bad_pairs_are_named(engine):
    for pairs, message in (
        ([([1], [2]), ([], [2])], "context 2.*empty"),
        ([([1] * 60, [2] * 6)], "context 1 with its continuation.*66 tokens"),
        ([([1], [-1])], "-1"),
    ):
        with pytest.raises(DataError, match=message):
            engine.log_probs(pairs)


def test_what_needs_a_tokenizer_or_a_language_model_says_so():
    engine = Engine.live(CONFIG, random_params(CONFIG), rows=1)
    with pytest.raises(DataError, match="'end', which needs a tokenizer"):
        list(engine.generate([asked(stop=["end"])]))
    reward = dataclasses.replace(CONFIG, head="value")
    with pytest.raises(ConfigError, match="is a reward model"):
        Engine.live(reward, random_params(reward))


def test_a_cache_has_no_slots_beyond_the_longest_text(engine):
    """The last calls write past the end of their texts; neither those nor the texts that follow them change."""
    longest, session = CONFIG.max_position_embeddings, engine.session(length=CONFIG.max_position_embeddings)
    prompts = [[7 + n, 8, 9] * (n + 1) for n in range(5)]
    made = {number: ([], []) for number in range(5)}
    for number, prompt in enumerate(prompts):
        session.submit(number, Request(prompt, name="p", stopping=StoppingOptions(longest)))
    while session.busy:
        for event in session.step():
            made[event.request][0].extend(event.ids)
            made[event.request][1].extend(event.logps)
        assert session._cache.length == longest
    pairs = [(prompt, made[number][0]) for number, prompt in enumerate(prompts)]
    assert max(len(prompt) + len(ids) for prompt, ids in pairs) == longest
    for number, scores in enumerate(engine.log_probs(pairs)):
        assert list(scores.tokens) == pytest.approx(made[number][1], abs=1e-4)


def test_a_cache_does_not_grow_while_texts_of_known_lengths_come_and_go(monkeypatch):
    monkeypatch.setattr(programs, "grow", None)
    config = dataclasses.replace(CONFIG, max_position_embeddings=512)
    engine = Engine.live(config, random_params(config), rows=2, steps_per_call=4)
    requests = [Request([3] * 10, stopping=StoppingOptions(new)) for new in (50, 30, 50, 50)]
    assert len({event.request for event in engine.generate(requests)}) == 4  # a row takes no more slots as it grows
    some = [Request([3] * length, stopping=StoppingOptions(2)) for length in (2, 100)]
    assert len({event.request for event in engine.generate(some, length=longest_row(config, some, 4))}) == 2
    with pytest.raises(TypeError):
        list(engine.generate([some[0]] * 2 + [some[1]]))


def test_neither_cancels_nor_other_texts_change_a_bit(engine):
    """Random requests, some cancelled, in a session that is used again: each text is what it is alone."""
    rng = random.Random(3)

    def drawn(number):
        ids = [rng.randrange(3, 400) for _ in range(rng.randint(1, 30))]
        stopping = StoppingOptions(rng.randint(1, 25), stop=rng.choice([(), ("a", "b")]))
        sampling = SamplingOptions(rng.choice([0, 0.7, 1.5]), top_k=rng.choice([0, 9]), top_p=rng.choice([1.0, 0.8]))
        return Request(ids, rng.choice([1, 3]), stopping, sampling, seed=number % 3, name=f"p{number % 4}")

    requests = dict(enumerate(map(drawn, range(12))))

    def made(session, numbers, cancelled):
        texts: dict[tuple[int, int], list] = {}
        for number in numbers:
            session.submit(number, requests[number])
        for step in itertools.count():
            for number in cancelled if step == 3 else ():
                session.cancel(number)
            for event in session.step():
                texts.setdefault(event[:2], []).extend([*event.ids, *event.logps, event.text, event.reason])
            if not session.busy:
                return {key: text for key, text in texts.items() if key[0] not in cancelled}

    session = engine.session()
    alone = {key: text for number in requests for key, text in made(session, [number], ()).items()}
    for cancelled in ((0, 1, 5), (2,)):
        among = made(session, requests, cancelled)
        assert among == {key: text for key, text in alone.items() if key[0] not in cancelled}
