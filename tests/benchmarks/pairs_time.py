"""Time of a DPO step on the CPU: packed rows with shared prompts, two padded rows of 2048 a pair, TRL's DPOTrainer.

    python -m tests.benchmarks.pairs_time                # about 5 minutes on two cores
    python -m tests.benchmarks.pairs_time --trl VENV     # and TRL; VENV as tests/oracles/record_trl.py says

All train a small Mistral of random weights in float32 (8.9 million unless you say otherwise), on the same pairs of the
distribution of `tokens_per_pair`: 21 pairs a step, which fill 8 rows of 4096 (1,560 slots a pair, as over a whole
epoch). Nobody recomputes activations. Log-probs of the reference are given; time to make batches is not counted. A
microbatch of ours has 4096 slots: a packed row, or a pair in two padded rows. TRL pads to the longest of the pairs that
it takes at once.

Every side is a process that waits for its turn; sides take turns step by step. Losses must be equal at every step. The
script also prints how far one rounding of the log-probs of responses to float32 moves a loss.
"""

import argparse
import dataclasses
import functools
import itertools
import json
import math
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from janus_jax.data.example import Example
from tests.support.repository import ROOT

ROW, LONGEST = 4096, 2048
ROWS, PAIRS = 8, 21
"""Of a step. Batches of `ROWS` rows with another number of pairs are left out, so that all sides take equal steps."""
SHAPE = {"vocab_size": 2048, "head_dim": 128}
"""Of the model; `set_shape` adds the rest."""
RATE, BETA = 1e-5, 0.1
TOLERANCE = 1e-5
"""Largest difference of losses, which are about 1."""


def set_shape(width: int, layers: int) -> None:
    """In the proportions of Mistral-7B: heads of 128, four query heads a key head, an MLP 3.5 times as wide."""
    heads = width // 128
    sizes = {"hidden_size": width, "intermediate_size": width * 7 // 2, "num_layers": layers}
    SHAPE.update(sizes | {"num_heads": heads, "num_kv_heads": max(1, heads // 4)})


def config() -> Any:
    """The configuration of a run with these settings; its directories are never opened."""
    from janus_jax.config.run import RunConfig

    return RunConfig.model_validate(
        {
            "run": {"dir": "none"},
            "data": {"dir": "none"},
            "model": {"preset": "mistral-7b", **SHAPE},
            "batch": {"rows": ROWS, "row_length": ROW, "max_sequence_length": LONGEST, "microbatches": ROWS},
            "objective": {"name": "dpo", "beta": BETA},
            "optimizer": {"b2": 0.999, "weight_decay": 0.0, "clip_norm": 1.0},
            "schedule": {"name": "constant", "learning_rate": RATE, "warmup_steps": 0, "steps": 100},
            "precision": {"compute": "float32"},
        }
    )


def packed_steps(steps: int) -> list[list[list[Example]]]:
    """The first batches of an epoch that have `PAIRS` pairs, as the trainer packs them: examples by row."""
    from janus_jax.data.epoch import START, BatchSettings, PackedEpochs
    from tests.benchmarks.gpu.rows import RandomExamples
    from tests.benchmarks.tokens_per_pair import stated_lengths

    dataset: Any = RandomExamples(stated_lengths(65_000), SHAPE["vocab_size"])
    epochs = PackedEpochs(dataset, BatchSettings(ROW, LONGEST, rows=ROWS), branches=2)
    batches = (epochs.members(position) for position in epochs.positions(START))
    chosen = (rows for rows in batches if sum(map(len, rows)) == PAIRS)
    return [[dataset.read(epochs.fitted.index[row]) for row in rows] for rows in itertools.islice(chosen, steps)]


def pairs_of(rows: list[list[Example]]) -> list[Example]:
    """The pairs of a step."""
    return [pair for row in rows for pair in row]


def reference(pair: Example) -> list[float]:
    """Log-probs of chosen and rejected where all tokens are equally likely."""
    assert pair.rejected is not None
    return [-math.log(SHAPE["vocab_size"]) * len(response) for response in (pair.chosen, pair.rejected)]


def our_batches(side: str, steps: list[list[list[Example]]]) -> list[Any]:
    """Batches [microbatches, 1, 4096]; of `padded`, the rows of a pair stand one after the other."""
    import jax

    from janus_jax.data.rows import pack

    def batch(rows: list[list[Example]]) -> Any:
        if side == "packed":
            packed = pack(rows, row_length=ROW, max_segments=max(map(len, rows)))
        else:
            apart = [
                [dataclasses.replace(pair, chosen=ids, rejected=None)]
                for pair in pairs_of(rows)
                for ids in (pair.chosen, pair.rejected)
            ]
            packed = pack(apart, row_length=LONGEST, max_segments=1)
            packed.branch[1::2] *= 2
            packed = jax.tree.map(lambda x: x.reshape(-1, 2 * x.shape[1]), packed)
            packed = jax.tree.map(lambda x: x[:, :1] if x.shape[1] == 2 else x, packed)
            packed = dataclasses.replace(packed, reference_logps=np.zeros((PAIRS, 1, 2), np.float32))
            rows = [[pair] for pair in pairs_of(rows)]
        for row, members in enumerate(rows):
            packed.reference_logps[row, : len(members)] = [reference(pair) for pair in members]
        return jax.tree.map(lambda x: x[:, None], packed)

    return [batch(rows) for rows in steps]


def our_step(side: str, steps: list[list[list[Example]]]) -> Callable[[int], tuple[float, float]]:
    """Seconds and loss of a step, by its number; compiled."""
    import jax

    from janus_jax.model.attention import Slots
    from janus_jax.model.mistral import init_params, token_scalars
    from janus_jax.objectives import branch_scores, build_objective
    from janus_jax.parallel import mesh as meshes
    from janus_jax.training.program import build_program, build_schedule
    from janus_jax.training.step import StepFunctions

    class TwoRows(StepFunctions):
        def scores(self, params: Any, batch: Any, sums: Any = None) -> Any:
            fields = (batch.tokens, batch.targets, self.objective.counted(batch))
            fields += (batch.segment, batch.branch, batch.position)
            tokens, targets, counted, *slots = (field.reshape(-1, LONGEST) for field in fields)
            scalars = token_scalars(self.model, params, tokens, targets, Slots(*slots), self.compute, sums, counted)
            return branch_scores(scalars.reshape(batch.tokens.shape), batch)

    settings = config()
    objective, model = build_objective(settings), settings.model.build()
    program = build_program(
        settings,
        model,
        objective,
        meshes.build_mesh(settings.mesh.shape, jax.devices()[:1]),
        meshes.merge_rules(settings.sharding),
        build_schedule(settings, 100),
        shared_slots=0,
        max_segments=PAIRS,
    )
    if side == "padded":
        program = dataclasses.replace(program, functions=TwoRows(**vars(program.functions)))
    state = program.init(jax.jit(functools.partial(init_params, model))(jax.random.key(0)))
    batches = [jax.device_put(batch, program.batch_shardings) for batch in our_batches(side, steps)]
    compiled = {batch.example_id.shape: program.train.lower(state, batch).compile() for batch in batches}

    def step(number: int) -> tuple[float, float]:
        nonlocal state
        batch = batches[number]
        begun = time.perf_counter()
        state, scalars, _ = jax.block_until_ready(compiled[batch.example_id.shape](state, batch))
        return time.perf_counter() - begun, float(scalars["loss"])

    return step


def ours(side: str, scratch: Path, steps: int) -> None:
    """A process of ours: one step for every line that comes in."""
    step = our_step(side, packed_steps(steps))
    _say({"ready": 1})
    for number, _ in zip(range(steps), sys.stdin, strict=False):
        seconds, loss = step(number)
        _say({"seconds": seconds, "loss": loss})


def write_for_trl(scratch: Path, steps: list[list[list[Example]]]) -> None:
    """The same weights and pairs, as TRL reads them."""
    import jax
    from safetensors.numpy import save_file

    from janus_jax.checkpoint.hf.keys import key_table, leaves
    from janus_jax.model.mistral import init_params

    model = config().model.build()
    params = leaves(jax.jit(functools.partial(init_params, model))(jax.random.key(0)))
    tensors = {}
    for entry in key_table(model):
        value = np.asarray(params[entry.path])
        tensors[entry.key] = entry.to_torch(value if entry.layer is None else value[entry.layer])
    save_file(tensors, scratch / "weights.safetensors")
    pairs = [pair for rows in steps for pair in pairs_of(rows)]
    columns: dict[str, list[Any]] = {
        f"{name}_ids": [getattr(pair, name).tolist() for pair in pairs] for name in ("prompt", "chosen", "rejected")
    }
    for at, name in enumerate(("chosen", "rejected")):
        columns[f"ref_{name}_logps"] = [reference(pair)[at] for pair in pairs]
    (scratch / "pairs.json").write_text(json.dumps(columns))


def trl(at_once: int, scratch: Path, steps: int) -> None:
    """A process of TRL, in its own environment: one step for every line that comes in."""
    import torch
    import transformers
    from datasets import Dataset
    from safetensors.torch import load_file
    from tokenizers import Tokenizer, models
    from trl import DPOConfig, DPOTrainer

    class Given(DPOTrainer):
        """Takes ids and log-probs of the reference as they are, in their order; keeps losses unrounded."""

        loss = 0.0

        def _prepare_dataset(self, dataset: Any, *_: Any, **__: Any) -> Any:
            return dataset

        def _precompute_ref_logps(self, dataset: Any, *_: Any, **__: Any) -> Any:
            return dataset

        def _get_train_sampler(self, *_: Any) -> Any:
            return torch.utils.data.SequentialSampler(self.train_dataset)

        def training_step(self, *args: Any, **kwargs: Any) -> Any:
            loss = super().training_step(*args, **kwargs)
            self.loss += float(loss)
            return loss

    class Turns(transformers.TrainerCallback):
        def on_step_begin(self, *_: Any, **__: Any) -> None:
            if not sys.stdin.readline():
                raise SystemExit
            trainer.loss, self.begun = 0.0, time.perf_counter()

        def on_step_end(self, *_: Any, **__: Any) -> None:
            _say({"seconds": time.perf_counter() - self.begun, "loss": trainer.loss})

    shape = {
        "vocab_size": SHAPE["vocab_size"],
        "hidden_size": SHAPE["hidden_size"],
        "intermediate_size": SHAPE["intermediate_size"],
        "num_hidden_layers": SHAPE["num_layers"],
        "num_attention_heads": SHAPE["num_heads"],
        "num_key_value_heads": SHAPE["num_kv_heads"],
        "head_dim": SHAPE["head_dim"],
        "rope_parameters": {"rope_type": "default", "rope_theta": 1e6},
        "rms_norm_eps": 1e-5,
        "sliding_window": None,
        "tie_word_embeddings": False,
    }
    ids = {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}
    model = transformers.MistralForCausalLM(transformers.MistralConfig(**shape, **ids)).float()
    model.load_state_dict(load_file(scratch / "weights.safetensors"))
    inner = Tokenizer(models.WordLevel({"<pad>": 0, "<s>": 1, "</s>": 2, "<unk>": 3}, unk_token="<unk>"))
    tokenizer = transformers.PreTrainedTokenizerFast(
        tokenizer_object=inner, pad_token="<pad>", bos_token="<s>", eos_token="</s>", unk_token="<unk>"
    )
    columns = json.loads((scratch / "pairs.json").read_text())
    settings = DPOConfig(
        output_dir=str(scratch / f"trl{at_once}"),
        per_device_train_batch_size=at_once,
        gradient_accumulation_steps=PAIRS // at_once,
        gradient_checkpointing=False,
        max_steps=steps,
        max_length=None,
        beta=BETA,
        learning_rate=RATE,
        lr_scheduler_type="constant",
        weight_decay=0.0,
        max_grad_norm=1.0,
        optim="adamw_torch",
        precompute_ref_log_probs=True,
        bf16=False,
        use_cpu=True,
        report_to="none",
        save_strategy="no",
        logging_strategy="no",
        disable_tqdm=True,
    )
    dataset = Dataset.from_dict(columns | {"prompt": [""] * len(columns["prompt_ids"])})
    trainer = Given(model=model, args=settings, train_dataset=dataset, processing_class=tokenizer, callbacks=[Turns()])
    _say({"ready": 1})
    trainer.train()


def _say(what: dict[str, float]) -> None:
    print(json.dumps({"pairs_time": what}), flush=True)


def padded_to_longest(at_once: int, steps: list[list[list[Example]]]) -> float:
    """Slots of a step, on average, where every `at_once` pairs are padded to the longest of them."""
    total = 0
    for rows in steps:
        longest = [len(pair.prompt) + max(len(pair.chosen), len(pair.rejected)) for pair in pairs_of(rows)]
        total += sum(2 * at_once * max(longest[at : at + at_once]) for at in range(0, PAIRS, at_once))
    return total / len(steps)


class Side:
    """A process and what it measured."""

    def __init__(self, name: str, python: str, scratch: Path, options: list[str]):
        command = [python, "-m", "tests.benchmarks.pairs_time", "--side", name, "--scratch", str(scratch)]
        command += options
        errors = (scratch / f"{name}.log").open("w")
        self.name, self.log, self.measured = name, Path(errors.name), list[dict[str, float]]()
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": errors, "text": True}
        self.process: Any = subprocess.Popen(command, cwd=ROOT, **pipes)

    def read(self) -> dict[str, float]:
        """The next line of the process that is meant for us."""
        for line in self.process.stdout:
            if line.startswith('{"pairs_time"'):
                return json.loads(line)["pairs_time"]
        raise SystemExit(f"{self.name} ended:\n{self.log.read_text()[-3000:]}")

    def step(self) -> None:
        """Has the process take its next step."""
        self.process.stdin.write("\n")
        self.process.stdin.flush()
        self.measured.append(self.read())


def rounding(steps: list[list[list[Example]]]) -> float:
    """About how far the loss of a step moves if float32 rounds each log-prob of a response once.

    Random weights make all tokens about equally likely. The slope of a pair's loss is at most `BETA`.
    """

    def units(pair: Example) -> float:
        return float(np.spacing(np.abs(np.array(reference(pair), np.float32))).sum())

    return max(BETA / 2 * statistics.fmean(map(units, pairs_of(rows))) for rows in steps)


def compare(sides: list[Side], rounded: float) -> None:
    """Ends the process if losses differ; prints the largest difference beside what rounding explains."""
    losses = np.array([[one["loss"] for one in side.measured] for side in sides])
    apart = float(np.abs(losses - losses[0]).max())
    print(
        f"losses of {losses.shape[1]} steps, {losses.min():.4f} to {losses.max():.4f}: at most {apart:.1e} apart; "
        f"rounding log-probs to float32 moves a loss by about {rounded:.1e}"
    )
    if not apart <= TOLERANCE:
        raise SystemExit(f"losses differ by more than {TOLERANCE}:\n{losses}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--trl", type=Path, help="environment with torch and TRL")
    parser.add_argument("--at-once", type=int, nargs="+", default=[1, 7], help="pairs that TRL takes at once")
    parser.add_argument("--steps", type=int, default=6, help="steps of each side; the first is not counted")
    parser.add_argument("--width", type=int, default=512, help="of the model, a multiple of 128")
    parser.add_argument("--layers", type=int, default=2)
    parser.add_argument("--side", help=argparse.SUPPRESS)
    parser.add_argument("--scratch", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    set_shape(arguments.width, arguments.layers)
    options = [f"--{name}={getattr(arguments, name)}" for name in ("steps", "width", "layers")]
    if arguments.side:
        kind, _, at_once = arguments.side.partition("-")
        run = (lambda *args: trl(int(at_once), *args)) if at_once else (lambda *args: ours(kind, *args))
        run(arguments.scratch, arguments.steps)
        return
    names = {"packed": sys.executable, "padded": sys.executable}
    with tempfile.TemporaryDirectory() as scratch:
        steps = packed_steps(arguments.steps)
        if arguments.trl:
            write_for_trl(Path(scratch), steps)
            names |= {
                f"trl-{at_once}": str(arguments.trl.absolute() / "bin" / "python") for at_once in arguments.at_once
            }
        sides = [Side(name, python, Path(scratch), options) for name, python in names.items()]
        try:
            for side in sides:
                side.read()
            for number in range(arguments.steps):
                for side in sides if number % 2 else reversed(sides):
                    side.step()
        finally:
            for side in sides:
                side.process.kill()
    seconds = {side.name: statistics.median(one["seconds"] for one in side.measured[1:]) for side in sides}
    for side in sides:
        slots = {"packed": ROWS * ROW, "padded": PAIRS * 2 * LONGEST}.get(side.name) or padded_to_longest(
            int(side.name.removeprefix("trl-")), steps[1:]
        )
        each = [round(one["seconds"], 2) for one in side.measured[1:]]
        rate, ratio = PAIRS / seconds[side.name], seconds["padded"] / seconds[side.name]
        print(f"{side.name:7} {slots / PAIRS:5,.0f} slots a pair, {rate:.2f} pairs/s, {ratio:.2f}x padded; s {each}")
    compare(sides, rounding(steps))


if __name__ == "__main__":
    main()
