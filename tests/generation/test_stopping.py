"""Stop strings cut a text however it is divided; bounds and ids that are not allowed are named."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from janus_jax.errors import ConfigError
from janus_jax.generation.stopping import StoppingOptions, StopStrings


def cut(pieces, stops):
    stream = StopStrings(stops)
    shown = [*map(stream.push, pieces), stream.finish()]
    return "".join(shown), stream.matched


def by_prefixes(text, stops):
    """The shortest beginning of the text that ends in a stop string, without the longest of those."""
    for end in range(len(text) + 1):
        if here := [stop for stop in stops if text[:end].endswith(stop)]:
            longest = max(here, key=len)
            return text[: end - len(longest)], longest
    return text, None


@given(
    st.text("ab\n", max_size=14), st.lists(st.text("ab\n", min_size=1, max_size=4), max_size=3), st.lists(st.booleans())
)
def test_the_first_stop_string_cuts_the_text_however_it_is_divided(text, stops, breaks):
    pieces = [""]
    for character, new in zip(text, [*breaks, *[True] * len(text)], strict=False):
        pieces = [*pieces, character] if new else [*pieces[:-1], pieces[-1] + character]
    assert cut(pieces, stops) == cut([text], stops) == by_prefixes(text, stops)


def test_only_what_may_begin_a_stop_string_is_held_back():
    stream = StopStrings(["\n\nUser:", "</s>"])
    assert [stream.push(piece) for piece in ("Hi", "\n", "\nUs", "e.", " <", "/", "b>\n\nUser", ": x")] == [
        *("Hi", "", "", "\n\nUse.", " ", "", "</b>", "")
    ]
    assert (stream.matched, stream.push("more"), stream.finish()) == ("\n\nUser:", "", "")


def test_options_are_kept_as_tuples():
    options = StoppingOptions(stop="END", stop_ids=[2, 5], min_new_tokens=3, max_new_tokens=3)
    assert (options.stop, options.stop_ids) == (("END",), (2, 5))
    options.require_ids_below(6)
    with pytest.raises(ConfigError, match="stop_ids has 5: allowed: ids of the model, from 0 to 4"):
        options.require_ids_below(5)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"max_new_tokens": 0}, "max_new_tokens = 0: allowed: a whole number from 1 to 2147483647"),
        ({"max_new_tokens": 1.0}, "max_new_tokens = 1.0: allowed: a whole number from 1 to 2147483647"),
        ({"max_new_tokens": 9, "min_new_tokens": 10}, "min_new_tokens = 10: allowed: a whole number from 0 to 9, max"),
        ({"min_new_tokens": -1, "max_new_tokens": None}, "stopping: 2 errors\n  max_new_tokens = None"),
        ({"stop": ["a", ""]}, "stop has '': allowed: text that is not empty"),
        ({"stop": "\ud800"}, r"stop has '\ud800': allowed: text that is not empty"),
        ({"stop": None}, "stop = None: allowed: a list of text that is not empty"),
        ({"stop": [3]}, "stop has 3: allowed: text that is not empty"),
        ({"stop_ids": [True]}, "stop_ids has True: allowed: whole numbers from 0 to 2147483647"),
        ({"stop_ids": (-1,)}, "stop_ids has -1: allowed: whole numbers from 0 to 2147483647"),
        ({"stop_ids": 2}, "stop_ids = 2: allowed: a list of whole numbers from 0 to 2147483647"),
    ],
)
def test_an_option_that_is_not_allowed_is_named(options, message):
    with pytest.raises(ConfigError) as error:
        StoppingOptions(**options)
    assert str(error.value).startswith(message)
