"""SmolLM2-135M through conversion: every bit comes back, and three programs continue texts alike.

Slow; wants JANUS_SMOLLM2, a Hugging Face directory of the model (tests/data/test_real_data.py says how to make it):

    JANUS_SMOLLM2=DIR pytest -n 0 -m slow tests/checkpoint/test_real_conversion.py -s
"""

import json
import os
from pathlib import Path

import jax
import jax.numpy as jnp
import pytest

from janus_jax.checkpoint.conversion_report import REPORT
from janus_jax.checkpoint.convert import check, from_hf, to_hf
from janus_jax.checkpoint.hf.read import load_hf
from janus_jax.model.attention import Slots
from janus_jax.model.mistral import Compute, logits
from tests.support.continuations import NEW_TOKENS, by_transformers, proven
from tests.support.models import read_tensors

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def original() -> Path:
    if "JANUS_SMOLLM2" not in os.environ:
        pytest.skip("JANUS_SMOLLM2 does not name a Hugging Face directory of SmolLM2-135M")
    return Path(os.environ["JANUS_SMOLLM2"])


@pytest.fixture(scope="module")
def exported(original, tmp_path_factory) -> dict[str, Path]:
    """There and back, in float32 as it is, and in bfloat16."""
    root = tmp_path_factory.mktemp("smollm2")
    from_hf(original, root / "orbax")
    to_hf(root / "orbax", root / "float32")
    to_hf(root / "orbax", root / "bfloat16", dtype="bfloat16", max_shard_size="100MB")
    from_hf(root / "bfloat16", root / "half")
    to_hf(root / "half", root / "bfloat16_back", max_shard_size="100MB")
    return {name: root / name for name in ("orbax", "float32", "bfloat16", "half", "bfloat16_back")}


def test_every_bit_comes_back_in_float32_and_bfloat16(original, exported):
    assert read_tensors(original) == read_tensors(exported["float32"])
    assert read_tensors(exported["bfloat16"]) == read_tensors(exported["bfloat16_back"])
    assert check(original, exported["orbax"]) == [] == check(exported["bfloat16"], exported["half"])
    for name, directory in exported.items():
        report = json.loads((directory / REPORT).read_text())
        print(name, report["seconds"], "largest difference of logits", report["largest_logit_difference"])
        assert (report["largest_logit_difference"] == 0) == (name != "bfloat16")


def greedy(directory: Path, ids: list[int]) -> list[int]:
    """Our own continuation, every step from the whole text: slow and without a cache to go wrong."""
    config, params = load_hf(directory)
    length = len(ids) + NEW_TOKENS
    places = jnp.arange(length, dtype=jnp.int32)[None]
    layout = Slots(jnp.ones_like(places), jnp.ones_like(places), places)
    compute = Compute(dtype=jnp.float32)
    step = jax.jit(lambda params, tokens, last: logits(config, params, tokens, layout, compute)[0, last].argmax())
    result = list(ids)
    for _ in range(NEW_TOKENS):
        padded = jnp.asarray([result + [0] * (length - len(result))], jnp.int32)
        result.append(int(step(params, padded, len(result) - 1)))
    return result[len(ids) :]


def test_three_programs_continue_texts_alike(exported, monkeypatch):
    """Up to the first step whose two best logits are nearer than 1e-3: 20 tokens at least on 8 of 10 prompts."""
    import transformers

    mistralrs = pytest.importorskip("mistralrs")
    monkeypatch.setenv("MISTRALRS_CPU_KV_F32", "1")
    directory = exported["float32"]
    tokenizer = transformers.AutoTokenizer.from_pretrained(directory)
    expected = by_transformers(directory)
    plain = mistralrs.Which.Plain(
        model_id=str(directory), arch=mistralrs.Architecture.Mistral, dtype=mistralrs.ModelDType.F32
    )
    runner = mistralrs.Runner(which=plain)
    for one in expected:
        options = {"max_tokens": NEW_TOKENS, "temperature": 0.0, "top_k": 1}
        answer = runner.send_completion_request(mistralrs.CompletionRequest(model="m", prompt=one.text, **options))
        text, smallest = answer.choices[0].text, min(one.gaps[: one.clear], default=None)
        print(f"{one.text!r}: {one.clear} steps alike, smallest gap {smallest}: {text!r}")
        assert answer.usage.prompt_tokens == len(one.prompt)
        assert text.startswith(tokenizer.decode(one.tokens[: one.clear], skip_special_tokens=True))
    assert proven(expected, [greedy(directory, list(one.prompt)) for one in expected])
