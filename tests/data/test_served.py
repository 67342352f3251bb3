"""What a build notes of its tokenizer, and `janus data inspect` of the built data."""

from janus_jax.data.build.pipeline import build
from janus_jax.data.dataset import TokenizedDataset
from janus_jax.data.inspect.boundary_check import check_boundary
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
