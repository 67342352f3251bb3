"""lm-evaluation-harness, unchanged, against the server. Slow; wants lm_eval 0.4.13 and transformers:

JANUS_LM_EVAL=PYTHON pytest -n 0 -m slow tests/serving/test_lm_eval.py
"""

import json
import os
import shutil
import subprocess
import sys

import pytest

pytestmark = pytest.mark.slow

TASK = """
task: {name}
dataset_path: json
dataset_name: null
dataset_kwargs: {{data_files: {{test: {data}}}}}
test_split: test
"""
CHOICES = """
output_type: multiple_choice
doc_to_text: "{{context}}"
doc_to_target: 0
doc_to_choice: "{{[first, second]}}"
metric_list: [{metric: acc}]
"""
WRITTEN = """
output_type: generate_until
doc_to_text: "{{context}}"
doc_to_target: "{{first}}"
generation_kwargs: {until: ["="], max_gen_toks: 12}
metric_list: [{metric: exact_match}]
"""
DOCS = [
    {"context": "", "first": "The bread rises.", "second": "The bread falls."},  # CrowS-Pairs has no context
    {"context": "the quick brown", "first": "fox", "second": "naïve 世界"},
    {"context": "don't 안녕 ", "first": "3.14", "second": "x*2 — é"},
    {"context": "the quick brown fox " * 3, "first": "don't", "second": "😀"},
]


@pytest.fixture
def reader(tiny, tmp_path):
    """The model's tokenizer as lm-eval reads it: with BOS where special tokens are asked for, as Mistral's has it."""
    import tokenizers
    import transformers

    shutil.copytree(tiny[0], tmp_path / "tokenizer", ignore=shutil.ignore_patterns("*.safetensors"))
    made = tokenizers.Tokenizer.from_file(str(file := tmp_path / "tokenizer" / "tokenizer.json"))
    bos = [("<s>", made.token_to_id("<s>"))]
    made.post_processor = tokenizers.processors.TemplateProcessing(single="<s> $A", special_tokens=bos)
    made.save(str(file))
    return transformers.AutoTokenizer.from_pretrained(tmp_path / "tokenizer")


@pytest.fixture
def run(reader, server, tmp_path):
    """Runs the tasks `choices` and `written`; the samples of each."""
    python = os.environ.get("JANUS_LM_EVAL", sys.executable)
    if subprocess.run([python, "-c", "import lm_eval, transformers"], capture_output=True).returncode:
        pytest.skip("lm_eval is not installed; JANUS_LM_EVAL may name a Python that has it")
    for name, rest, docs in (("choices", CHOICES, DOCS), ("written", WRITTEN, DOCS[1:])):
        (tmp_path / f"{name}.json").write_text(json.dumps(docs))
        (tmp_path / f"{name}.yaml").write_text(TASK.format(name=name, data=tmp_path / f"{name}.json") + rest)
    base = f"model=tiny,base_url={server.url}/completions,tokenizer={reader.name_or_path},max_length=128"

    def told(options, batch):
        command = [python, "-m", "lm_eval", "--model", "local-completions", "--model_args", base + options]
        command += ["--tasks", "choices,written", "--include_path", tmp_path, "--output_path", tmp_path / "out"]
        command += ["--batch_size", batch, "--log_samples"]
        quiet = {"HF_HUB_OFFLINE": "1", "HF_DATASETS_CACHE": str(tmp_path / "cache")}
        done = subprocess.run([*map(str, command)], env=os.environ | quiet, capture_output=True, text=True, timeout=300)
        assert done.returncode == 0, done.stderr[-3000:]
        files = {name: next((tmp_path / "out").rglob(f"samples_{name}_*.jsonl")) for name in ("choices", "written")}
        return {name: [json.loads(line) for line in file.read_text().splitlines()] for name, file in files.items()}

    return told


@pytest.mark.parametrize("bos", [False, True])
def test_log_likelihoods_and_texts_are_those_of_the_engine(run, reader, server, opened, bos):
    samples = run(f",add_bos_token={bos},num_concurrent=4", 1 + 2 * bos)
    engine, written = opened
    pairs, told = [], []
    for sample in samples["choices"]:
        for arguments, ((score, greedy),) in zip(sample["arguments"].values(), sample["resps"], strict=True):
            context, continuation = arguments["arg_0"], arguments["arg_1"]
            if moved := context[len(context.rstrip()) :]:
                context, continuation = context.rstrip(), moved + continuation
            first = [written.tokenizer.bos_id] * bos if context else [reader.bos_token_id]
            before = [*first, *written.tokenizer.encode(context)]
            whole = [*first, *written.tokenizer.encode(context + continuation)]
            pairs.append((before, whole[len(before) :]))
            told.append((float(score), greedy in (True, "True")))
    expected = engine.log_probs(pairs)
    assert [score for score, _ in told] == pytest.approx([one.total for one in expected], abs=1e-3)
    assert [greedy for _, greedy in told] == [one.is_greedy for one in expected]
    for sample in samples["written"]:
        ids = [*[written.tokenizer.bos_id] * bos, *written.tokenizer.encode(sample["arguments"]["gen_args_0"]["arg_0"])]
        body = {"prompt": ids, "max_tokens": 12, "temperature": 0, "stop": ["=", reader.eos_token]}
        assert sample["resps"][0][0] == server.ask("/v1/completions", body)[1]["choices"][0]["text"]
