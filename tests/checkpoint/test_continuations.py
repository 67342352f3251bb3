"""When continuations by two programs count as the same: the rule behind the slow proofs with a real model."""

import dataclasses

from tests.support.continuations import ENOUGH, NEW_TOKENS, PROMPTS_ENOUGH, TIE, Continuation, proven

TOKENS = list(range(NEW_TOKENS))
CLEAR = Continuation("text", [1], TOKENS, [0.0] * NEW_TOKENS, [1.0] * NEW_TOKENS, ended=False)


def tied_at(step: int) -> Continuation:
    """The same text with a near tie at one step."""
    return dataclasses.replace(CLEAR, gaps=[TIE / 2 if at == step else 1.0 for at in range(NEW_TOKENS)])


def test_tokens_must_agree_up_to_the_first_tie_and_no_further():
    for step in range(NEW_TOKENS):
        other = [*TOKENS[:step], 99, *TOKENS[step + 1 :]]
        assert not CLEAR.agrees(other)
        assert [tied_at(tie).agrees(other) for tie in range(NEW_TOKENS)] == [tie <= step for tie in range(NEW_TOKENS)]
    assert CLEAR.agrees(TOKENS) and not CLEAR.agrees(TOKENS[:-1])


def test_only_long_or_finished_continuations_prove_something():
    assert CLEAR.enough and tied_at(ENOUGH).enough and not tied_at(ENOUGH - 1).enough
    short = Continuation("text", [1], [5, 2], [0.0] * 2, [1.0] * 2, ended=True)
    assert short.enough and not dataclasses.replace(short, ended=False).enough
    assert not dataclasses.replace(short, gaps=[1.0, TIE / 2]).enough


def test_a_proof_wants_eight_prompts_and_no_difference():
    for vague in range(4):
        expected = [CLEAR] * (10 - vague) + [tied_at(0)] * vague
        assert proven(expected, [TOKENS] * 10) == (10 - vague >= PROMPTS_ENOUGH)
    assert not proven([CLEAR] * 10, [TOKENS] * 9 + [[99, *TOKENS[1:]]])
    assert proven([CLEAR] * 9 + [tied_at(0)], [TOKENS] * 9 + [[99]])


def test_log_probs_are_compared_up_to_the_first_tie():
    logps = [0.0, -0.25, 0.5] + [0.0] * (NEW_TOKENS - 3)
    assert [tied_at(step).difference(logps) for step in range(4)] == [0.0, 0.0, 0.25, 0.5]
    assert CLEAR.difference([0.0] * NEW_TOKENS) == 0.0
