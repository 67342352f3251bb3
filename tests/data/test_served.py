"""What a build notes of its tokenizer, and `janus data inspect` of the built data."""

from janus_jax.data.build.pipeline import build
from janus_jax.data.dataset import TokenizedDataset
from janus_jax.data.inspect.boundary_check import check_boundary
from janus_jax.data.inspect.scan import scan
from janus_jax.text.served import served_lines
from tests.support.records import sft_records, write_records
from tests.support.tokenizers import byte_level


def test_a_template_of_another_tokenizer_is_noted_at_the_build_and_by_the_inspector(tmp_path):
    source = write_records(tmp_path / "rows.jsonl", sft_records())
    tokenizer = byte_level(tmp_path / "tokenizer", ("<|im_start|>", "<|im_end|>"))
    manifest = build(source, tmp_path / "data", kind="sft", tokenizer=tokenizer)
    assert manifest.served is not None
    (line,) = [line for line in served_lines(manifest.served) if "--template chatml" in line]
    dataset = TokenizedDataset(tmp_path / "data")
    check = check_boundary(dataset, dataset.lengths[:, 0].argsort())
    assert check.template_note and line == f"look at this: {check.template_note}"


def test_a_bos_that_is_a_mark_of_the_template_may_occur_again(tmp_path):
    """As in SmolLM2: every message begins with it, and the prompt with no other BOS."""
    marks = ("<|im_start|>", "<|im_end|>")
    source = write_records(tmp_path / "rows.jsonl", sft_records())
    tokenizer = byte_level(tmp_path / "tokenizer", marks, bos=marks[0])
    build(source, tmp_path / "data", kind="sft", tokenizer=tokenizer, template="chatml")
    dataset = TokenizedDataset(tmp_path / "data")
    bos = dataset.manifest.tokenizer["bos"]
    prompts = [example.prompt.tolist() for example in dataset.read(range(3))]
    assert all(prompt[0] == bos != prompt[1] and prompt.count(bos) > 1 for prompt in prompts)
    result = scan(dataset)
    assert not result.bos_again.any() and not result.bos_missing.any()
