"""Generation on a slice that is not here: its programs, what they take, and the least time of a token."""

import dataclasses
import os
from typing import Any

import jax
import jax.numpy as jnp

from janus_jax.checkpoint.stored_model import open_model
from janus_jax.config.run import RunConfig
from janus_jax.errors import ConfigError, ConversionError
from janus_jax.generation import placement, programs, sampling
from janus_jax.generation.engine import require_language_model
from janus_jax.generation.memory import Memory, needed
from janus_jax.generation.sizes import bucket, prompts_per_call, slots
from janus_jax.model.cache import AXES, Cache
from janus_jax.model.config import PRESETS, ModelConfig
from janus_jax.model.mistral import Compute, param_specs
from janus_jax.parallel.axes import AXES as AXES_OF_MESH
from janus_jax.parallel.mesh import Placement
from janus_jax.planning.chips import gpus, roofline
from janus_jax.planning.chips.slices import CPU, Chip, Slice, check_count, devices, find_slice, load_chips
from janus_jax.planning.compile import compile_lowered, versions
from janus_jax.planning.inputs import find_model
from janus_jax.planning.memory import peak_of

STEPS = 16
"""Tokens of a decoding call, as an engine has them by default."""

_MANY = 1 << 20
"""More rows for each device than fit anywhere."""


@dataclasses.dataclass(frozen=True)
class Speed:
    """The least seconds for each resource of the mesh, if it runs at its peak."""

    decode: dict[str, float]
    """Of one token of every row, on average over an answer: compute, hbm, ici."""
    prefill: dict[str, float]
    """Of one prompt for each share of the rows, which `data` shares compute at the same time."""
    read_bytes: float
    """Of weights and cache, by a device for one token of every row."""
    tokens_per_s: float
    """New tokens of all rows, while they grow."""
    with_prompts_per_s: float
    """New tokens of all rows, prefills included; each prompt has one answer."""
    prompt_tokens_per_s: float
    """Tokens of prompts, while they are computed."""


@dataclasses.dataclass(frozen=True)
class GenerationPlan:
    """Texts that grow together on one slice, or on several identical ones. Bytes on each device."""

    target: Slice
    num_slices: int
    mesh: dict[str, int]
    notes: tuple[str, ...]
    rows: int
    prompt: int
    new: int
    length: int  # slots of each row
    dtype: str
    cache_dtype: str
    weights: int  # exact
    cache: int  # exact
    temporaries: int  # by arithmetic, for the program that takes most
    usable: int | None  # None: simulated devices
    most_rows: int | None  # that fit by arithmetic, at this length
    peaks: dict[str, int | None]  # by XLA, of each program with what is beside it; None: its memory ran out
    not_compiled: str | None  # why there are no peaks
    compile_s: float
    speed: Speed | None
    usd_per_hour: float | None
    versions: dict[str, str]

    @property
    def needed(self) -> int:
        """By XLA if compiled, otherwise by arithmetic."""
        known = [peak for peak in self.peaks.values() if peak is not None]
        return max(known) if known and len(known) == len(self.peaks) else self.weights + self.cache + self.temporaries

    @property
    def fits(self) -> bool:
        return None not in self.peaks.values() and (self.usable is None or self.needed <= self.usable)

    @property
    def usd_per_million(self) -> float | None:
        """Dollars for a million new tokens at the bound, prompts included."""
        if self.speed is None or self.usd_per_hour is None:
            return None
        return self.usd_per_hour / 3600 / self.speed.with_prompts_per_s * 1e6

    def to_json(self) -> dict[str, Any]:
        """What `--json` writes; bytes and seconds."""
        return dataclasses.asdict(self) | {name: getattr(self, name) for name in ("needed", "fits", "usd_per_million")}


def lowered(
    config: ModelConfig,
    compute: Compute,
    *,
    rows: int,
    length: int,
    prompt: int,
    steps: int = STEPS,
    cache_dtype: Any = None,
) -> dict[str, Any]:
    """`decode`, `prefill` and `fill` as a session calls them at most: name -> what `compile` takes.

    Args:
        rows: a multiple of the mesh's `data`.
        length, prompt: slots of the cache and tokens of a prompt, rounded up to buckets. All slots are read.
        steps: tokens of a decoding call.
        cache_dtype: None: that of `compute`.
    """
    place, length, prompt = compute.place, bucket(length), bucket(prompt)
    held = jnp.dtype(compute.dtype if cache_dtype is None else cache_dtype)

    def array(shape: tuple[int, ...], dtype: Any = jnp.int32, axes: Any = None) -> Any:
        return jax.ShapeDtypeStruct(shape, dtype, sharding=place.sharding(axes or (None,) * len(shape)))

    def cache(rows: int, length: int) -> Cache:
        shape = (config.num_layers, rows, config.num_kv_heads, length, config.head_dim)
        scales = [array(shape[:-1], jnp.float32, AXES[:-1])] * 2 if held == jnp.int8 else []
        return Cache(*[array(shape, held, AXES)] * 2, *scales)

    params = jax.tree.map(
        lambda spec, sharding: jax.ShapeDtypeStruct(spec.shape, compute.dtype, sharding=sharding),
        param_specs(config),
        placement.shardings(config, place),
    )
    seen, shards = array((rows, config.vocab_size), jnp.bool_, ("batch", None)), place.shards("batch")
    prompts = shards * prompts_per_call(prompt, rows // shards)
    settings = sampling.Settings.of([sampling.SamplingOptions()])
    asked = programs.Rows(
        *[array((rows,))] * 5,
        stop=array((rows, 4)),
        seed=array((rows, 2), jnp.uint32),
        prompt=array((rows, 2), jnp.uint32),
        sample=array((rows,)),
        settings=jax.tree.map(lambda x: array((rows,), x.dtype), settings),
    )
    static = {"config": config, "compute": compute}
    full, tokens = cache(rows, length), array((prompts, prompt))
    return {
        "decode": programs.decode.lower(params, full, seen, asked, attended=length, steps=steps, **static),
        "prefill": programs.prefill.lower(params, tokens, array((prompts,)), dtype=held, **static),
        "fill": programs.fill.lower(
            full, seen, cache(prompts, prompt), tokens, array((rows,)), array((rows,)), compute=compute
        ),
    }


def model_of(source: str, config: RunConfig | None = None) -> ModelConfig:
    """The shape of the language model that `source` names: a named size or a model source, or what `config` trains.

    Raises:
        ConfigError, ConversionError: no such model, or a reward model.
    """
    if config is not None:
        model = find_model(config)[0]
    elif source in PRESETS:
        model = PRESETS[source]
    else:
        try:
            model = open_model(source).config
        except ConversionError as error:
            if os.path.exists(source):  # what is wrong with it is said
                raise
            raise ConfigError(f"{error}; named sizes: {', '.join(PRESETS)}") from error
    require_language_model(model, source)
    return model


def plan(
    config: ModelConfig,
    topology: str,
    *,
    rows: int,
    prompt: int,
    new: int,
    num_slices: int = 1,
    chips: str | os.PathLike[str] | None = None,
    cache_dtype: Any = None,
) -> GenerationPlan:
    """Memory and the least time of generation on a slice that this machine need not have.

    The programs are compiled if the compiler of the slice is here. Otherwise memory is arithmetic.

    Args:
        topology: as for `planning.plan`.
        rows: texts that grow at the same time, rounded up to a multiple of the mesh's `data`.
        prompt, new: tokens of each prompt, and of each answer at most.
        cache_dtype: None: bfloat16; on simulated devices float32.

    Raises:
        ConfigError: unknown slice, or texts are longer than the model's longest.
    """
    longest = config.max_position_embeddings
    if prompt + new > longest:
        raise ConfigError(
            f"--prompt-tokens {prompt} and --max-new-tokens {new}: allowed: at most {longest} together, the model's "
            "longest text"
        )
    target, table = find_slice(topology), load_chips(chips)
    check_count(target, num_slices, table)
    several = target.hosts * num_slices > 1
    data, tensor, rules, notes = placement.split(config, target.devices * num_slices, num_slices, whole=several)
    mesh = jax.sharding.AbstractMesh((data, 1, tensor, 1), AXES_OF_MESH)
    platform = "gpu" if target.is_gpu else CPU if target.topology is None else "tpu"
    dtype = jnp.dtype(jnp.float32 if platform == CPU else jnp.bfloat16)
    memory = needed(
        config,
        Placement(mesh, rules),  # pyright: ignore[reportArgumentType] (only the sizes of its axes count)
        rows=rows,
        length=slots(prompt, new, STEPS, longest),
        prompt=prompt,
        dtype=dtype,
        cache_dtype=cache_dtype,
        platform=platform,
    )
    chip = table.chip(target)
    usable = None if chip is None else chip.usable_hbm_bytes_per_device
    peaks, why, seconds = _compiled(config, target, num_slices, memory, usable)
    price = None if chip is None or chip.usd_on_demand is None else chip.usd_on_demand * target.chips * num_slices
    return GenerationPlan(
        target=target,
        num_slices=num_slices,
        mesh={"data": data, "tensor": tensor},
        notes=tuple(notes),
        rows=memory.rows,
        prompt=prompt,
        new=new,
        length=memory.length,
        dtype=dtype.name,
        cache_dtype=memory.cache_dtype.name,
        weights=memory.weights,
        cache=memory.cache,
        temporaries=memory.temporaries,
        usable=usable,
        most_rows=None if usable is None else dataclasses.replace(memory, rows=_MANY * data).most_rows(usable),
        peaks=peaks,
        not_compiled=why,
        compile_s=seconds,
        speed=None if chip is None else speed(memory, prompt, new, target, chip),
        usd_per_hour=price,
        versions=versions(),
    )


def _compiled(
    config: ModelConfig, target: Slice, num_slices: int, memory: Memory, usable: int | None
) -> tuple[dict[str, int | None], str | None, float]:
    """Peak of each program with what is on a device beside it, why there is none, and seconds of compiling."""
    if usable is not None and memory.total > 1.2 * usable:
        return {}, "by arithmetic it cannot fit", 0
    try:
        place, _ = placement.generation_place(config, devices(target, num_slices))
    except ConfigError as error:
        return {}, str(error), 0
    on_tpu, peaks, seconds = memory.platform == "tpu", {}, 0.0
    assert place.mesh is not None
    with gpus.lowering_for(place.mesh.devices.flat[0]):
        sizes = {"rows": memory.rows, "length": memory.length, "prompt": memory.prompt}
        compute = Compute(dtype=memory.dtype, place=place)
        made = lowered(config, compute, cache_dtype=memory.cache_dtype, **sizes)
        for name, program in made.items():
            step = compile_lowered(program, target.name, on_tpu=on_tpu)
            analysis = None if step.executable is None else step.executable.memory_analysis()
            peaks[name] = None if analysis is None else peak_of(analysis, on_tpu) + memory.beside[name]
            seconds += step.seconds
    return peaks, None, seconds


def speed(memory: Memory, prompt: int, new: int, target: Slice, chip: Chip) -> Speed:
    """The bounds of generation.

    - decode: for each token of every row, weights and the slots of the cache that are read (a bucket of the longest
      row, for a whole call) come from HBM once; each layer has two all-reduces of the rows' activations.
    - prefill: weights come from HBM once for each prompt; its last token's logits are not computed.
    """
    model, place = memory.config, memory.place
    data, tensor = place.shards("batch"), place.shards("kv_heads")
    rows, size = memory.rows // data, memory.dtype.itemsize
    peak, hbm = (value / target.devices_per_chip for value in (chip.peak_bf16_flops, chip.hbm_bytes_per_s))
    ici = 0.0 if target.chips == 1 else roofline.ici_bytes_per_s(target, chip)

    def parts(flops: float, read: float, tokens: int) -> dict[str, float]:
        reduced = (2 * model.num_layers + 1) * tokens * model.hidden_size * size * 2 * (tensor - 1) / tensor
        return {"compute": flops / tensor / peak, "hbm": read / hbm, "ici": reduced / ici if ici else 0.0}

    starts = range(0, new, memory.steps)
    attended = sum(bucket(prompt - 1 + start) for start in starts) / len(starts)
    table = model.vocab_size * model.hidden_size * size // place.shards("vocab")
    weights = memory.weights - (0 if model.tie_embeddings else table)  # of the embedding, a row for each token
    read = weights + memory.cache * attended / memory.length
    one = roofline.forward_flops(roofline.Workload(model, rows, 1))
    scores = 4.0 * model.num_layers * model.num_heads * model.head_dim * rows * (prompt + new / 2)
    decode = parts(one.total - one.scores - one.values + scores, read, rows)
    whole = roofline.forward_flops(roofline.Workload(model, 1, prompt))
    prefill = parts(whole.total - whole.head, weights - table, prompt)
    step, fill = max(decode.values()), max(prefill.values())
    return Speed(
        decode,
        prefill,
        read_bytes=read,
        tokens_per_s=memory.rows / step,
        with_prompts_per_s=memory.rows * new / (new * step + rows * fill),
        prompt_tokens_per_s=data * prompt / fill,
    )
