"""Runs in vLLM's own environment, where nothing of this project is: prompts in, greedy tokens out, as JSON."""

import json
import sys
from pathlib import Path

from vllm import LLM, SamplingParams


def main() -> None:
    request, answer = map(Path, sys.argv[1:])
    wanted = json.loads(request.read_text())
    model = LLM(model=wanted["directory"], dtype="float32", max_model_len=512, enforce_eager=True)
    sampling = SamplingParams(temperature=0.0, max_tokens=wanted["new_tokens"], logprobs=1)
    prompts = [{"prompt_token_ids": ids} for ids in wanted["prompts"]]
    outputs = [output.outputs[0] for output in model.generate(prompts, sampling)]
    result = {
        "architecture": model.llm_engine.model_config.architecture,
        "tokens": [list(output.token_ids) for output in outputs],
        "logps": [
            [step[token].logprob for step, token in zip(output.logprobs, output.token_ids, strict=True)]
            for output in outputs
        ],
        "prompts": [model.get_tokenizer().encode(text) for text in wanted["texts"]],
    }
    answer.write_text(json.dumps(result))


if __name__ == "__main__":
    main()
