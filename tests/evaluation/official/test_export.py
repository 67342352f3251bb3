"""From questions to the files that official tools read, by our engine."""

import dataclasses
import json

import pytest

from janus_jax.errors import ConfigError
from janus_jax.evaluation.official import TOOLS, export
from janus_jax.evaluation.official.export import Export, ExportOptions
from janus_jax.evaluation.official.questions import read_questions
from janus_jax.evaluation.official.systems import DEFAULT, read_systems
from janus_jax.generation.journal import Journal
from janus_jax.generation.sampling import SamplingOptions
from janus_jax.generation.stopping import StoppingOptions
from tests.support.chat_models import chat_model
from tests.support.official import QUESTIONS, ScriptedEngine, mt_question, read_answers, write_questions

OPTIONS = ExportOptions(SamplingOptions(0.7), own_temperature=True, stopping=StoppingOptions(6), rows=4)


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return chat_model(tmp_path_factory.mktemp("model"), max_position_embeddings=256)


@pytest.fixture
def engines(monkeypatch):
    """Engines that were opened. They answer with the last bytes of a question's name, and the tokens of its prompt."""
    opened = []

    def open_engine(model, *_, **__):
        opened.append(ScriptedEngine(model.config, lambda one: f" {str(one.name)[-3:]} of {len(one.ids)} "))
        return opened[-1]

    monkeypatch.setattr(export, "open_engine", open_engine)
    return opened


def made(tool, model, questions, out, *, systems=("default",), options=OPTIONS, notes=None, **more):
    path = write_questions(out.parent / f"{out.name}.jsonl", questions)

    def read(unread):
        return read_questions(path, TOOLS[tool].read, same=TOOLS[tool].same, unread=unread)

    tell = (lambda _: None) if notes is None else notes.append
    return Export(TOOLS[tool], str(model), read, out, read_systems(systems), options, tell=tell, **more)


@pytest.mark.parametrize("given", ["runs/sft", "runs/sft/", "gs://bucket/runs/sft", "someone/sft"])
def test_a_model_is_called_after_the_end_of_its_path_not_after_its_step(given):
    assert export.default_name(given) == "sft"


def turns(path):
    return [row["choices"][0]["turns"] for row in read_answers("mt_bench", path)]


@pytest.mark.parametrize(
    ("tool", "file"),
    [
        ("alpaca_eval", "m/model_outputs.json"),
        ("mt_bench", "model_answer/m.jsonl"),
        ("arena_hard", "model_answer/m.jsonl"),
    ],
)
def test_each_tool_finds_its_file(model, engines, tmp_path, tool, file):
    questions = [QUESTIONS[tool](number) for number in (3, 1)]
    lines = made(tool, model, questions, tmp_path / "out", name="m").write()
    path = tmp_path / "out" / file
    rows = read_answers(tool, path)
    assert lines[0] == f"wrote {path}: {2 * TOOLS[tool].turns} answers of m"
    names = {"alpaca_eval": "instruction", "mt_bench": "question_id", "arena_hard": "uid"}
    ids = [question[names[tool]] for question in questions]
    assert [row[names[tool]] for row in rows] == (sorted(ids) if tool == "mt_bench" else ids)
    if tool == "alpaca_eval":
        assert {row["dataset"] for row in rows} == {"koala"} and {row["generator"] for row in rows} == {"m"}
    meta = json.loads(path.with_name(f"{path.stem}.meta.json").read_text())
    assert meta["settings"]["system"] == DEFAULT and meta["settings"]["template"] == "chatml"
    assert meta["settings"]["max_new_tokens"] == 6 and meta["answers"]["answers"] == 2 * TOOLS[tool].turns
    assert "jax" in meta["versions"]
    others = {one.name for one in path.parent.iterdir()} - {path.name}
    assert not any(name.endswith(".jsonl") for name in others)  # tools take all of these for answers


def test_the_second_turn_follows_the_answer_to_the_first(model, tmp_path):
    """As transformers goes on with the conversation in the model's own chat template."""
    import torch
    import transformers

    questions = [mt_question(1, "math"), mt_question(2, "coding")]
    made("mt_bench", model, questions, tmp_path / "out", systems=["Be kind."], name="m").write()
    tokenizer = transformers.AutoTokenizer.from_pretrained(model)
    theirs = transformers.AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32)
    for question, (first, second) in zip(questions, turns(tmp_path / "out/model_answer/m.jsonl"), strict=True):
        one, two = question["turns"]
        messages = [("system", "Be kind."), ("user", one), ("assistant", first), ("user", two)]
        for end, answer in ((2, first), (4, second)):
            asked = [{"role": role, "content": text} for role, text in messages[:end]]
            text = tokenizer.apply_chat_template(asked, add_generation_prompt=True, tokenize=False)
            ids = tokenizer(text, return_tensors="pt", add_special_tokens=False)["input_ids"]
            made_ids = theirs.generate(ids, do_sample=False, max_new_tokens=6)[0, ids.shape[1] :]
            assert tokenizer.decode(made_ids, skip_special_tokens=True).strip() == answer


def test_temperatures_are_those_of_the_category_unless_one_is_given(model, engines, tmp_path):
    categories, notes = ("writing", "math", "stem", "new"), []
    questions = [mt_question(number, category) for number, category in enumerate(categories)]
    made("mt_bench", model, questions, tmp_path / "own", notes=notes, name="m").write()
    asked = engines[0].asked
    assert [one.sampling.temperature for one in asked] == 2 * [0.7, 0.0, 0.1, 0.7]
    assert len({one.name for one in asked}) == 8
    assert any("category 'new' of 1 question is unknown to fschat" in line for line in notes)
    options = dataclasses.replace(OPTIONS, sampling=SamplingOptions(0.3), own_temperature=False)
    made("mt_bench", model, questions, tmp_path / "given", options=options, name="m").write()
    assert {one.sampling.temperature for one in engines[1].asked} == {0.3}


def test_a_file_for_each_system_message(model, engines, tmp_path):
    systems = ["default", "none", "Be kind."]
    export = made("mt_bench", model, [mt_question(1)], tmp_path / "out", systems=systems, name="m")
    export.write()
    names = ["m-default", "m-none", "m-system-3"]
    directory = tmp_path / "out" / "model_answer"
    assert sorted(path.name for path in directory.glob("*.jsonl")) == [f"{name}.jsonl" for name in names]
    for name, system in zip(names, (DEFAULT, "", "Be kind."), strict=True):
        assert read_answers("mt_bench", directory / f"{name}.jsonl")[0]["model_id"] == name
        assert json.loads((directory / f"{name}.meta.json").read_text())["settings"]["system"] == system
    assert len({str(turns(directory / f"{name}.jsonl")) for name in names}) == 3


class StopError(Exception):
    """Ends a command as a kill does."""


def test_it_goes_on_where_it_was_killed(model, engines, tmp_path, monkeypatch):
    questions = [mt_question(number, "math") for number in range(5)]
    added, inner, stops = [], Journal.add, set()

    def add(self, number, record):
        if len(added) in stops:
            stops.remove(len(added))
            raise StopError
        inner(self, number, record)
        added.append((str(self.out), number))

    monkeypatch.setattr(Journal, "add", add)
    made("mt_bench", model, questions, tmp_path / "whole", systems=["default", "none"], name="m").write()
    stops, ends = {22, 27, 30, 36}, 0
    while True:
        export = made("mt_bench", model, questions, tmp_path / "out", systems=["default", "none"], name="m")
        try:
            lines = export.write()
            break
        except StopError:
            ends += 1
        for part in export._parts:  # what the end of a process does
            if part.journal is not None and hasattr(part.journal, "_file"):
                part.journal._file.close()
    assert ends == 4 and len(added) == len(set(added)) == 40  # of both directories
    assert lines[0].endswith("m-default.jsonl is written already")
    for name in ("m-default", "m-none"):
        one, other = (turns(tmp_path / root / f"model_answer/{name}.jsonl") for root in ("whole", "out"))
        assert one == other
    assert not list((tmp_path / "out").rglob("*.part"))


def test_what_is_there_stays_and_other_settings_are_refused(model, engines, tmp_path, monkeypatch):
    questions, out = [QUESTIONS["alpaca_eval"](1)], tmp_path / "out"
    made("alpaca_eval", model, questions, out, name="m").write()
    path = out / "m" / "model_outputs.json"
    before = path.stat()
    monkeypatch.setattr(export, "open_engine", None)
    left = path.with_name("model_outputs.json.part")
    left.touch()
    assert made("alpaca_eval", model, questions, out, name="m").write() == [f"{path} is written already"]
    assert not left.exists()
    options = dataclasses.replace(OPTIONS, seed=1)
    with pytest.raises(ConfigError, match=r"^--out .*: exists, and its seed is 0, not 1; remove it, or choose another"):
        made("alpaca_eval", model, questions, out, options=options, name="m")
    (out / "m" / "model_outputs.meta.json").unlink()
    with pytest.raises(ConfigError, match=r"exists, but model_outputs.meta.json does not say how it was made"):
        made("alpaca_eval", model, questions, out, name="m")
    assert path.stat() == before


def test_empty_answers_and_second_turns_without_room_are_counted(model, tmp_path, monkeypatch):
    """Both stay in the file."""
    answers = {"1/1": " \n", "1/2": "Yes.", "2/1": "x" * 200}
    monkeypatch.setattr(
        export, "open_engine", lambda model, *_, **__: ScriptedEngine(model.config, lambda one: answers[one.name])
    )
    notes, options = [], dataclasses.replace(OPTIONS, stopping=StoppingOptions(200))
    questions = [mt_question(1, "math"), mt_question(2, "math")]
    lines = made("mt_bench", model, questions, tmp_path / "out", options=options, notes=notes, name="m").write()
    assert any("2 second turns may have no room in the model's longest text" in line for line in notes)
    meta = json.loads((tmp_path / "out/model_answer/m.meta.json").read_text())["answers"]
    assert turns(tmp_path / "out/model_answer/m.jsonl") == [["", "Yes."], ["x" * 200, ""]]
    assert (meta["empty"], meta["no_room"]) == (2, 1)
    assert any("2 of them are empty" in line for line in lines) and any("had no room" in line for line in lines)


def test_reference_answers_of_the_questions(model, engines, tmp_path):
    options = dataclasses.replace(OPTIONS, reference=True)
    questions = [QUESTIONS["alpaca_eval"](1), QUESTIONS["alpaca_eval"](2, output=None)]
    notes = []
    made("alpaca_eval", model, questions, tmp_path / "a", options=options, notes=notes, name="m").write()
    (row,) = read_answers("alpaca_eval", tmp_path / "a" / "reference_outputs.json")
    assert row == questions[0] and any("no reference answer to 1 question" in line for line in notes)
    questions = [mt_question(1, "math", reference=["a", "b"]), mt_question(2)]
    made("mt_bench", model, questions, tmp_path / "m", options=options, name="m").write()
    (row,) = read_answers("mt_bench", tmp_path / "m" / "reference_answer" / "gpt-4.jsonl")
    assert row["choices"][0]["turns"] == ["a", "b"] and row["question_id"] == 1
    (tmp_path / "m" / "reference_answer" / "gpt-4.jsonl").write_text("other\n")
    with pytest.raises(ConfigError, match=r"^--reference: .*exists with other contents"):
        made("mt_bench", model, questions, tmp_path / "m", options=options, name="m")
    with pytest.raises(ConfigError, match=r"^--reference: the questions of arena_hard have none"):
        made("arena_hard", model, [QUESTIONS["arena_hard"](1)], tmp_path / "h", options=options, name="m")
    with pytest.raises(ConfigError, match=r"^--reference: no question has a reference answer"):
        made("mt_bench", model, [mt_question(2)], tmp_path / "n", options=options, name="m")


def test_names_that_a_tool_cannot_read(model, tmp_path):
    for name in ("a/b", ".a", "a b"):
        with pytest.raises(ConfigError, match=r"^--name: .* cannot name a model in mt_bench; allowed: letters"):
            made("mt_bench", model, [mt_question(1)], tmp_path / "out", name=name)
    assert made("mt_bench", model, [mt_question(1)], tmp_path / "out")._parts[0].name == "hf"
    assert not (tmp_path / "out").exists()
