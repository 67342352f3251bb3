"""Who may import whom, and what must stay out of the way until it is wanted."""

import ast
import subprocess
import sys
from collections.abc import Iterator

from tests.support.repository import ROOT, tool, tracked

TENSORFLOW = {"tensorflow", "tensorflow_datasets", "tensorflow_text", "seqio"}


def test_layers_import_downwards_only():
    tool("-c", "from importlinter.cli import lint_imports_command; lint_imports_command()", "--no-cache")


def test_tensorflow_is_imported_in_functions_of_data_only():
    wrong = [
        f"{name}:{line}"
        for name in tracked()
        if name.startswith("janus_jax/") and name.endswith(".py") and (ROOT / name).exists()
        for line, module, in_function in _imports((ROOT / name).read_text(encoding="utf-8"))
        if module.split(".")[0] in TENSORFLOW and not (in_function and name.startswith("janus_jax/data/"))
    ]
    assert wrong == []


def test_no_test_imports_another():
    """What two tests use lies in tests/support, and fixtures in a conftest.py."""
    wrong = [
        f"{name}:{line}"
        for name in tracked()
        if name.startswith("tests/") and name.endswith(".py") and (ROOT / name).exists()
        for line, module, _ in _imports((ROOT / name).read_text(encoding="utf-8"))
        if module.startswith("tests.") and module.split(".")[-1].startswith(("test_", "conftest"))
    ]
    assert wrong == []


def test_the_finder_of_imports_tells_functions_from_modules():
    source = "import seqio\ndef f():\n    from tensorflow.io import gfile\nclass C:\n    import torch\n"
    assert sorted(_imports(source)) == [(1, "seqio", False), (3, "tensorflow.io", True), (5, "torch", False)]


def _imports(source: str) -> Iterator[tuple[int, str, bool]]:
    """(line, module, is inside a function) of every import, except those that only type checkers see."""

    def walk(node: ast.AST, in_function: bool) -> Iterator[tuple[int, str, bool]]:
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name, in_function) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield node.lineno, node.module or "", in_function
        elif not (isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"):
            inside = in_function or isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)
            for child in ast.iter_child_nodes(node):
                yield from walk(child, inside)

    yield from walk(ast.parse(source), False)


def test_importing_the_package_imports_nothing_else():
    code = (
        "import sys; before = set(sys.modules); import janus_jax; "
        "assert set(sys.modules) - before == {'janus_jax'}, set(sys.modules) - before"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT)
