"""Stages of generation: an engine's decoding calls, and transformers' `generate` beside them, on random weights."""

import time
from typing import Any

from tests.benchmarks.gpu.child import first_line, free, measured
from tests.benchmarks.gpu.sizes import DecodeCase, Sizes

_CALL = 16
"""Tokens of a decoding call."""


def decode(sizes: Sizes) -> None:
    """All rows are samples of one prompt, greedy, so they are equally long. Measures `decode` for each number of rows.

    The first call compiles and does not count.
    """
    import jax
    import jax.numpy as jnp

    from janus_jax.generation import placement
    from janus_jax.generation.engine import Engine
    from janus_jax.generation.requests import Request
    from janus_jax.generation.stopping import StoppingOptions
    from janus_jax.model.mistral import Compute, init_params

    case = sizes.decode
    model = _model(case)
    place, _ = placement.generation_place(model, jax.devices()[:1])
    compute = Compute(dtype=jnp.bfloat16, place=place)
    make = jax.jit(lambda key: init_params(model, key, jnp.bfloat16), out_shardings=placement.shardings(model, place))
    params = jax.block_until_ready(make(jax.random.key(0)))
    weights = sum(leaf.nbytes for leaf in jax.tree.leaves(params)) - params["embedding"].nbytes
    for rows in case.rows:
        session = Engine(model, params, compute, rows=rows, steps_per_call=_CALL).session()
        limit = StoppingOptions(max_new_tokens=case.new)
        session.submit(0, Request([1] * case.prompt, rows, limit))
        begun = time.perf_counter()
        made = len(session.step()[0].ids)
        compile_s, seconds = time.perf_counter() - begun, []
        while session.busy:
            begun = time.perf_counter()
            made += len(session.step()[0].ids)
            seconds.append(time.perf_counter() - begun)
        if made != case.new:
            raise RuntimeError(f"{rows} rows: {made} tokens instead of {case.new}")
        # Slots of all rows that a call reads, by how many buckets of lengths there are: one (see sizes.py).
        read = weights + rows * _attended(case) * 2 * model.num_layers * model.num_kv_heads * model.head_dim * 2
        per_token, bandwidth = sum(seconds) / (case.new - _CALL), _bandwidth()
        measured(
            "decode",
            with_="janus_jax",
            rows=rows,
            tokens_per_s=rows / per_token,
            ms=1e3 * per_token,
            read_gib=read / 2**30,
            bound_tokens_per_s=None if bandwidth is None else rows * bandwidth / read,
            compile_s=compile_s,
            peak_gib=_gib((jax.devices()[0].memory_stats() or {}).get("peak_bytes_in_use")),
            seconds=seconds,
            prompt=case.prompt,
            new=case.new,
        )
        del session
        free()


def torch_decode(sizes: Sizes) -> None:
    """transformers' `generate` on the same shape in bfloat16: the time of all new tokens less that of the first, which
    is the prefill's."""
    import torch
    import transformers

    case, device = sizes.decode, "cuda" if torch.cuda.is_available() else "cpu"
    model = _model(case)
    torch.manual_seed(0)
    torch.set_default_dtype(torch.bfloat16)
    config = transformers.MistralConfig(
        vocab_size=model.vocab_size,
        hidden_size=model.hidden_size,
        intermediate_size=model.intermediate_size,
        num_hidden_layers=model.num_layers,
        num_attention_heads=model.num_heads,
        num_key_value_heads=model.num_kv_heads,
        head_dim=model.head_dim,
        sliding_window=None,
        attn_implementation="sdpa",
    )
    with torch.device(device):
        network = transformers.MistralForCausalLM(config).eval()

    def seconds(rows: int, new: int) -> float:
        ids = torch.ones(rows, case.prompt, dtype=torch.long, device=device)
        limits: dict[str, Any] = {"min_new_tokens": new, "max_new_tokens": new, "pad_token_id": 0}
        begun = time.perf_counter()
        with torch.no_grad():
            network.generate(ids, attention_mask=torch.ones_like(ids), do_sample=False, **limits)
        if device == "cuda":
            torch.cuda.synchronize()
        return time.perf_counter() - begun

    for rows in case.rows:
        try:
            seconds(rows, 2)
            per_token = (seconds(rows, case.new) - seconds(rows, 1)) / (case.new - 1)
        except torch.cuda.OutOfMemoryError as error:
            measured("does not fit", case=f"torch-decode, {rows} rows", reason=first_line(error))
            return
        measured("decode", with_="transformers", rows=rows, tokens_per_s=rows / per_token, ms=1e3 * per_token)


def _model(case: DecodeCase) -> Any:
    from janus_jax.config.sections import ModelSection

    return ModelSection.model_validate(dict(case.model)).build()


def _attended(case: DecodeCase) -> int:
    from janus_jax.generation.sizes import bucket

    first, last = bucket(case.prompt - 1), bucket(case.prompt - 1 + case.new - _CALL)
    assert first == last, "calls read different numbers of slots, and each would be compiled"
    return first


def _bandwidth() -> float | None:
    """Bytes per second of the card's memory; None: no figure."""
    import jax

    from janus_jax.planning.chips import gpus
    from janus_jax.planning.chips.slices import load_chips

    family = gpus.KINDS.get(jax.devices()[0].device_kind)
    return None if family is None else load_chips().chips[family].hbm_bytes_per_s


def _gib(size: int | None) -> float | None:
    return None if size is None else size / 2**30
