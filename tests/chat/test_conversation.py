"""What a chat remembers, and what its answers depend on."""

import dataclasses

import pytest

from janus_jax.chat.conversation import Chat
from janus_jax.errors import DataError
from janus_jax.generation.prompts import conversation
from janus_jax.generation.requests import Request
from janus_jax.generation.sampling import SamplingOptions
from janus_jax.generation.stopping import StoppingOptions


def answers(chat, question=None):
    """Of all sides, from the pieces."""
    texts = ["" for _ in chat.sides]
    for piece in chat.retry() if question is None else chat.ask(question):
        texts[piece.side] += piece.text
    return texts


def test_an_answer_is_the_engines_own_and_joins_the_conversation(chat, opened):
    engine, written = opened
    chat.set_system("be brief")
    (text,) = answers(chat, "Why?")
    ids = written.encode(conversation("Why?", "be brief"))
    asked = Request(ids, stopping=StoppingOptions(8, 8), sampling=SamplingOptions(), name=0)
    assert text == "".join(event.text for event in engine.generate([asked])) != ""
    first = chat.sides[0].exchanges[0]
    assert (first.answer, first.reason, first.tokens, first.prompt_tokens) == (text, "length", 8, len(ids))
    assert chat.sides[0].messages("And?") == [
        *conversation("Why?", "be brief"),
        {"role": "assistant", "content": text},
        {"role": "user", "content": "And?"},
    ]


def test_the_same_conversation_has_the_same_answers_and_retry_others(chat):
    one = [answers(chat, "Why?"), answers(chat, "Why?")]
    assert one[0] != one[1]
    chat.reset()
    assert [answers(chat, "Why?"), answers(chat, "Why?")] == one
    assert answers(chat) != one[1]
    assert chat.seed == 1 and len(chat.sides[0].exchanges) == 2
    assert [exchange.seed for exchange in chat.sides[0].exchanges] == [0, 1]
    assert chat.undo() == "Why?" and chat.undo() == "Why?"
    for nothing in (chat.undo, lambda: answers(chat)):
        with pytest.raises(DataError, match="no question"):
            nothing()


def test_two_sides_differ_by_their_system_messages_alone(chat):
    answers(chat, "Why?")
    chat.set_both(["be brief", "be brief"])
    left, right = answers(chat, "And then?")
    assert left == right
    chat.set_both(["be brief", ""])
    _, right = answers(chat, "fox")
    left_tokens, right_tokens = (side.exchanges[-1].prompt_tokens for side in chat.sides)
    assert left_tokens > right_tokens
    assert [len(side.exchanges) for side in chat.sides] == [3, 3]
    assert chat.sides[0].exchanges[0] == chat.sides[1].exchanges[0]
    assert [side.messages()[0]["role"] for side in chat.sides] == ["system", "user"]
    with pytest.raises(DataError, match="two system messages"):
        chat.set_system("other")
    chat.set_one(1)
    assert chat.sides[0].exchanges[-1].answer == right and len(chat.sides) == 1


class Stop(Exception):
    pass


@pytest.mark.parametrize("waits", [1, 2])
def test_a_stopped_answer_stays_as_it_is(chat, waits):
    """The first wait is for the question to be taken, others for 4 tokens each."""
    (whole,) = answers(chat, "Why?")
    chat.undo()
    plain, left = chat.wait, waits

    def wait(future):
        nonlocal left
        left -= 1
        if left < 0:
            raise Stop
        return plain(future)

    chat.wait = wait
    with pytest.raises(Stop):
        answers(chat, "Why?")
    chat.wait = plain
    kept = chat.sides[0].exchanges
    if waits == 1:
        assert kept == []
    else:
        assert (kept[0].reason, kept[0].tokens) == ("interrupted", 4 * (waits - 1))
        assert whole.startswith(kept[0].answer)
        chat.undo()
    assert answers(chat, "Why?") == [whole]

    chat.wait, left = wait, 0  # no token of another try: the answer that was stays
    with pytest.raises(Stop):
        answers(chat)
    chat.wait = plain
    assert (chat.sides[0].exchanges[-1].answer, chat.seed) == (whole, 0)


def test_what_the_model_cannot_read_changes_nothing(chat):
    with pytest.raises(DataError, match=r"^[0-9,]+ tokens are too many; the model reads at most 127$"):
        answers(chat, "why " * 300)
    answers(chat, "Why?")
    before = [dataclasses.replace(one) for one in chat.sides[0].exchanges]
    with pytest.raises(DataError, match="at most 127; /undo removes the last exchange, /reset all of them"):
        answers(chat, "why " * 300)
    for change in (lambda: chat.set_system("\udcff"), lambda: chat.set_both(["a", "b " * 300])):
        with pytest.raises(DataError):
            change()
    assert chat.sides[0].exchanges == before and [side.system for side in chat.sides] == [""]


def test_a_full_conversation_says_so_and_goes_on_after_undo(opened):
    chat = Chat(*opened, stopping=StoppingOptions(80, 80))
    answers(chat, "Why?")
    with pytest.raises(DataError, match="/undo"):
        answers(chat, "the quick brown fox " * 7)
    chat.undo()
    chat.stopping = StoppingOptions(1000)
    answers(chat, "Why?" * 4)
    last = chat.sides[0].exchanges[-1]
    assert last.reason == "stop" or last.prompt_tokens + last.tokens == chat.longest
    chat.close()
