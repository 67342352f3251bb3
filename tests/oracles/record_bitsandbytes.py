"""Records AdamW8bit of bitsandbytes: goldens/adamw_8bit, which test_adamw_8bit.py replays.

Needs an environment of its own and a C++ compiler:

    python3.11 -m venv bnb
    bnb/bin/pip install torch==2.13.0 numpy safetensors bitsandbytes==0.50.2
    git clone https://github.com/bitsandbytes-foundation/bitsandbytes
    bnb/bin/python -m tests.oracles.record_bitsandbytes bitsandbytes --out tests/oracles/goldens/adamw_8bit

Two kinds of runs, of the same gradients (`moment_runs.py`):

    package.*        the class AdamW8bit itself, on its kernels in torch, which round to the nearest number. Its C++
                     kernels for CPUs look numbers up in 65,536 steps and cannot tell small ones apart.
    kernel.BLOCK.*   the arithmetic of the CUDA kernel kOptimizerStatic8bit2StateBlockwise, which published runs used:
                     its function `quantize_2D`, compiled from the repository at that version (0.43.1: blocks of 2048,
                     0.50.1: of 256), around its update, which is written out here in torch.
"""

import argparse
import ctypes
import math
import pathlib
import re
import subprocess
import tempfile
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from safetensors.numpy import save_file

from tests.oracles import moment_runs as runs

VERSIONS = {2048: "0.43.1", 256: "0.50.1"}


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("repository", type=pathlib.Path, help="a clone of bitsandbytes with its tags")
    parser.add_argument("--out", type=pathlib.Path, required=True)
    given = parser.parse_args()
    bitsandbytes = _without_native_kernels()
    tensors = _package(bitsandbytes)
    maps = [bitsandbytes.functional.create_dynamic_map(signed) for signed in (True, False)]
    tensors |= {f"map.{name}": one.numpy() for name, one in zip(("signed", "unsigned"), maps, strict=True)}
    with tempfile.TemporaryDirectory() as folder:
        for block, version in VERSIONS.items():
            quantize = _compiled(given.repository, version, pathlib.Path(folder) / f"{block}.so")
            tensors |= _kernel(quantize, maps, block)
            for signed in (True, False):
                x = runs.hard_numbers(maps[0 if signed else 1].numpy(), signed=signed)
                tensors[f"numbers.{'signed' if signed else 'unsigned'}"] = x
                tensors[f"codes.{block}.{'signed' if signed else 'unsigned'}"] = quantize(x, maps, signed)
    given.out.mkdir(parents=True, exist_ok=True)
    save_file(tensors, given.out / "runs.safetensors")


def _without_native_kernels() -> Any:
    load = ctypes.cdll.LoadLibrary

    def refuse(name: Any) -> Any:
        if "bitsandbytes" in str(name):
            raise OSError("not wanted here")
        return load(name)

    ctypes.cdll.LoadLibrary = refuse  # type: ignore[method-assign]
    import bitsandbytes

    assert "Mock" in type(bitsandbytes.cextension.lib).__name__, "the C++ kernels are there"
    return bitsandbytes


def _package(bitsandbytes: Any) -> dict[str, np.ndarray]:
    params = {name: torch.nn.Parameter(torch.from_numpy(value)) for name, value in runs.weights().items()}
    optimizer = bitsandbytes.optim.AdamW8bit(
        params.values(), lr=runs.RATE, betas=(runs.B1, runs.B2), eps=runs.EPS, weight_decay=runs.WEIGHT_DECAY
    )
    recorded = {}
    for step in range(1, runs.STEPS + 1):
        for name, gradient in runs.gradients(step).items():
            params[name].grad = torch.from_numpy(gradient)
        optimizer.step()
        if step in runs.KEPT:
            for name, param in params.items():
                state = {
                    key: value for key, value in optimizer.state[param].items() if "state" in key or "absmax" in key
                }
                weights = {"weights": param.detach()} if step == runs.STEPS else {}
                for key, value in (state | weights).items():
                    recorded[f"package.{step}.{name}.{key}"] = value.numpy().copy()
    return recorded


Quantize = Callable[[np.ndarray, list[torch.Tensor], bool], np.ndarray]


def _compiled(repository: pathlib.Path, version: str, library: pathlib.Path) -> Quantize:
    """`quantize_2D` of a version, with the quadrants that the kernel hands to it."""
    source = subprocess.check_output(["git", "-C", repository, "show", f"{version}:csrc/kernels.cu"], text=True)
    function = re.search(
        r"template <int SIGNED>\s*__device__ __forceinline__ unsigned char\s+quantize_2D\(.*?\n}", source, re.S
    )
    assert function, version
    program = f"""
        #define __device__
        #define __forceinline__ inline
        {function[0]}
        extern "C" void quantize(float* code, const float* x, unsigned char* out, long n, int is_signed) {{
            float quadrants[3];
            for (int k = 0; k < 3; k++) quadrants[k] = code[(k * 256 / 4) + (256 / 4 - 1)];
            for (long i = 0; i < n; i++)
                out[i] = is_signed ? quantize_2D<1>(quadrants, code, x[i]) : quantize_2D<0>(quadrants, code, x[i]);
        }}"""
    subprocess.run(
        ["g++", "-O1", "-ffp-contract=off", "-shared", "-fPIC", "-x", "c++", "-", "-o", library],
        input=program,
        text=True,
        check=True,
    )
    compiled = ctypes.CDLL(str(library)).quantize

    def quantize(x: np.ndarray, maps: list[torch.Tensor], signed: bool) -> np.ndarray:
        x, codes = np.ascontiguousarray(x), np.zeros(x.shape, np.uint8)
        numbers = maps[0 if signed else 1].numpy()
        pointers = [ctypes.c_void_p(array.ctypes.data) for array in (numbers, x, codes)]
        compiled(*pointers, ctypes.c_long(x.size), ctypes.c_int(signed))
        if signed:  # as the kernel does behind it
            flipped = np.signbit(numbers[codes]) != np.signbit(x)
            codes[flipped & (x > 0)] += 1
            codes[flipped & ~(x > 0)] -= 1
        return codes

    return quantize


def _kernel(quantize: Quantize, maps: list[torch.Tensor], block: int) -> dict[str, np.ndarray]:
    recorded = {}
    for name, value in runs.weights().items():
        param = torch.from_numpy(value).reshape(-1)
        if param.numel() < 4096:
            continue
        blocks = -(-param.numel() // block)
        codes, scales = [torch.zeros(param.shape, dtype=torch.uint8)] * 2, [torch.zeros(blocks)] * 2
        which = torch.arange(param.numel()) // block
        for step in range(1, runs.STEPS + 1):
            gradient = torch.from_numpy(runs.gradients(step)[name]).reshape(-1)
            m, v = (one[code.long()] * scale[which] for one, code, scale in zip(maps, codes, scales, strict=True))
            v = v * runs.B2 + (1 - runs.B2) * gradient * gradient
            m = m * runs.B1 + (1 - runs.B1) * gradient
            first, second = 1 - runs.B1**step, math.sqrt(1 - runs.B2**step)
            param = param * (1 - runs.RATE * runs.WEIGHT_DECAY)  # the kernel decays after the update
            param = param + (-runs.RATE * second / first) * (m / (v.sqrt() + second * runs.EPS))
            scales = [torch.zeros(blocks).scatter_reduce(0, which, one.abs(), "amax") for one in (m, v)]
            divided = [
                torch.where(scale[which] > 0, one / scale[which], 0) for one, scale in zip((m, v), scales, strict=True)
            ]
            codes = [
                torch.from_numpy(quantize(x.numpy(), maps, signed))
                for x, signed in zip(divided, (True, False), strict=True)
            ]
            if step in runs.KEPT:
                kept = {
                    "state1": codes[0],
                    "state2": codes[1],
                    "absmax1": scales[0],
                    "absmax2": scales[1],
                    "weights": param,
                }
                for key, tensor in kept.items() if step == runs.STEPS else [*kept.items()][:-1]:
                    recorded[f"kernel.{block}.{step}.{name}.{key}"] = tensor.numpy().copy()
    return recorded


if __name__ == "__main__":
    main()
