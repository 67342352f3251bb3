"""The page: one file, valid, and hostile texts stay texts."""

import base64
import hashlib
import json
import re

import pytest

from janus_jax.data.inspect.report import ReportOptions, inspect
from janus_jax.data.inspect.token_text import TokenDecoder
from tests.support.html_pages import Page

HOSTILE = "</script><img src=x onerror=alert(1)>'\"&amp;<!-- </style> ]]> {{7*7}}"


@pytest.fixture
def page_of(tmp_path, capsys):
    def make(directory, **shown) -> tuple[Page, str]:
        file = tmp_path / "page.html"
        inspect(str(directory), report=ReportOptions(html=file, **shown))
        text = file.read_text(encoding="utf-8")
        return Page(text), text

    return make


def test_a_hostile_text_stays_text(write, page_of):
    texts = [(HOSTILE, HOSTILE + " a", HOSTILE + " b")] * 3
    page, text = page_of(write("dpo", train=texts, validation=texts))
    assert not page.of("img") and len(page.of("script")) == 2 and len(page.of("style")) == 1
    assert not [name for _, attributes in page.tags for name in attributes if name.startswith("on")]
    shown = "".join(piece for element, piece in page.texts if element in ("i", "u"))
    assert "</script><img·src=x·onerror=alert(1)>'\"&amp;<!--·</style>·]]>·{{7*7}}" in shown
    beginnings = [piece for element, piece in page.texts if "3 times: " in piece]
    assert beginnings and all("</script><img src=x" in piece for piece in beginnings)
    assert text.count("</script>") == 2


def test_a_hostile_piece_of_the_vocabulary_stays_text(write, page_of, monkeypatch):
    """No piece of the embedded vocabulary ends a script by itself; one of another may."""
    token = TokenDecoder.token
    monkeypatch.setattr(TokenDecoder, "token", lambda self, id: HOSTILE if id == 2 else token(self, id))
    page, text = page_of(write("sft", train=[("What?", "So.")]))
    assert not page.of("img") and text.count("</script>") == 2
    block = next(piece for element, piece in page.texts if element == "script")
    assert "<" not in block
    rows = json.loads(block)
    assert rows["token_texts"]["2"] == HOSTILE.replace(" ", "·")


def test_the_name_of_a_directory_is_escaped_too(write, page_of):
    page, _ = page_of(write("sft", name="<b onclick=x>", train=[("What?", "So.")]))
    assert not [name for _, attributes in page.tags for name in attributes if name.startswith("on")]
    assert any("<b onclick=x>" in piece for _, piece in page.texts)


def test_it_needs_nothing_beside_it(write, page_of):
    page, text = page_of(write("sft", train=[("What?", "So.")]))
    links = [value for _, attributes in page.tags for key, value in attributes.items() if key in ("src", "href")]
    assert links and all(link and link.startswith("#") for link in links)
    assert not re.search(r"https?:|@import|url\(", text)
    ids = {attributes["id"] for _, attributes in page.tags if "id" in attributes}
    assert {link[1:] for link in links if link} <= ids
    assert {"lang": "en"} in page.of("html") and any(meta.get("name") == "viewport" for meta in page.of("meta"))


def test_its_policy_allows_its_own_script_alone(write, page_of):
    page, _ = page_of(write("sft", train=[("What?", "So.")]))
    (policy,) = [meta["content"] for meta in page.of("meta") if "http-equiv" in meta]
    script = [piece for element, piece in page.texts if element == "script"][-1]
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    assert policy and f"script-src 'sha256-{digest}'" in policy and policy.startswith("default-src 'none'")


def test_every_slot_has_its_numbers(write, page_of):
    page, _ = page_of(write("dpo", train=[("What?", "So.", "No 🐇."), ("Why?", "Thus.", "Never.")]))
    rows = json.loads(next(piece for element, piece in page.texts if element == "script"))
    (row,) = rows["rows"]
    slots = [attributes["class"] for attributes in page.of("i")]
    fed = [classes for classes in slots if classes and "target" not in classes]
    assert len(fed) == len(row["tokens"]) == len(row["segment"]) and len(slots) - len(fed) == 4
    assert [classes == "prompt" for classes in fed].count(False) == sum(row["weights"]) - 4
    assert rows["token_texts"]["2"] == "</s>" and set(rows["token_texts"]) == {
        str(i) for i in row["tokens"] + row["targets"]
    }


def test_histograms_have_axes_and_units(write, page_of):
    page, text = page_of(write("dpo", train=[("What?", "So. " * n, "No.") for n in range(1, 9)]))
    assert len(page.of("svg")) == 1 + 5 and all(svg.get("aria-label") for svg in page.of("svg"))
    for chart in re.findall(r"<svg.*?</svg>", text):
        assert chart.count('class="axis"') == 2
        assert re.search(r">(% of the row|tokens( \(.*?\))?)</text>", chart)
        assert re.search(r">(rows|examples)</text>", chart)
        counts = [int(count) for count in re.findall(r": (\d+) (?:rows|examples)</title>", chart)]
        outside = re.search(r"\((\d+) examples outside\)", chart)
        assert sum(counts) + int(outside[1] if outside else 0) in (1, 8)


def test_a_verdict_that_is_bad_is_on_the_page(write, tmp_path, capsys):
    file = tmp_path / "page.html"
    with pytest.raises(Exception, match="must not be trained on"):
        inspect(str(write("sft", train=[("<i>?", [])])), report=ReportOptions(html=file))
    page = Page(file.read_text(encoding="utf-8"))
    assert any("Do not train on this data" in piece for _, piece in page.texts)
    assert any("1 example with a response without a token" in piece for _, piece in page.texts)
