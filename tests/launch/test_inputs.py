"""What identifies data and weights that are uploaded."""

from launch.runs import inputs


def test_a_digest_is_of_names_and_contents(tmp_path):
    for name, content in (("a", b"1"), ("b", b"2")):
        (tmp_path / name).mkdir()
        (tmp_path / name / "x").write_bytes(content)
    one, other = (inputs.look("k", str(tmp_path / name)) for name in "ab")
    assert one is not None and other is not None
    assert inputs._digest(one) != inputs._digest(other)
    (tmp_path / "b/x").write_bytes(b"1")
    assert inputs._digest(one) == inputs._digest(other)
    (tmp_path / "b/x").rename(tmp_path / "b/y")
    renamed = inputs.look("k", str(tmp_path / "b"))
    assert renamed is not None and inputs._digest(one) != inputs._digest(renamed)
