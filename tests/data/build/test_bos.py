"""Data without BOS: the ids of transformers without special tokens, in training, in samples and in exports."""

import json

import pytest
import transformers

from janus_jax.checkpoint.stored_model import open_model
from janus_jax.data.build.pipeline import build
from janus_jax.data.dataset import TokenizedDataset
from janus_jax.data.from_config import open_training
from janus_jax.data.inspect.scan import scan
from janus_jax.errors import ConfigError
from janus_jax.text.template import get_template
from janus_jax.training.run import train
from tests.support.records import TEXTS, pair_records, write_records
from tests.support.run_configs import ONE_LAYER, run_config


def plain(dataset):
    """Examples and texts, without those that spell a control token, which a server parses."""
    pairs = zip(dataset.read(range(len(TEXTS))), TEXTS, strict=True)
    return [(example, texts) for example, texts in pairs if "s>" not in "".join(texts)]


@pytest.fixture(scope="module", params=["mistral-inst", "chatml"])
def data(request, tmp_path_factory):
    root = tmp_path_factory.mktemp(request.param)
    source = write_records(root / "pairs.jsonl", pair_records())
    for name, bos in (("orpo", False), ("with", True)):
        build(source, root / name, kind="orpo", template=request.param, bos=bos)
    return root


@pytest.fixture(scope="module")
def server(data):
    """The tokenizer of the build, as transformers reads it."""
    return transformers.AutoTokenizer.from_pretrained(data / "orpo" / "tokenizer")


def test_ids_are_those_of_transformers_without_special_tokens(data, server):
    dataset = TokenizedDataset(data / "orpo")
    template, examples = get_template(dataset.manifest.template), plain(dataset)
    assert len(examples) == len(TEXTS) - 1
    for example, (system, prompt, chosen, rejected) in examples:
        for part, text in (
            (example.prompt, template.prompt_text(system, prompt)),
            (example.chosen[:-1], chosen + template.end),
            (example.rejected[:-1], rejected + template.end),
        ):
            assert part.tolist() == server(text, add_special_tokens=False)["input_ids"]
        assert example.chosen[-1] == example.rejected[-1] == server.eos_token_id


def test_only_bos_is_left_out(data):
    without, held = TokenizedDataset(data / "orpo"), TokenizedDataset(data / "with")
    for mine, other in zip(without.read(range(len(TEXTS))), held.read(range(len(TEXTS))), strict=True):
        assert other.prompt.tolist() == [1, *mine.prompt.tolist()]
        assert other.chosen.tolist() == mine.chosen.tolist()
    assert (without.manifest.bos, held.manifest.bos) == (False, True)
    assert without.fingerprint != held.fingerprint
    assert not scan(without).bos_missing.any()


def config(data, name="orpo", **changes):
    return run_config(
        data,
        data / "run",
        "orpo",
        data={"dir": str(data / name)},
        model=ONE_LAYER | {"vocab_size": 32000},
        batch={"rows": 8, "row_length": 256, "max_sequence_length": 128, "microbatches": 1},
        schedule={"epochs": None, "steps": 1, "warmup_steps": 0},
        eval={"every_steps": None},
        export={"hf": True, "verify": "none"},
        **changes,
    )


def test_data_and_configuration_must_agree(data):
    with pytest.raises(ConfigError, match=r"was built without BOS, but compat.bos=true; set that to false, or build"):
        open_training(config(data))
    with pytest.raises(
        ConfigError, match=r"was built with BOS, but compat.bos=false; .* janus data build .* --no-bos$"
    ):
        open_training(config(data, "with", compat={"bos": False}))


def test_an_export_reads_conversations_without_bos(data):
    if data.name.startswith("mistral"):
        pytest.skip("one run is enough")
    ended = train(config(data, compat={"bos": False}), writers=())
    exported = transformers.AutoTokenizer.from_pretrained(ended.export_dir)
    chat = open_model(data / "run").chat_format()
    for example, (system, prompt, _, _) in plain(TokenizedDataset(data / "orpo")):
        messages = [{"role": "system", "content": system}] * bool(system) + [{"role": "user", "content": prompt}]
        served = exported.apply_chat_template(messages, add_generation_prompt=True, return_dict=False)
        assert served == example.prompt.tolist() == chat.encode_prompt(system, prompt)
    assert "bos_token" not in exported.chat_template
    assert json.loads((data / "orpo" / "manifest.json").read_text())["bos"] is False
