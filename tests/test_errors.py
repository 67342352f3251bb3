"""Errors whose places are data until they are shown."""

import pickle
from pathlib import Path

import pytest

from janus_jax.errors import DataError, JanusError, StorageError


@pytest.mark.parametrize(
    ("parts", "shown"),
    [
        ((), ""),
        (("a.b = 1: allowed: 2",), "a.b = 1: allowed: 2"),
        ((Path("/x/new"), "is empty"), "/y: is empty"),
        (("/x/new/rows.jsonl:3", "is empty"), "/y/rows.jsonl:3: is empty"),
        (
            ("gs://b/f", "cannot be read", Path("/x/new/f"), "File too large"),
            "gs://b/f: cannot be read: /y/f: File too large",
        ),
        (("/x/newer", "differs from /x/new"), "/x/newer: differs from /x/new"),
    ],
)
def test_a_place_is_renamed_and_the_sentence_is_not(parts, shown):
    error = JanusError(*parts)
    error.rename(Path("/x/new"), "/y")
    assert str(error) == shown


def test_an_error_keeps_its_places_on_its_way_between_processes():
    error = pickle.loads(pickle.dumps(DataError(Path("/x"), "is empty")))
    assert type(error) is DataError and error.places == ("/x",) and str(error) == "/x: is empty"
    assert StorageError("no place").places == ()
