"""The annotated file tree in docs/layout.md is the tracked tree.

The tree is the fenced block whose first line starts with `janus_jax/`. One entry a line: indentation, a name
(directories end with /), spaces, what it is for. The outermost entries are all entries of the repository's root. A
directory with entries below it lists everything in it; a directory without entries is not checked.
"""

import re

import pytest

from tests.support.repository import ROOT, tracked


def tree_block(page: str) -> list[str]:
    """Lines of the fenced block that starts with `janus_jax/`."""
    blocks = re.findall(r"^```[^\n]*\n(janus_jax/.*?)^```", page, re.MULTILINE | re.DOTALL)
    assert len(blocks) == 1, f"docs/layout.md has {len(blocks)} fenced blocks that start with janus_jax/, not one"
    return blocks[0].splitlines()


def entries(lines: list[str]) -> dict[str, str]:
    """Path (directories with / at the end) -> annotation."""
    annotations: dict[str, str] = {}
    parents: list[tuple[int, str]] = []
    for line in lines:
        name, _, annotation = line.strip().partition(" ")
        indent = len(line) - len(line.lstrip())
        while parents and parents[-1][0] >= indent:
            parents.pop()
        path = (parents[-1][1] if parents else "") + name
        assert not parents or parents[-1][1].endswith("/"), f"{path}: its parent is not a directory"
        assert path not in annotations, f"{path}: listed twice"
        annotations[path] = annotation.strip()
        parents.append((indent, path))
    return annotations


def differences(listed: set[str], files: list[str]) -> list[str]:
    """Missing and surplus entries of the tree, in the root and in each directory that it opens."""
    present = {name[: match.end()] for name in files for match in re.finditer("/", name)} | set(files)
    opened = {""} | {parent(path) for path in listed}
    expected = {path for path in present if parent(path) in opened}
    return sorted(
        [f"missing: {path}" for path in expected - listed] + [f"surplus: {path}" for path in listed - expected]
    )


def parent(path: str) -> str:
    """The directory of a path, with / at the end; empty for the root."""
    head, slash, _ = path.removesuffix("/").rpartition("/")
    return head + slash


def test_the_tree_in_the_docs_is_the_tracked_tree():
    listed = entries(tree_block((ROOT / "docs/layout.md").read_text(encoding="utf-8")))
    assert differences(set(listed), tracked()) == []
    assert [path for path, annotation in listed.items() if not annotation] == []


TREE = [
    "janus_jax/   the package",
    "  cli.py     the command",
    "  data/      rows",
    "    x.py     x",
    "tests/   t",
    "README.md  r",
]
FILES = ["janus_jax/cli.py", "janus_jax/data/x.py", "tests/a/b.py", "README.md"]


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        (FILES, []),
        ([*FILES, "tests/new.py"], []),  # tests/ is not opened
        ([*FILES, "janus_jax/new.py"], ["missing: janus_jax/new.py"]),
        ([*FILES, "janus_jax/model/a.py"], ["missing: janus_jax/model/"]),
        ([*FILES, ".gitignore"], ["missing: .gitignore"]),
        (FILES[1:], ["surplus: janus_jax/cli.py"]),
        ([*FILES[:2], "tests", "README.md"], ["missing: tests", "surplus: tests/"]),
    ],
)
def test_differences_are_noticed(files, expected):
    assert differences(set(entries(TREE)), files) == expected
