"""`janus data inspect` as it is typed: what it prints, writes and refuses, and what it leaves alone."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from rich.cells import cell_len

from janus_jax.cli.main import main
from janus_jax.storage.bucket import Prefix
from tests.support.broken_examples import BROKEN_EXAMPLES, GOOD_EXAMPLE
from tests.support.repository import ROOT


@pytest.fixture
def inspect(monkeypatch, capsys):
    """Runs the command in this process; returns (exit code, stdout, stderr)."""

    def run(*arguments: object) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["janus", "data", "inspect", *map(str, arguments)])
        with pytest.raises(SystemExit) as done:
            main()
        out, err = capsys.readouterr()
        return done.value.code or 0, out, err

    return run


@pytest.fixture
def config_of(tmp_path):
    def write(directory, **sections) -> Path:
        values = {
            "run": {"dir": str(tmp_path / "run")},
            "model": {"preset": "tiny"},
            "data": {"dir": str(directory)},
            "batch": {"rows": 2, "row_length": 64, "max_sequence_length": 32},
            "objective": {"name": "dpo"},
            "schedule": {"name": "constant", "learning_rate": 1e-3, "epochs": 1},
        }
        path = tmp_path / "run.yaml"
        path.write_text(yaml.safe_dump(values | sections))
        return path

    return write


def test_no_device_is_asked_for_and_no_tensorflow_is_loaded(write, config_of):
    """JAX_PLATFORMS may name what is not there: no backend is started."""
    directory = write("dpo", train=[GOOD_EXAMPLE] * 9, validation=[GOOD_EXAMPLE])
    config = config_of(directory, eval={"every_steps": 1})
    code = (
        "import sys, janus_jax.cli.main as cli\n"
        f"sys.argv = ['janus', 'data', 'inspect', sys.argv[1], '--html', {str(directory / 'page.html')!r}]\n"
        "try:\n    cli.main()\nexcept SystemExit as done:\n    assert not done.code, done.code\n"
        "loaded = {'tensorflow', 'seqio', 'torch'} & set(sys.modules)\n"
        "assert not loaded, loaded\n"
        "from jax._src import xla_bridge\n"  # there is no public way to ask
        "print('a backend' if xla_bridge.backends_are_initialized() else 'no backend')\n"
    )
    environment = {**os.environ, "JAX_PLATFORMS": "absent", "PYTHONPATH": str(ROOT), "COLUMNS": "80"}
    for target in (directory, config):
        done = subprocess.run(
            [sys.executable, "-c", code, str(target)], capture_output=True, text=True, env=environment, cwd=ROOT
        )
        assert done.returncode == 0, done.stderr
        assert "Nothing is broken in 10 examples" in " ".join(done.stdout.split()) and done.stdout.endswith(
            "no backend\n"
        )


@pytest.mark.parametrize("what", BROKEN_EXAMPLES)
def test_a_broken_example_ends_with_2_and_its_name(inspect, write, tmp_path, what):
    directory = write("dpo", train=[GOOD_EXAMPLE], validation=[GOOD_EXAMPLE, GOOD_EXAMPLE, BROKEN_EXAMPLES[what]])
    code, out, err = inspect(directory, "--html", tmp_path / "p.html", "--json", tmp_path / "n.json")
    assert code == 2 and err.count("\n") == 1 and err.startswith("error: examples that must not be trained on: ")
    assert what in err and f"{directory}, split validation, example 2 (" in err
    assert "No problems" not in out and f"page: {tmp_path / 'p.html'}" in out.replace("\n", "")
    numbers = json.loads((tmp_path / "n.json").read_text())
    assert [len(split["problems"]) for split in numbers["splits"]] == [0, 1] and numbers["verdict"] == "wrong"
    assert "WRONG: Do not train on this data." in out
    assert inspect(directory, "--split", "train")[0] == 0


def test_what_is_not_broken_but_past_a_threshold_is_to_be_looked_at(inspect, write, tmp_path):
    long = ("Why?", "word " * 80, "No, I do not think so.")
    pairs = [("What is it?", f"It is {n}." + " So it is, yes." * (n % 2), f"It is {n}, I say.") for n in range(20, 35)]
    directory = write("dpo", train=[long, *pairs], validation=pairs[:1])
    written = ["--json", tmp_path / "n.json", "--html", tmp_path / "p.html"]

    def verdict(*options):
        code, out, err = inspect(directory, "--row-length", 128, "--rows", 0, *options, *written)
        assert (code, err) == (0, "")
        numbers, page = json.loads((tmp_path / "n.json").read_text()), (tmp_path / "p.html").read_text()
        return " ".join(out[out.rindex("page: ") :].split()), numbers, page

    printed, numbers, page = verdict()
    assert (
        "LOOK AT THIS: 3 shares past a threshold" in printed and "FINE" not in printed and "No problems" not in printed
    )
    lines = [
        f"1 of 16 examples: over-long and dropped (6.2 %, threshold dropped=0.01), in {directory}, split train",
        "14 of 15 examples: with the prompt of an earlier one (93.3 %, threshold repeated_prompts=0.5), in ",
        f"1 of 1 example: the prompt also occurs in {directory}, split train (100.0 %, threshold held_out_in_train=0)",
    ]
    assert all(line in printed.replace(" ", "").replace("\n", "") for line in (line.replace(" ", "") for line in lines))
    assert numbers["verdict"] == "look at this" and numbers["thresholds"]["dropped"] == 0.01
    kinds = [[finding["kind"] for finding in split["findings"]] for split in numbers["splits"]]
    assert kinds == [["dropped", "repeated_prompts"], ["held_out_in_train"]]
    assert '<div class="verdict look-at-this">' in page and all(line in page for line in lines)

    options = ["--look-at", "dropped=0.1,repeated_prompts=1", "--look-at", "held_out_in_train=1"]
    printed, numbers, page = verdict(*options)
    assert "FINE: No problems in 16 examples" in printed and "LOOK" not in printed and numbers["verdict"] == "fine"
    assert '<div class="verdict fine">' in page


def test_several_kinds_of_mistakes_are_all_named(inspect, write):
    code, _, err = inspect(write("dpo", train=[GOOD_EXAMPLE, *BROKEN_EXAMPLES.values()]))
    assert code == 2 and all(what in err for what in BROKEN_EXAMPLES)


def test_it_reads_on_80_columns_without_colours(inspect, dpo_build):
    code, out, err = inspect(dpo_build.directory, "--full")
    assert (code, err) == (0, "") and "\x1b" not in out
    assert max(map(cell_len, out.splitlines())) <= 80
    labels = [line.split()[0] for line in out.splitlines() if re.match(r"(prompt|chosen|rejected|eos) +\S", line)]
    example = ["prompt", "prompt", "chosen", "eos", "prompt", "rejected", "eos"]
    assert labels[: 7 * 5] == example * 5  # and then the table of lengths
    text = "".join(line[10:] for line in out.splitlines())
    assert "Yeast·makes·gas." in text and "Vapour·freezes·❄" in text and "A·start·mark·</s>,·it·is·text·here." in text


def test_colours_are_for_terminals_that_want_them(inspect, dpo_build, monkeypatch):
    for name in ("NO_COLOR", "FORCE_COLOR"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.setenv("TERM", "xterm-256color")
    outputs = []
    for variables in ((), ("FORCE_COLOR",), ("FORCE_COLOR", "NO_COLOR")):
        for name in variables:
            monkeypatch.setenv(name, "1")
        code, out, _ = inspect(dpo_build.directory)
        assert code == 0
        outputs.append(out)
    colours = [bool(re.search(r"\x1b\[[0-9;]*3[0-9]", output)) for output in outputs]
    assert colours == [False, True, False]
    stripped = [re.sub(r"\x1b\[[0-9;]*m", "", output) for output in outputs]
    assert stripped[0] == stripped[1] == stripped[2]


def test_a_hostile_text_does_not_reach_the_terminal(inspect, write):
    code, out, _ = inspect(write("sft", train=[("\x1b[2J\x1b]0;x\x07 [bold]?", "\u202eSo.[/bold]")] * 2))
    assert code == 0 and not re.search(r"[\x00-\x09\x0b-\x1f\x7f-\x9f\u202e]", out)
    assert "[bold]" in out and "[/bold]" in out and "\\x1b[2J" in out.replace("\n          ", "")


def test_the_configuration_decides_what_is_read(inspect, write, config_of):
    long = ("What?", "word " * 40, "No.")
    directory = write("dpo", train=[GOOD_EXAMPLE] * 30 + [long], validation=[GOOD_EXAMPLE] * 4)
    assert "0 dropped" in inspect(directory)[1]
    config = config_of(directory, eval={"every_steps": 5})
    code, out, _ = inspect(config, "--json", directory / "n.json")
    numbers = json.loads((directory / "n.json").read_text())
    train, held_out = numbers["splits"]
    assert code == 0 and (train["role"], held_out["role"]) == ("training", "held out")
    assert (train["total"]["usable"], train["total"]["dropped"], train["rows"]["row_length"]) == (30, 1, 64)
    assert (train["rows"]["steps"], train["epochs"], train["examples_read"]) == (-(-train["rows"]["rows"] // 2), 1, 30)
    assert held_out["prompts_in_first"] == 4 and "4 of 4 examples have a prompt that also occurs in" in out
    assert (
        "1 dropped" in out
        and "0 dropped" in inspect(config, "batch.row_length=256", "batch.max_sequence_length=128")[1]
    )
    assert "objective simpo" in inspect(config, "objective={name: simpo}", "--split", "train")[1]


def test_pairs_that_lost_their_responses_on_purpose_are_shown_so(inspect, write, config_of, tmp_path):
    long = ("What?", "word " * 40, "No.")
    config = config_of(write("dpo", train=[long, long, GOOD_EXAMPLE]), compat={"overlong_pairs": "zero_grad"})
    code, out, _ = inspect(config, "--full", "--html", tmp_path / "page.html")
    assert code == 0 and "0 dropped, 0 truncated, 2 left without responses" in out
    assert out.count("no slots: it has no responses; prompt 1 + chosen 0 + rejected 0 tokens,") == 2
    ids = re.findall(r' id="([^"]+)"', (tmp_path / "page.html").read_text())
    assert len(set(ids)) == len(ids)


def test_the_kind_decides_how_a_directory_is_read(inspect, write):
    for kind, objective in (("sft", "sft"), ("orpo", "dpo"), ("rm", "rm")):
        texts = [GOOD_EXAMPLE[:2] if kind == "sft" else GOOD_EXAMPLE]
        _, out, _ = inspect(write(kind, name=kind, train=texts))
        assert f"objective {objective} " in out
        assert ("8,192 slots" if kind == "sft" else "4,096 slots") in out
        assert ("</s> is the target of slot" in out) == (kind != "rm")
    assert "objective rm " in inspect(write("dpo", train=[GOOD_EXAMPLE]), "--objective", "rm")[1]


def test_rows_and_slots_are_chosen(inspect, write):
    directory = write("dpo", train=[GOOD_EXAMPLE] * 40)
    options = [directory, "--row-length", 32]
    out = inspect(*options, "--rows", 3)[1]
    assert re.findall(r"^row (\d+) of epoch 0", out, re.MULTILINE) == ["0", "1", "2"]
    assert re.findall(r"^row (\d+) of", inspect(*options, "--rows", 0)[1], re.MULTILINE) == []
    out = inspect(*options, "--row", 4, "--epoch", 2, "--slots", "3-6")[1]
    assert re.findall(r"^row (\d+) of epoch (\d)", out, re.MULTILINE) == [("4", "2")]
    table = out[out.index("slot  ") :].split("\n\n")[0]
    assert re.findall(r"^ *(\d+) ", table, re.MULTILINE) == ["3", "4", "5", "6"]


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ("none.yaml", "none.yaml: cannot be read: No such file or directory"),
        (".", ".: is not a built data set: it has no manifest.json"),
        ("data --split test", "data: has no split 'test'; there are: train"),
        ("data --row 5", "--row 5: data, split train has rows 0 to 0 in epoch 0"),
        ("data batch.rows=2", "batch.rows=2: data is a directory; KEY=VALUE needs a configuration"),
        ("data --slots 3", "--slots 3: allowed: FIRST-LAST, like 200-240"),
        ("data --slots 4090-4096", "--slots 4090-4096: a row of data, split train has slots 0 to 4095"),
        ("data --slots 9-3", "--slots 9-3: allowed: FIRST-LAST"),
        ("data --row-length 8 --max-sequence-length 9", "--max-sequence-length 9: allowed: at most --row-length, 8"),
        ("data --row-length 4", "data: none of 1 example fits"),
        ("data --objective sft", "data: holds pairs (kind dpo), but the objective reads single responses"),
        ("data --html no/p.html", "--html no/p.html: no is not a directory"),
        ("data --json data", "--json data: is a directory"),
        ("data --look-at dropped=2", "--look-at dropped=2: allowed: a share from 0 to 1, like dropped=0.05"),
        ("run.yaml --row-length 9", "--row-length: allowed with a data set only"),
        ("run.yaml --split test", "--split test: the configuration reads train"),
        ("run.yaml batch.rows=0", "override 'batch.rows=0': batch.rows = 0: allowed: a whole number >= 1 or null"),
    ],
)
def test_a_mistake_is_one_line_and_exit_2(inspect, write, config_of, tmp_path, monkeypatch, arguments, expected):
    config_of(write("dpo", train=[GOOD_EXAMPLE]))
    monkeypatch.chdir(tmp_path)
    before = sorted(tmp_path.rglob("*"))
    code, out, err = inspect(*arguments.split())
    assert (code, out) == (2, "") and err.count("\n") == 1 and err.startswith(f"error: {expected}")
    assert sorted(tmp_path.rglob("*")) == before


def test_a_data_set_in_a_bucket_is_read_from_its_copy(inspect, write, bucket):
    directory = write("dpo", train=[GOOD_EXAMPLE], validation=[GOOD_EXAMPLE] * 2)
    files = (path for path in directory.rglob("*") if path.is_file())
    Prefix(f"{bucket}/pairs").upload(directory, [path.relative_to(directory).as_posix() for path in files])
    code, out, err = inspect(f"{bucket}/pairs")
    assert (code, err) == (0, "") and "Nothing is broken in 3 examples" in " ".join(out.split())
    assert f"example 0 of {bucket}/pairs" in out and "cache" not in out.split("token boundary")[0]
