"""Prompts that several programs continue greedily with a real model, and when their tokens count as equal."""

import dataclasses
from collections.abc import Sequence
from pathlib import Path

PROMPTS = (
    "The capital of France is",
    "Water boils at",
    "Once upon a time there was a",
    "def fibonacci(n):\n",
    "The three primary colours are",
    "Dear Sir or Madam,\n\n",
    "1, 2, 3, 5, 8,",
    "To make bread, you need",
    "The theory of evolution says that",
    "A list of European capitals:\n",
)
NEW_TOKENS, ENOUGH, TIE = 24, 20, 1e-3
ROUNDING = TIE / 2  # each of two logits may move so far before a gap of TIE closes
PROMPTS_ENOUGH = 8


@dataclasses.dataclass(frozen=True)
class Continuation:
    """How transformers continues a prompt; others are measured by it."""

    text: str
    prompt: Sequence[int]
    tokens: Sequence[int]
    logps: Sequence[float]  # of the tokens
    gaps: Sequence[float]  # between the two best logits of each step
    ended: bool  # with EOS

    @property
    def clear(self) -> int:
        """Steps before the first whose two best logits are nearer than TIE: there, rounding may choose."""
        return next((step for step, gap in enumerate(self.gaps) if gap < TIE), len(self.gaps))

    @property
    def enough(self) -> bool:
        """Long enough to prove something."""
        return self.clear >= ENOUGH or (self.ended and self.clear == len(self.tokens))

    def agrees(self, tokens: Sequence[int]) -> bool:
        """True where another program has the same tokens, as far as they are clear."""
        return list(tokens[: self.clear]) == list(self.tokens[: self.clear])

    def difference(self, logps: Sequence[float]) -> float:
        """Largest difference between log-probs of the clear tokens: shows faults that leave the best token the best."""
        pairs = zip(self.logps[: self.clear], logps, strict=False)
        return max((abs(ours - theirs) for ours, theirs in pairs), default=0.0)


def proven(expected: Sequence[Continuation], others: Sequence[Sequence[int]]) -> bool:
    """True if no continuation differs where it is clear, and enough are clear for long enough."""
    same = all(one.agrees(tokens) for one, tokens in zip(expected, others, strict=True))
    return same and sum(one.enough for one in expected) >= PROMPTS_ENOUGH


def by_transformers(directory: Path) -> list[Continuation]:
    """transformers continues every prompt in float32."""
    import torch
    import transformers

    tokenizer = transformers.AutoTokenizer.from_pretrained(directory)
    model = transformers.AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32)
    options = {"max_new_tokens": NEW_TOKENS, "do_sample": False, "pad_token_id": tokenizer.eos_token_id}
    continuations = []
    for text in PROMPTS:
        prompt = tokenizer(text, return_tensors="pt")
        ids = prompt["input_ids"][0].tolist()
        done = model.generate(**prompt, **options, output_logits=True, return_dict_in_generate=True)
        tokens = done.sequences[0, len(ids) :]
        logits = torch.cat(done.logits)
        best = torch.topk(logits, 2).values
        logps = logits.log_softmax(-1).gather(1, tokens[:, None])[:, 0].tolist()
        gaps = (best[:, 0] - best[:, 1]).tolist()
        ended = int(tokens[-1]) == tokenizer.eos_token_id
        continuations.append(Continuation(text, ids, tokens.tolist(), logps, gaps, ended))
    return continuations
