"""`janus eval` on real documents of Winogender, CrowS-Pairs and BBQ with SmolLM2-135M, as `lm_eval --model hf`.

Slow; wants JANUS_SMOLLM2, a Hugging Face directory of the model (tests/data/test_real_data.py says how to make it), and
JANUS_BIAS_DATA, a directory with wino_part.json, crows_part.json and bbq_part.json, rows of the published sets:

    XLA_FLAGS= JANUS_SMOLLM2=DIR JANUS_BIAS_DATA=DIR pytest -n 0 -m slow tests/evaluation/harness/test_real_model.py -s

Without XLA_FLAGS, XLA optimizes: the flags of other tests make a large model slow.
"""

import json
import os
import shutil
import time
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow
pytest.importorskip("lm_eval", reason="extra eval")
pytest.importorskip("accelerate", reason="lm_eval's model hf needs it")

from tests.support import harness  # noqa: E402

LIMIT = 8
FILES = {"winogender_all": "wino_part", "crows_pairs_english": "crows_part", "bbq": "bbq_part"}


def test_flags_are_equal_and_log_probs_within_a_thousandth(janus, tmp_path, monkeypatch):
    model, source = os.environ.get("JANUS_SMOLLM2"), os.environ.get("JANUS_BIAS_DATA")
    if model is None or source is None:
        pytest.skip("JANUS_SMOLLM2 and JANUS_BIAS_DATA are not set")
    from lm_eval.models.huggingface import HFLM

    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "cache"))
    for name, file in FILES.items():
        shutil.copy(Path(source) / f"{file}.json", tmp_path / f"{name}.json")
    shutil.copy(tmp_path / "bbq.json", tmp_path / "bbq_generate.json")
    options = ["--data-dir", tmp_path, "--out", tmp_path / "out", "--devices", 1]
    start = time.monotonic()
    assert janus("eval", model, "--social-bias", "--limit", LIMIT, *options)[0] == 0
    mine = time.monotonic() - start
    texts = ["--tasks", "bbq_generate", "--limit", 8, "--max-new-tokens", 16]
    assert janus("eval", model, *texts, *options)[0] == 0
    theirs = HFLM(pretrained=model, dtype="float32", device="cpu", batch_size=8)
    pairs, scores = [], []
    for name in FILES:
        (file,) = (tmp_path / "out").rglob(f"samples_{name}_2*.jsonl")
        for sample in map(json.loads, file.read_text().splitlines()):
            for asked, (answer,) in zip(sample["arguments"].values(), sample["resps"], strict=True):
                pairs.append(harness.instance("loglikelihood", asked["arg_0"], asked["arg_1"]))
                scores.append((float(answer[0]), answer[1] in (True, "True")))
    start = time.monotonic()
    expected = theirs.loglikelihood(pairs)
    print(
        f"{len(pairs)} log-likelihoods: {mine:.0f} s with janus eval in all, {time.monotonic() - start:.0f} s with hf"
    )
    furthest = max(abs(one - other) for (one, _), (other, _) in zip(scores, expected, strict=True))
    print(f"furthest {furthest:.1e}; sums from {min(score for score, _ in scores):.0f}")
    print(f"greedy: {sum(greedy for _, greedy in scores)}")
    assert [greedy for _, greedy in scores] == [greedy for _, greedy in expected]
    assert furthest < 1e-3
    (file,) = (tmp_path / "out").rglob("samples_bbq_generate_*.jsonl")
    written = [json.loads(line) for line in file.read_text().splitlines()]
    prompts = [harness.instance("generate_until", *one["arguments"]["gen_args_0"].values()) for one in written]
    assert [one["resps"][0][0] for one in written] == theirs.generate_until(prompts)
