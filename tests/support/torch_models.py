"""Small random models of transformers, and what they say."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
import transformers

SMALL = dict(
    vocab_size=96,
    hidden_size=32,
    intermediate_size=56,
    num_hidden_layers=2,
    num_attention_heads=4,
    num_key_value_heads=2,
    max_position_embeddings=128,
    sliding_window=None,
    tie_word_embeddings=False,
    initializer_range=0.2,  # large, so that attention is far from uniform
    rope_parameters={"rope_type": "default", "rope_theta": 1e4},
    rms_norm_eps=1e-5,
    bos_token_id=1,
    eos_token_id=2,
)


def mistral(**changes: Any) -> Any:
    """A Mistral with random weights in float32, norms included."""
    torch.manual_seed(0)
    model = transformers.MistralForCausalLM(transformers.MistralConfig(**(SMALL | changes))).float().eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "norm" in name:
                parameter.add_(0.3 * torch.randn_like(parameter))
    return model


def greedy(model: Any, prompt: Sequence[int], count: int, stop: Sequence[int] = ()) -> tuple[list[int], int]:
    """Greedy tokens as transformers' `generate` makes them, and how many come before the first whose two best logits
    are closer than 1e-3."""
    with torch.no_grad():
        out = model.generate(
            torch.tensor([list(prompt)]),
            attention_mask=torch.ones(1, len(prompt), dtype=torch.long),
            max_new_tokens=count,
            do_sample=False,
            eos_token_id=list(stop) or None,
            pad_token_id=0,
            output_logits=True,
            return_dict_in_generate=True,
        )
    best = torch.stack(out.logits)[:, 0].topk(2).values
    close = np.flatnonzero((best[:, 0] - best[:, 1]).numpy() < 1e-3)
    ids = out.sequences[0, len(prompt) :].tolist()
    return ids, int(close[0]) if len(close) else len(ids)


def most_probable(model: Any, prompt: Sequence[int], ids: Sequence[int], count: int) -> tuple[np.ndarray, np.ndarray]:
    """The most probable ids [len(ids), count + 1] before each of `ids`, and their log-probs."""
    with torch.no_grad():
        logits = model(torch.tensor([[*prompt, *ids]])).logits[0, len(prompt) - 1 : -1].double()
    best = torch.log_softmax(logits, -1).topk(count + 1)
    return best.indices.numpy(), best.values.numpy()


def log_probs(model: Any, context: Sequence[int], continuation: Sequence[int]) -> tuple[np.ndarray, bool]:
    """Log-probs of a continuation's tokens, and whether greedy decoding gives it."""
    with torch.no_grad():
        logits = model(torch.tensor([[*context, *continuation]])).logits[0, len(context) - 1 : -1].double()
    targets = torch.tensor(list(continuation))
    logps = torch.log_softmax(logits, -1).gather(-1, targets[:, None])[:, 0]
    return logps.numpy(), bool((logits.argmax(-1) == targets).all())
