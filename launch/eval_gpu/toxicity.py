"""Perplexities or scores of continuations with torch, on a GPU machine: needs only torch and transformers.

    python3 toxicity.py perplexity texts.jsonl --model gpt2-xl --out perplexities.jsonl
    python3 toxicity.py classify texts.jsonl --model unitary/toxic-bert --label toxic --out scores.jsonl

texts.jsonl is what `janus measure toxicity run` writes. `janus measure toxicity score --scores` and `perplexity
--perplexities` read the output. Stopped and started again, it goes on where it was.
"""

import argparse
import json
import math
import os
import sys
from collections.abc import Callable, Iterator
from typing import Any

Row = tuple[str, str, bool, list[str]]
"""Id, prompt, whether it was a message of a chat, continuations."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["perplexity", "classify"])
    parser.add_argument("texts", help="rows of janus measure toxicity run")
    parser.add_argument("--model", required=True, help="hub id or directory")
    parser.add_argument("--out", required=True, help="JSONL file; an existing one is gone on with")
    parser.add_argument("--label", default="toxic", help="classify: the label of toxic texts")
    parser.add_argument("--dtype", default="float32", choices=["float32", "bfloat16", "float16"])
    options = parser.parse_args()
    rows = list(_rows(options.texts))
    done = _begun(options.out, options.model)
    left = [row for row in rows if any((row[0], at) not in done for at in range(len(row[3])))]
    if done:
        print(f"{len(rows) - len(left):,} of {len(rows):,} prompts are in {options.out}", file=sys.stderr)
    if left:
        make = {"perplexity": _perplexity, "classify": _classifier}[options.what]
        key = {"perplexity": "perplexity", "classify": "score"}[options.what]
        _write(left, done, make(options), key, options)
    print(f"wrote {options.out}")


def _write(left: list[Row], done: set, values_of: Callable[[Row], list[float | None]], key: str, options: Any) -> None:
    with open(options.out, "a", encoding="utf-8") as out:
        for number, row in enumerate(left, 1):
            for at, value in enumerate(values_of(row)):
                if (row[0], at) not in done:
                    line: dict[str, Any] = {"id": row[0], "sample": at, key: value, "model": options.model}
                    out.write(json.dumps(line) + "\n")
            out.flush()
            if number % 50 == 0:
                print(f"{number:,} of {len(left):,} prompts", file=sys.stderr)


def _perplexity(options: Any) -> Callable[[Row], list[float | None]]:
    """exp of the mean negative log-likelihood after the prompt, as the published script computes it."""
    import torch
    import transformers

    device = "cuda" if torch.cuda.is_available() else "cpu"
    tokenizer = transformers.AutoTokenizer.from_pretrained(options.model)
    model: Any = transformers.AutoModelForCausalLM.from_pretrained(options.model, dtype=getattr(torch, options.dtype))
    model = model.to(device).eval()

    def losses(texts: list[str]) -> tuple[list[float], list[int]]:
        """Of each text: the sum over its tokens after the first, and how many tokens it has."""
        ids = [tokenizer(text).input_ids for text in texts]
        tokens = torch.zeros(len(ids), max(map(len, ids)), dtype=torch.long, device=device)
        mask = torch.zeros_like(tokens)
        for at, own in enumerate(ids):
            tokens[at, : len(own)], mask[at, : len(own)] = torch.tensor(own), 1
        with torch.no_grad():
            logits = model(tokens, attention_mask=mask).logits[:, :-1].float()
        logps = logits.log_softmax(-1).gather(-1, tokens[:, 1:, None])[..., 0]
        return (-(logps * mask[:, 1:]).double().sum(-1)).tolist(), [len(own) for own in ids]

    def values(row: Row) -> list[float | None]:
        _, prompt, is_chat, texts = row
        sums, lengths = losses([prompt, *(_whole(prompt, text, is_chat) for text in texts)])
        pairs = [(total - sums[0], length - lengths[0]) for total, length in zip(sums[1:], lengths[1:], strict=True)]
        return [math.exp(min(total / more, 700.0)) if more > 0 else None for total, more in pairs]

    return values


def _classifier(options: Any) -> Callable[[Row], list[float | None]]:
    import torch
    from transformers.pipelines import pipeline

    dtype = getattr(torch, options.dtype)
    device = 0 if torch.cuda.is_available() else -1
    made: Any = pipeline("text-classification", model=options.model, top_k=None, device=device, dtype=dtype)
    labels = list(made.model.config.id2label.values())
    if options.label not in labels:
        sys.exit(f"error: --label {options.label}: allowed: {', '.join(map(str, labels))}")

    def values(row: Row) -> list[float | None]:
        texts = [text for text in row[3] if text.strip()]
        results = iter(made(texts, batch_size=64, truncation=True) if texts else [])
        known = [next(results) if text.strip() else None for text in row[3]]
        return [None if own is None else _score(own, options.label) for own in known]

    return values


def _score(scores: list[dict[str, Any]], label: str) -> float:
    return next(float(one["score"]) for one in scores if one["label"] == label)


def _whole(prompt: str, text: str, is_chat: bool) -> str:
    """As janus joins them: a blank parts an answer from the message that it answers."""
    apart = is_chat and text and not (prompt[-1:].isspace() or text[0].isspace())
    return prompt + (" " if apart else "") + text


def _rows(path: str) -> Iterator[Row]:
    with open(path, encoding="utf-8") as file:
        for number, line in enumerate(file, 1):
            try:
                raw = json.loads(line)
                is_chat = "messages" in raw
                prompt = raw["messages"][-1]["content"] if is_chat else raw["prompt"]
                texts = [one["text"] if isinstance(one, dict) else one for one in raw["answers"]]
                yield str(raw["id"]), prompt["text"] if isinstance(prompt, dict) else prompt, is_chat, texts
            except (ValueError, KeyError, TypeError, IndexError) as error:
                sys.exit(f"error: {path}:{number}: needs id, prompt or messages, and answers ({error!r})")


def _begun(path: str, model: str) -> set:
    """What the output holds, without a last line that was cut off."""
    if not os.path.exists(path):
        return set()
    with open(path, "rb+") as file:
        content = file.read()
        whole = content[: content.rfind(b"\n") + 1]
        file.truncate(len(whole))
    lines = [json.loads(line) for line in whole.splitlines()]
    if any(line.get("model") != model for line in lines):
        sys.exit(f"error: --out {path}: holds numbers of another model; choose another name")
    return {(line["id"], line["sample"]) for line in lines}


if __name__ == "__main__":
    main()
