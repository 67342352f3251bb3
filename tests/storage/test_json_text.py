"""JSON that a user gives."""

import pytest

from janus_jax.errors import DataError
from janus_jax.storage.json_text import difference, strict_json
from janus_jax.text.hf_files import read_json


@pytest.mark.parametrize("content", ['{"a": 1, "b": {}, "a": 2}', '[{"b": [{"a": 1, "a": 2}]}]'])
def test_a_key_given_twice_is_named_with_its_values(content):
    with pytest.raises(ValueError, match=r"names the key 'a' twice \(1, 2\); keep one"):
        strict_json(content)


def test_equal_keys_of_different_objects_are_no_mistake():
    assert strict_json('[{"a": 1}, {"a": {"a": 2}}]') == [{"a": 1}, {"a": {"a": 2}}]


def test_nesting_without_end_is_one_line():
    with pytest.raises(ValueError, match="is nested too deeply"):
        strict_json("[" * 100_000)


def test_tokenizer_files_are_read_so(tmp_path):
    (tmp_path / "tokenizer_config.json").write_text('{"add_bos_token": true, "add_bos_token": false}')
    with pytest.raises(DataError, match=r"tokenizer_config.json: names the key 'add_bos_token' twice \(true, false\)"):
        read_json(tmp_path / "tokenizer_config.json")


def test_long_settings_are_shown_from_where_they_part():
    one, other = (f"/mnt/models/{'deep/' * 20}{name}" for name in ("first", "second"))
    name, before, now = difference({"judge": one}, {"judge": other})
    assert name == "judge" and before.endswith('first"') and now.endswith('second"') and len(now) < 70
    assert difference({"n": 1}, {"n": None}) == ("n", "1", "null")
