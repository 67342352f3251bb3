"""Prompts of every source into conversations, and FILE:LINE for what cannot be one."""

import gzip
import io
import json

import pytest

from janus_jax.data.tally import Tally
from janus_jax.errors import DataError
from janus_jax.generation.prompt_file import PromptRow, notes, raw_rows, read_prompts


def conversation(*contents, system=None):
    """Messages of user and assistant in turn."""
    turns = [{"role": ("user", "assistant")[i % 2], "content": content} for i, content in enumerate(contents)]
    return [*([] if system is None else [{"role": "system", "content": system}]), *turns]


ROWS = [
    ({"prompt": "Why?"}, conversation("Why?")),
    ({"system": "Be short.", "prompt": " Why? "}, conversation(" Why? ", system="Be short.")),
    ({"system_prompt": "S", "instruction": "Add.", "input": "1 2"}, conversation("Add.\n1 2", system="S")),
    ({"system": None, "user_prompt": "Why?", "input": ""}, conversation("Why?")),
    ({"system": "", "prompt": "Why?"}, conversation("Why?")),
    ({"messages": conversation("a", "b", "c", system="S")}, conversation("a", "b", "c", system="S")),
    (
        {
            "conversations": [
                {"from": "human", "value": "a"},
                {"from": "gpt", "value": "b"},
                {"from": "human", "value": "c"},
            ]
        },
        conversation("a", "b", "c"),
    ),
    ({"prompt": conversation("a"), "system": "S"}, conversation("a", system="S")),
    ({"messages": conversation("a", system="S"), "system": "S"}, conversation("a", system="S")),
    ({"messages": conversation("a", system=None), "prompt": None}, conversation("a")),
]


@pytest.fixture
def stdin(monkeypatch):
    return lambda content: monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(content)))


@pytest.fixture
def write(tmp_path):
    def write(content, name="prompts.jsonl"):
        path = tmp_path / name
        content = content if isinstance(content, bytes) else "\n".join(map(json.dumps, content)).encode()
        path.write_bytes(gzip.compress(content) if name.endswith(".gz") else content)
        return path

    return write


def test_rows_become_conversations(write):
    rows = read_prompts(write([row for row, _ in ROWS]))
    assert [list(row.messages) for row in rows] == [messages for _, messages in ROWS]


@pytest.mark.parametrize("name", ["a.jsonl", "a.ndjson", "a.json", "a.JSONL.gz", "-"])
def test_every_source_of_objects_gives_the_same_rows(write, stdin, name):
    objects = [{"prompt": "Why?"}, {"prompt": "How?"}]
    content = json.dumps(objects).encode() if ".json" in name and "l" not in name else None
    lines = content or b"\xef\xbb\xbf" + "\n\n".join(map(json.dumps, objects)).encode()
    source = "-" if name == "-" else write(lines, name)
    stdin(lines)
    rows = read_prompts(source)
    assert [row.messages[0]["content"] for row in rows] == ["Why?", "How?"]
    numbers = ["1", "2"] if content else ["1", "3"]
    assert [row.place for row in rows] == [f"{'stdin' if name == '-' else source}:{number}" for number in numbers]


@pytest.mark.parametrize("name", ["a.txt", "-"])
def test_lines_of_text_are_prompts(write, stdin, name):
    content = "[INST] é\r\n\n  \n last".encode()
    source = "-" if name == "-" else write(content, name)
    stdin(content)
    rows = read_prompts(source)
    assert [row.messages[0]["content"] for row in rows] == ["[INST] é", " last"]
    assert [row.place.rpartition(":")[2] for row in rows] == ["1", "4"]


def test_the_system_message_of_the_command_goes_to_rows_without_one(write):
    objects = [{"prompt": "a"}, {"prompt": "b", "system": "own"}, {"prompt": "c", "system": ""}]
    rows = read_prompts(write([*objects, {"messages": conversation("d")}]), system="S")
    assert [row.messages[:-1] for row in rows] == [
        ({"role": "system", "content": "S"},),
        ({"role": "system", "content": "own"},),
        (),
        ({"role": "system", "content": "S"},),
    ]


def test_other_columns_are_kept_and_counted(write):
    unread = Tally()
    first = {"id": 7, "prompt": "a", "source": {"set": "koala"}, "empty": None, "tags": [], "system": None}
    path = write([first, {"id": "b", "messages": [conversation("b")[0] | {"name": "Ann"}], "source": "x"}])
    rows = read_prompts(path, unread=unread)
    kept = {"id": 7, "source": {"set": "koala"}, "empty": None, "tags": []}
    assert [row.rest for row in rows] == [kept, {"id": "b", "source": "x"}]
    assert unread == {"source": 2, "messages.name": 1}
    assert unread.places["messages.name"] == [f"{path}:2"]
    assert list(notes(rows, unread)) == [
        "'source' of 2 rows is no part of the prompt; it is kept beside the answer",
        "'messages.name' of 1 row is no part of the prompt; it is left out",
    ]


def test_a_column_that_the_output_writes_itself_is_refused(write):
    path = write([{"prompt": "a", "answers": None}, {"prompt": "b", "answers": ["gold"]}])
    with pytest.raises(DataError, match=rf"^{path}:2: column 'answers' would be lost: the output has its own"):
        read_prompts(path, written=("answers",))
    assert read_prompts(path)[1].rest == {"answers": ["gold"]}


def test_prompts_come_from_a_bucket(bucket, write):
    from google.cloud import storage

    client = storage.Client(project="test").bucket(bucket.removeprefix("gs://"))
    client.blob("in/prompts.jsonl").upload_from_string(b'{"prompt": "Why?"}\n{"prompt": ""}\n')
    client.blob("in/good.txt").upload_from_string(b"Why?")
    assert read_prompts(f"{bucket}/in/good.txt") == [PromptRow(tuple(conversation("Why?")))]
    with pytest.raises(DataError, match=f"^{bucket}/in/prompts.jsonl:2: column 'prompt' is empty"):
        read_prompts(f"{bucket}/in/prompts.jsonl")


BAD = {
    "no prompt": ({"id": 1}, "a row needs prompt"),
    "no object": (["Why?"], r"a row must be an object, found list \['Why\?'\]"),
    "null": ({"prompt": None}, "column 'prompt' is null; text is needed"),
    "null under another name": ({"instruction": None}, "column 'instruction' is null; text is needed"),
    "empty": ({"prompt": " "}, "column 'prompt' is empty"),
    "invisible": ({"prompt": "\u200b"}, "column 'prompt' holds only invisible characters"),
    "number": ({"prompt": 3}, "column 'prompt' must be a string, found int 3"),
    "surrogate": ({"prompt": "\ud800"}, "column 'prompt' holds .* not valid Unicode"),
    "system": ({"prompt": "a", "system": ["x"]}, "column 'system' must be a string"),
    "both": ({"prompt": "a", "messages": conversation("a")}, "has both 'prompt' and 'messages'; keep one"),
    "two names": ({"prompt": "a", "instruction": "b"}, "columns prompt and instruction mean the same but differ"),
    "two systems": ({"messages": conversation("a", system="S"), "system": "T"}, "column 'system' and the system mess"),
    "answered": ({"messages": conversation("a", "b")}, "has the roles user, assistant; allowed: .* user last"),
    "order": ({"messages": conversation("a") * 2}, "has the roles user, user; allowed"),
    "late system": ({"messages": conversation("a") + conversation(system="S")}, "has the roles user, system; allowed"),
    "only system": ({"messages": conversation(system="S")}, "has the roles system; allowed"),
    "none": ({"messages": []}, "has the roles none; allowed"),
    "role": ({"messages": [{"role": "tool", "content": "a"}]}, "message 1 has role str 'tool'; allowed"),
    "parts": ({"messages": [{"role": "user", "content": [{"text": "a"}]}]}, "content of message 1 must be a string"),
    "text": ({"messages": ["a"]}, "message 1 is str 'a'; allowed"),
}


@pytest.mark.parametrize(("row", "message"), BAD.values(), ids=BAD)
def test_a_row_that_is_no_prompt_is_named(write, row, message):
    path = write([{"prompt": "good"}, row])
    with pytest.raises(DataError, match=rf"^{path}:2: .*{message}") as error:
        read_prompts(path)
    assert error.value.exit_code == 2 and "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("content", "name", "message"),
    [
        (b"", "a.jsonl", ": is empty; at least one prompt is needed"),
        (b"\n \n", "a.txt", ": is empty; at least one prompt is needed"),
        (b"{}", "a.csv", ": unknown file type '.csv'; allowed: .jsonl, .ndjson or .json"),
        (b"{}", "a.parquet", ": unknown file type '.parquet'"),
        (b'[\n{"prompt": "a"}\n{"prompt": "b"}]', "a.json", ": not valid JSON at line 3, character 1: Expecting ','"),
        (b"ok\nq\x00", "a.txt", ":2: holds a zero byte, so this is no text file"),
        (b"\x7fELF\xff", "a.txt", ":1: not UTF-8: byte 0xff at position 5"),
        (b'{"prompt": "a"}\n{"prompt": "b"', "a.jsonl", ":2: not valid JSON, the last line of the file"),
        (b'{"prompt": "a", "prompt": "b"}', "a.jsonl", ":1: names the key 'prompt' twice"),
    ],
)
def test_a_file_that_holds_no_prompts_is_named(write, content, name, message):
    path = write(content, name)
    with pytest.raises(DataError) as error:
        read_prompts(path)
    assert str(error.value).startswith(f"{path}{message}")


def test_a_file_that_is_not_there_is_named(tmp_path, stdin):
    for name in ("none.txt", "none.jsonl"):
        with pytest.raises(DataError, match=rf"{name}: cannot be read: No such file"):
            read_prompts(tmp_path / name)
    for name, message in (("", "'': names no file"), (tmp_path, f"{tmp_path}: is a directory")):
        with pytest.raises(DataError, match=rf"^{message}"):
            read_prompts(name)
    listed = b'[{"prompt": "a"}]', "stdin: is one JSON list; send one object a line"
    for content, message in ((b"a\n\xff", "stdin:2: not UTF-8"), (b"", "stdin: is empty"), listed):
        stdin(content)
        with pytest.raises(DataError, match=message):
            read_prompts("-")


def test_where_rows_are_objects_plain_text_is_none(write, stdin):
    with pytest.raises(DataError, match=r"unknown file type '\.txt'; allowed: \S+ \S+ or \S+ \(.*\), or - for"):
        list(raw_rows(write(b"Why?", "a.txt"), lines=False))
    stdin(b"[1] Why?")
    assert [message["content"] for row in read_prompts("-") for message in row.messages] == ["[1] Why?"]
    stdin(b"Why?")
    ((_, error),) = raw_rows("-", lines=False)
    assert "not valid JSON" in str(error)
