"""README and docs agree with the code: commands, files, links, tables, quoted messages."""

import dataclasses
import re
import shlex
from pathlib import Path
from typing import Any

import pytest
import typer

from janus_jax import errors
from janus_jax.batch import Batch
from janus_jax.cli.main import app
from janus_jax.config.run import load_config
from janus_jax.errors import ConfigError
from janus_jax.parallel.mesh import AXES
from tests.support.repository import ROOT
from tests.support.run_configs import RUNS

PAGES = [
    "README.md",
    "configs/README.md",
    *sorted(f"docs/{path.name}" for path in (ROOT / "docs").glob("*.md")),
    "tests/README.md",
    "tests/launch/README.md",
    "tests/oracles/README.md",
]
RECIPES = sorted(f"configs/{path.name}" for path in RUNS)


def text(page: str) -> str:
    return (ROOT / page).read_text(encoding="utf-8")


# Commands


def whole_commands(markdown: str) -> list[list[str]]:
    """Arguments of each `janus ...` in indented or fenced code, without prompt, comment or trailing `&`."""
    result = []
    for line in re.sub(r"\\\n\s*", "", code_lines(markdown)).splitlines():
        if re.search(r"(?:^\s*|&& )janus ", line):
            parts = shlex.join(shlex.split(line, comments=True)).removesuffix("'&'").split("'&&'")
            result += [shlex.split(part)[1:] for part in parts if part.split()[:1] == ["janus"]]
    return result


def code_lines(markdown: str) -> str:
    fenced = re.findall(r"^```[^\n]*\n(.*?)^```", markdown, re.MULTILINE | re.DOTALL)
    indented = re.findall(r"^ {4}.*$", markdown, re.MULTILINE)
    return "\n".join([*fenced, *indented])


def mentions(markdown: str) -> list[list[str]]:
    """Words of each `janus ...` in inline code or in the comments of a recipe, which may leave arguments out."""
    inline = re.findall(r"`(janus [^`]*)`", markdown)
    comments = re.findall(r"^#.*?\b(janus (?:demo|data|train|convert)\b[^`;(]*?)(?:\s{2,}.*)?$", markdown, re.MULTILINE)
    return [result.split()[1:] for result in inline + comments]


def leaf(words: list[str]) -> tuple[Any, list[str]]:
    """The subcommand that the first words name, and the words after them."""
    command = typer.main.get_command(app)
    while hasattr(command, "commands") and words and not words[0].startswith("-"):
        assert words[0] in command.commands, f"janus has no command {words[0]!r}"
        command, words = command.commands[words[0]], words[1:]
    return command, words


@pytest.mark.parametrize(
    ("page", "expected"),
    [("README.md", {"demo", "data", "train", "convert", "plan"}), ("docs/slices.md", {"plan", "time-step"})],
)
def test_commands_are_found(page, expected):
    assert expected <= {words[0] for words in whole_commands(text(page))}


@pytest.mark.parametrize("page", PAGES)
def test_every_command_parses(page):
    for words in whole_commands(text(page)):
        command, rest = leaf(words)
        given = command.make_context("janus", list(rest)).params
        if (config := given.get("config", given.get("target"))) and (ROOT / config).suffix == ".yaml":
            load_config(ROOT / config, given["overrides"] or [])


@pytest.mark.parametrize("page", [*PAGES, *RECIPES])
def test_every_mention_of_a_command_names_one_that_is_there(page):
    for words in mentions(text(page)):
        command, rest = leaf(words)
        options = {
            "--help",
            *(name for parameter in command.params for name in (*parameter.opts, *parameter.secondary_opts)),
        }
        assert [word for word in rest if word.startswith("-") and word.split("=")[0] not in options] == [], words


def test_the_finders_see_what_is_wrong():
    page = "    janus train a.yaml x=1 & # c\n\n```\n. a && janus data build --kind sft\n```\nsee `janus nothing`\n"
    assert sorted(whole_commands(page)) == [["data", "build", "--kind", "sft"], ["train", "a.yaml", "x=1"]]
    assert mentions(page) == [["nothing"]]
    with pytest.raises(AssertionError, match="no command 'nothing'"):
        leaf(["nothing"])
    assert mentions("#   command  janus train x.yaml          (on every host)") == [["train", "x.yaml"]]


def test_the_two_commands_are_those_that_ci_runs():
    commands = ["pip install -e . && janus demo", "pip install -e '.[test]' && pytest"]
    script = text(".ci/run")
    for command in commands:
        assert re.search(rf"^    {re.escape(command)}\b", text("README.md"), re.MULTILINE)
        install, use = map(re.escape, command.split(" && "))
        assert re.search(rf"^stage {install}\n(?:.*\n)*?(?:stage )?{use}\b", script, re.MULTILINE)


# Files and links


@pytest.mark.parametrize("page", PAGES)
def test_every_relative_link_resolves(page):
    for target in re.findall(r"\]\(([^)\s]+)\)", text(page)):
        if "://" in target:
            continue
        file, _, anchor = target.partition("#")
        linked = (ROOT / page).parent / file if file else ROOT / page
        assert linked.exists(), target
        if anchor:
            headings = re.findall(r"^#+ (.*)$", linked.read_text(encoding="utf-8"), re.MULTILINE)
            assert anchor in {re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in headings}, target


@pytest.mark.parametrize("page", [*PAGES, *RECIPES])
def test_every_file_that_is_named_exists(page):
    named = re.findall(r"\b((?:configs|docs|tests|janus_jax)/[\w/.-]+\.(?:yaml|py|md|jsonl))", text(page))
    assert [name for name in named if not (ROOT / name).is_file()] == []


def test_modules_and_names_in_the_design_exist():
    design, package = text("docs/design.md"), ROOT / "janus_jax"
    modules = {name for name in re.findall(r"`([\w/]+/\w+\.py)`", design) if "NAME" not in name}
    assert [name for name in modules if not (package / name).is_file() and not (ROOT / name).is_file()] == []
    for module, name in re.findall(r"`([\w/]+\.py)`(?:,| \()\s*`([\w.]+)`", design):
        for part in name.split("."):
            defined = rf"^ *(def|class) {part}\b|^{part}\b.* = "
            assert re.search(defined, (package / module).read_text(encoding="utf-8"), re.MULTILINE), (module, name)


def test_every_recipe_is_linked_from_the_page_of_recipes():
    linked = re.findall(r"\]\(([\w.-]+\.yaml)\)", text("configs/README.md"))
    assert {f"configs/{name}" for name in linked} >= set(RECIPES)


def test_the_readme_is_short():
    assert len(text("README.md").splitlines()) <= 200


# Tables


def rows(section: str, page: str = "docs/design.md") -> list[list[str]]:
    """Cells of the table in a section of a page, header left out."""
    body = re.search(rf"^##+ {section}\n(.*?)(?=^## |\Z)", text(page), re.MULTILINE | re.DOTALL)
    assert body, section
    lines = [line for line in body[1].splitlines() if line.startswith("|")]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines[2:]]


def test_the_batch_table_has_the_fields_of_a_batch():
    assert [name.strip("`") for name, *_ in rows("Batch contract")] == [f.name for f in dataclasses.fields(Batch)]


def test_the_mesh_table_has_the_axes():
    assert tuple(axis.strip("`") for axis, *_ in rows("Mesh")) == AXES


def test_the_exit_codes_are_those_of_the_errors():
    lines = rows("Exit codes", "docs/training.md")
    assert {int(code): (meaning, then) for code, meaning, _, then in lines} == errors.EXIT_CODES
    table = {int(code): set(re.findall(r"`(\w+)`", names)) for code, _, names, _ in lines}
    raised: dict[int, set[str]] = {}
    for error in errors.JanusError.__subclasses__():
        if error.__module__ == errors.__name__:
            raised.setdefault(error.exit_code, set()).add(error.__name__)
    assert {code: names for code, names in table.items() if names} == raised


def test_the_map_of_modules_is_whole():
    listed = [name.strip("`") for name, _ in rows("Where each thing lives")]
    package = ROOT / "janus_jax"
    modules = {str(path.relative_to(package)) for path in package.rglob("*.py") if path.name != "__init__.py"}
    assert sorted(listed) == sorted(modules)


# Quoted messages and snippets


def test_the_quoted_report_is_what_mistakes_get(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("mine.yaml").write_text(
        "run: {dir: runs/mine}\nmodel: {preset: tiny}\ndata: {dir: data/mine}\n"
        "batch: {rows: 8, row_length: 1024, max_seqence_length: 512}\nobjective: {name: sft}\n"
        "schedule: {name: cosine, learning_rate: fast, epochs: 1}\n"
    )
    with pytest.raises(ConfigError) as report:
        load_config("mine.yaml")
    quoted = "".join(f"    {line}\n" for line in f"error: {report.value}".splitlines())
    assert quoted in text("docs/training.md")


def test_the_quoted_bad_row_is_what_it_gets(tmp_path, monkeypatch):
    from janus_jax.data.build.readers import read_records

    monkeypatch.chdir(tmp_path)
    good = '{"system": "", "prompt": "p", "output": "o"}\n'
    Path("records.jsonl").write_text(good * 3 + '{"system": "x", "prompt": "y"}\n')
    with pytest.raises(errors.DataError) as error:
        list(read_records("records.jsonl", "sft"))
    assert f"    error: {error.value}\n" in text("docs/data.md")


def test_the_whole_configuration_of_the_training_page_loads(tmp_path):
    (block,) = re.findall(r"^```yaml\n(.*?)^```", text("docs/training.md"), re.MULTILINE | re.DOTALL)
    (tmp_path / "mine.yaml").write_text(block)
    assert load_config(tmp_path / "mine.yaml").objective.name in block


@pytest.mark.parametrize("page", PAGES)
def test_python_snippets_compile(page):
    for block in re.findall(r"^```python\n(.*?)^```", text(page), re.MULTILINE | re.DOTALL):
        assert compile(block, page, "exec")
