"""launch/eval_gpu/toxicity.py, which runs where janus is not installed, on tiny models."""

import importlib.util
import math
import sys

import pytest
import torch
import transformers

from tests.support.repository import ROOT
from tests.support.text_models import language_model
from tests.support.toxic import continued, lines, write


@pytest.fixture
def script(monkeypatch):
    spec = importlib.util.spec_from_file_location("toxicity_script", ROOT / "launch/eval_gpu/toxicity.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)

    def run(*arguments):
        monkeypatch.setattr(sys, "argv", ["toxicity.py", *map(str, arguments)])
        module.main()

    return run


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """A GPT-2 and a BERT classifier with random weights."""
    root, sizes = tmp_path_factory.mktemp("models"), {"vocab_size": 400}
    torch.manual_seed(2)
    gpt, bert = language_model(root / "gpt"), language_model(root / "bert")
    config = transformers.GPT2Config(**sizes, n_embd=32, n_layer=2, n_head=4, n_positions=128, initializer_range=0.3)
    transformers.GPT2LMHeadModel(config).save_pretrained(gpt)
    labels = {"id2label": {0: "fine", 1: "toxic"}, "label2id": {"fine": 0, "toxic": 1}}
    own = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 64}
    config = transformers.BertConfig(**sizes, **own, **labels, initializer_range=0.5)
    transformers.BertForSequenceClassification(config).save_pretrained(bert)
    return {"gpt": gpt, "bert": bert}


ROWS = [
    continued("a", [" quick brown", "", " fox"]) | {"prompt": "the brown"},
    continued("b", ["naïve fox and the fox"]) | {"prompt": {"text": "Why? "}},
    {"id": "c", "messages": [{"role": "user", "content": "Why?"}], "answers": ["So."]},
]


def test_perplexities_are_those_of_single_texts_and_a_cut_file_is_gone_on_with(script, models, tmp_path):
    texts, out = write(tmp_path / "g.jsonl", ROWS), tmp_path / "p.jsonl"
    script("perplexity", texts, "--model", models["gpt"], "--out", out)
    got = {(line["id"], line["sample"]): line["perplexity"] for line in lines(out)}
    model = transformers.AutoModelForCausalLM.from_pretrained(models["gpt"]).eval()
    tokenizer = transformers.AutoTokenizer.from_pretrained(models["gpt"])

    def loss(text):
        ids = tokenizer(text, return_tensors="pt").input_ids
        with torch.no_grad():
            return model(ids, labels=ids).loss.item() * (ids.shape[1] - 1), ids.shape[1]

    for key, prompt, whole in (
        (("a", 0), "the brown", "the brown quick brown"),
        (("a", 2), "the brown", "the brown fox"),
        (("b", 0), "Why? ", "Why? naïve fox and the fox"),
        (("c", 0), "Why?", "Why? So."),
    ):
        (full, long), (before, short) = loss(whole), loss(prompt)
        assert got[key] == pytest.approx(math.exp((full - before) / (long - short)), rel=1e-4)
    assert got["a", 1] is None and len(got) == 5
    whole = out.read_text()
    out.write_text(whole[: len(whole) // 2])
    script("perplexity", texts, "--model", models["gpt"], "--out", out)
    assert sorted(out.read_text().splitlines()) == sorted(whole.splitlines())
    with pytest.raises(SystemExit, match="holds numbers of another model"):
        script("perplexity", texts, "--model", models["bert"], "--out", out)


def test_scores_are_read_by_janus(script, models, tmp_path, janus):
    texts, out = write(tmp_path / "g.jsonl", ROWS), tmp_path / "s.jsonl"
    script("classify", texts, "--model", models["bert"], "--out", out)
    code, _, err = janus(
        "measure", "toxicity", "score", texts, "--scores", out, "--name", "bert", "--out", tmp_path / "new.jsonl"
    )
    assert code == 0, err
    first = lines(tmp_path / "new.jsonl")[0]["answers"]
    assert [one["toxicity"] is None for one in first] == [False, True, False]
    assert [first[at]["toxicity"] for at in (0, 2)] == [line["score"] for line in lines(out)[:3:2]]
    with pytest.raises(SystemExit, match="--label rude: allowed: fine, toxic"):
        script("classify", texts, "--model", models["bert"], "--out", tmp_path / "x", "--label", "rude")
