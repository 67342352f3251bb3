"""Texts that a real model continues greedily in several programs, and when their tokens count as the same."""

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
ROUNDING = TIE / 2  # of two logits; differences above it are more than what a tie is allowed for
PROMPTS_ENOUGH = 8


@dataclasses.dataclass(frozen=True)
class Continuation:
    """What transformers makes of a prompt, the yardstick for others."""

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
        """Is this one of the prompts that prove something?"""
        return self.clear >= ENOUGH or (self.ended and self.clear == len(self.tokens))

    def agrees(self, tokens: Sequence[int]) -> bool:
        """Does another program's continuation have the same tokens, as far as they are clear?"""
        return list(tokens[: self.clear]) == list(self.tokens[: self.clear])

    def difference(self, logps: Sequence[float]) -> float:
        """The largest between log-probs of the clear tokens: sees what leaves the best token the best."""
        pairs = zip(self.logps[: self.clear], logps, strict=False)
        return max((abs(ours - theirs) for ours, theirs in pairs), default=0.0)


def proven(expected: Sequence[Continuation], found: Sequence[Sequence[int]]) -> bool:
    """No continuation differs where it is clear, and enough of them are clear for long enough."""
    same = all(one.agrees(tokens) for one, tokens in zip(expected, found, strict=True))
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
