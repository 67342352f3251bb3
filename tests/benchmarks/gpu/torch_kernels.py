"""Stage of attention alone in torch: its FlashAttention over sequences of different lengths, on the same rows."""

import inspect
from collections.abc import Callable
from typing import Any

import numpy as np
import torch

from tests.benchmarks.gpu.child import first_line, seconds_of
from tests.benchmarks.gpu.kernels import Layout, layouts, timed_kernel
from tests.benchmarks.gpu.rows import score_pairs
from tests.benchmarks.gpu.sizes import Sizes

NAME = "torch"
Attend = Callable[..., torch.Tensor]


def varlen(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, borders: torch.Tensor, longest: int) -> torch.Tensor:
    """Causal attention of sequences that stand behind each other: [T, N, H] queries, [T, K, H] keys and values.

    Args:
        borders: [S + 1] int32, where sequences begin and the last one ends.
    """
    from torch.nn.attention.varlen import varlen_attn

    known, options = inspect.signature(varlen_attn).parameters, {}
    if "is_causal" in known:
        options["is_causal"] = True
    else:
        options["window_size"] = (-1, 0)
    if "enable_gqa" in known:
        options["enable_gqa"] = True
    out = varlen_attn(q, k, v, borders, borders, longest, longest, **options)
    return out[0] if isinstance(out, tuple) else out


def varlen_of_all_heads(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, borders: torch.Tensor, longest: int
) -> torch.Tensor:
    """The same, with keys and values repeated to the query heads first."""
    k, v = (x.repeat_interleave(q.shape[1] // x.shape[1], dim=1) for x in (k, v))
    return varlen(q, k, v, borders, longest)


def nested(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, borders: torch.Tensor, longest: int) -> torch.Tensor:
    """The same through scaled_dot_product_attention of nested tensors."""
    k, v = (x.repeat_interleave(q.shape[1] // x.shape[1], dim=1) for x in (k, v))
    q, k, v = (
        torch.nested.nested_tensor_from_jagged(x, borders, max_seqlen=longest, min_seqlen=1).transpose(1, 2)
        for x in (q, k, v)
    )
    out = torch.nn.functional.scaled_dot_product_attention(q, k, v, is_causal=True)
    return out.transpose(1, 2).values()


def one_by_one(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, borders: torch.Tensor, longest: int) -> torch.Tensor:
    """The same, a call of scaled_dot_product_attention for each sequence: slow, and anywhere."""
    lengths = borders.diff().tolist()
    outs = [
        torch.nn.functional.scaled_dot_product_attention(
            *(x.transpose(0, 1)[None] for x in part), is_causal=True, enable_gqa=True
        )
        for part in zip(*(x.split(lengths) for x in (q, k, v)), strict=True)
    ]
    return torch.cat([out[0].transpose(0, 1) for out in outs])


WAYS: dict[str, Attend] = {
    "varlen_attn": varlen,
    "varlen_attn, keys repeated": varlen_of_all_heads,
    "scaled_dot_product_attention, nested": nested,
    "scaled_dot_product_attention, one by one": one_by_one,
}
"""Best first."""


def choose_way(device: str) -> tuple[str, Attend]:
    """The first way that computes what scaled_dot_product_attention does, one sequence after the other.

    Raises:
        RuntimeError: none does; the text has the reason of each.
    """
    reasons = []
    for name, attend in WAYS.items():
        try:
            error = max(_errors(attend, device))
            if error < 2e-2:
                return name, attend
            reasons.append(f"{name}: differs by {error:.3g}")
        except Exception as problem:  # another version of torch may have another way
            reasons.append(f"{name}: {type(problem).__name__}: {first_line(problem)}")
    raise RuntimeError("; ".join(reasons))


def _errors(attend: Attend, device: str) -> list[float]:
    lengths, generator = [100, 37, 200], torch.Generator(device).manual_seed(0)
    borders = torch.tensor(np.concatenate([[0], np.cumsum(lengths)]), dtype=torch.int32, device=device)
    q, k, v, cotangent = (
        torch.randn(sum(lengths), heads, 64, generator=generator, device=device, dtype=torch.bfloat16)
        for heads in (8, 2, 2, 8)
    )
    results = _backward(lambda *qkv: attend(*qkv, borders, max(lengths)), (q, k, v), cotangent)

    wide = [x.float() for x in (q, k, v)]
    truth = _backward(lambda *qkv: one_by_one(*qkv, borders, max(lengths)), tuple(wide), cotangent.float())
    return [float((a.float() - b).norm() / b.norm()) for a, b in zip(results, truth, strict=True)]


def _backward(attend: Any, qkv: tuple[torch.Tensor, ...], cotangent: torch.Tensor) -> list[torch.Tensor]:
    leaves = [x.detach().requires_grad_() for x in qkv]
    out = attend(*leaves)
    return [out, *torch.autograd.grad(out, leaves, cotangent)]


def kernel(sizes: Sizes) -> None:
    """Times the same examples. torch has no shared prompts: of a pair, each response comes with its prompt."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    way, attend = choose_way(device)
    for layout in layouts(sizes, 1):
        lengths = sequence_lengths(layout)
        borders = torch.tensor(np.concatenate([[0], np.cumsum(lengths)]), dtype=torch.int32, device=device)
        total, longest = sum(lengths), max(lengths)
        q, k, v, cotangent = (
            torch.randn(total, heads, sizes.head_dim, device=device, dtype=torch.bfloat16)
            for heads in (sizes.heads, sizes.kv_heads, sizes.kv_heads, sizes.heads)
        )
        leaves = [x.requires_grad_() for x in (q, k, v)]

        def once(leaves=leaves, cotangent=cotangent, borders=borders, longest=longest) -> Any:
            return torch.autograd.grad(attend(*leaves, borders, longest), leaves, cotangent)

        times = seconds_of(once, wait, calls=sizes.calls, repeats=sizes.repeats)
        timed_kernel(NAME, layout.name, f"torch {torch.__version__}, {way}", times, score_pairs(layout.batch), sizes)


def wait(*_: Any) -> None:
    """For everything that was started on the card."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def sequence_lengths(layout: Layout) -> list[int]:
    """Tokens of each sequence of the rows: a prompt with one of its responses."""
    segment, branch = layout.batch.segment, layout.batch.branch
    lengths = []
    for row in range(len(segment)):
        for number in range(1, segment[row].max() + 1):
            own = branch[row][segment[row] == number]
            shared = int((own == 0).sum())
            lengths += [shared + int((own == which).sum()) for which in (1, 2) if (own == which).any()]
    return lengths
