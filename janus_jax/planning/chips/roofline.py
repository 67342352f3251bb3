"""The least time a step can take, from operations and bytes that follow from the shape of the model.

Compilers' own counts are not used: they count a loop's body once and a kernel as nothing. A product of [m, k] and
[k, n] is 2 m k n operations; norms, softmax and other elementwise work are left out, as usual (Kaplan et al. 2020,
arXiv:2001.08361, table 1; Hoffmann et al. 2022, arXiv:2203.15556, appendix F). With N parameters in products,
a training step takes 6 N operations per token plus attention: forward 2 N, backward twice that.

Model FLOPs utilisation (MFU) follows Chowdhery et al. 2022 (PaLM, arXiv:2204.02311, appendix B): operations of
the model, without recomputation, over what the chips could do in that time. PaLM counts attention over the whole row.
Here a query counts only the keys that a causal mask leaves, so this MFU is lower.

Letters: D width, F feed-forward width, V vocabulary, N query heads, K key/value heads, H head dimension.
"""

import dataclasses
from collections.abc import Mapping

from janus_jax.model.config import ModelConfig
from janus_jax.model.remat import INPUT, TENSORS, WORDS, Remat, kept
from janus_jax.planning.chips.slices import Chip, Slice


@dataclasses.dataclass(frozen=True)
class Recompute:
    """What is kept of the forward pass, and how often the backward pass repeats its parts."""

    projections: float = 0  # products of a layer that are not kept, of all except the last: q, k, v, o, gate, up
    down: float = 0  # the last product, whose result no gradient needs
    scores: float = 1  # q k^T: attention keeps no scores, whatever the policy
    values: float = 0  # weights times v
    head: float = 1  # logits: the head keeps none, whatever the policy
    kept: tuple[str, ...] | None = None  # tensors beside the layer's input; None: all that its gradients need
    on_host: tuple[str, ...] = ()  # those that host memory keeps


def recompute(remat: Remat) -> Recompute:
    """By `remat:` of a configuration. A layer is repeated as far as its gradients need it; attention, unless it is
    kept, in whole, and a kernel like plain attention."""
    chosen = kept(remat)
    if chosen.everything:
        return Recompute()
    names = tuple(name for name in (*chosen.device, *chosen.host) if name != INPUT)
    again = "attention" not in names
    return Recompute(projections=1, scores=1 + again, values=again, kept=names, on_host=chosen.host)


REMAT: Mapping[str, Recompute] = {word: recompute(word) for word in WORDS}


def repeated_projections(model: ModelConfig, recompute: Recompute) -> float:
    """The share of all products of a layer, except the last, that the backward pass repeats."""
    sizes = {name: tensor.weights(model) for name, tensor in TENSORS.items()}
    left = sum(size for name, size in sizes.items() if name not in (recompute.kept or ()))
    return recompute.projections * left / sum(sizes.values())


@dataclasses.dataclass(frozen=True)
class Workload:
    """One optimizer step, or one scoring pass, on the whole mesh."""

    model: ModelConfig
    rows: int
    length: int
    microbatches: int = 1
    recompute: Recompute = REMAT["none"]
    segment: int | None = None  # tokens of one example; attention stays within it. None: a row is one example

    @property
    def tokens(self) -> int:
        return self.rows * self.length

    @property
    def keys(self) -> float:
        """Average number of keys that a query sees."""
        return keys_per_query(min(self.segment or self.length, self.length), self.model.sliding_window)


@dataclasses.dataclass(frozen=True)
class Sharding:
    """How arrays are split over devices, and bytes per element."""

    devices: int
    parameter_shards: int  # shards of each parameter at rest: fsdp x tensor
    tensor: int = 1  # shards in use; activations of heads and feed-forward are split the same way
    parameter_bytes: int = 4
    compute_bytes: int = 2
    moment_bytes: int = 8  # both AdamW moments together
    gradient_bytes: int | None = None  # of the layers; None: the narrower of compute and parameters

    @property
    def layer_gradient_bytes(self) -> int:
        """Gradients of embedding and head are as wide as the parameters."""
        if self.gradient_bytes is not None:
            return self.gradient_bytes
        return min(self.compute_bytes, self.parameter_bytes)


@dataclasses.dataclass(frozen=True)
class Flops:
    """Forward operations on the whole mesh."""

    projections: float
    down: float
    scores: float
    values: float
    head: float

    @property
    def total(self) -> float:
        return sum(dataclasses.astuple(self))


@dataclasses.dataclass(frozen=True)
class StepFlops:
    """Operations per step on the whole mesh: of the model, recomputed to save memory, and of the reference that scores
    the batch before the step."""

    model: float
    recomputed: float
    reference: float = 0

    @property
    def total(self) -> float:
        return self.model + self.recomputed + self.reference


@dataclasses.dataclass(frozen=True)
class HbmTraffic:
    """Bytes that one device must read from and write to HBM in a step. Real programs move more.

    `host` counts bytes to and from host memory. It is not part of HBM traffic, nor of any bound: no table has the
    bandwidth of that link.
    """

    weights: float  # read once per pass over the layers, for each microbatch
    gradients: float
    optimizer: float  # parameters and moments, read and written
    activations: float  # kept for the backward pass: written, read back
    host: float = 0

    @property
    def total(self) -> float:
        """Bytes of HBM."""
        return self.weights + self.gradients + self.optimizer + self.activations


@dataclasses.dataclass(frozen=True)
class Bound:
    """The least seconds per step for each resource, if each runs at its peak and all overlap."""

    compute_s: float
    hbm_s: float
    ici_s: float
    dcn_s: float
    mfu: float  # model FLOPs over the peak, at the bound
    tokens_per_s: float

    @property
    def seconds(self) -> float:
        return max(self.parts.values())

    @property
    def serial_seconds(self) -> float:
        """Seconds per step at these peaks if nothing overlaps."""
        return sum(self.parts.values())

    @property
    def limit(self) -> str:
        """The resource that sets the bound."""
        return max(self.parts, key=lambda part: self.parts[part])

    @property
    def parts(self) -> dict[str, float]:
        return {"compute": self.compute_s, "hbm": self.hbm_s, "ici": self.ici_s, "dcn": self.dcn_s}


def parameters(model: ModelConfig) -> int:
    """Their number: L (2 D + D H (2 N + 2 K) + 3 D F) + D + V D + the head, V D unless tied or D for rewards."""
    head = model.hidden_size if model.head == "value" else 0 if model.tie_embeddings else _vocabulary(model)
    return _layers(model) + model.hidden_size + _vocabulary(model) + head


def keys_per_query(length: int, window: int | None = None) -> float:
    """Average keys under a causal mask: (T + 1) / 2, or with a sliding window W < T: W - W (W - 1) / (2 T)."""
    width = length if window is None else min(window, length)
    return width - width * (width - 1) / (2 * length)


def forward_flops(work: Workload) -> Flops:
    """Per token: 2 L (D H (2 N + 2 K) + 2 D F), 2 L D F, twice 2 L N H keys, and 2 D V (2 D for rewards)."""
    model, tokens = work.model, work.tokens
    heads = model.num_heads * model.head_dim
    width, layers = model.hidden_size, model.num_layers
    attention = width * (2 * heads + 2 * model.num_kv_heads * model.head_dim)
    wide = width * model.intermediate_size
    outputs = 1 if model.head == "value" else model.vocab_size
    scores = 2.0 * layers * heads * work.keys * tokens
    return Flops(
        projections=2.0 * layers * (attention + 2 * wide) * tokens,
        down=2.0 * layers * wide * tokens,
        scores=scores,
        values=scores,
        head=2.0 * width * outputs * tokens,
    )


def training_flops(work: Workload) -> StepFlops:
    """Three times the forward pass (a product has two gradients, each as costly), plus recomputation."""
    once = forward_flops(work)
    times = dataclasses.replace(work.recompute, projections=repeated_projections(work.model, work.recompute))
    if work.model.head == "value":
        times = dataclasses.replace(times, head=0)
    return StepFlops(3 * once.total, sum(flops * getattr(times, part) for part, flops in vars(once).items()))


def inference_flops(work: Workload) -> StepFlops:
    """A forward pass alone, as for a reference."""
    return StepFlops(forward_flops(work).total, 0)


def training_hbm_traffic(work: Workload, sharding: Sharding) -> HbmTraffic:
    """The least bytes that one device moves.

    - weights: the layers' weights in the compute dtype, split by `tensor` only, for each microbatch's forward pass,
      backward pass and recomputation. The head three times, because its logits are always recomputed.
    - gradients: written and read once. Several microbatches are summed in float32: one more read and write for each
      beyond the first.
    - optimizer: parameters and moments, sharded as at rest, read and written.
    - activations: per token and layer its input (D) and the tensors that are kept; without rematerialization all that
      the gradients of products need (in sum 4 D, (2 N + 2 K) H, 3 F). Written and read; those on the host with one more
      read and write for the transfer there and back.
    - host: the activations that it keeps, once each way.
    """
    model, recompute = work.model, work.recompute
    passes = 2 + repeated_projections(model, recompute)
    used = passes * _layers(model) + (1 if model.head == "value" else 3) * _head(model)
    blocks = _layers(model) + model.hidden_size  # with the final norm
    widths = (sharding.layer_gradient_bytes, sharding.parameter_bytes) if work.microbatches == 1 else (4, 4)
    gradients = blocks * widths[0] + (parameters(model) - blocks) * widths[1]
    on_device, on_host = _kept_widths(model, recompute, sharding.tensor)
    kept_bytes = work.tokens * sharding.tensor / sharding.devices * model.num_layers * sharding.compute_bytes
    state_bytes = sharding.parameter_bytes + sharding.moment_bytes
    return HbmTraffic(
        weights=work.microbatches * used * sharding.compute_bytes / sharding.tensor,
        gradients=gradients / sharding.parameter_shards * 2 * work.microbatches,
        optimizer=parameters(model) / sharding.parameter_shards * 2 * state_bytes,
        activations=(2 * on_device + 4 * on_host) * kept_bytes,
        host=2 * on_host * kept_bytes,
    )


def inference_hbm_traffic(work: Workload, sharding: Sharding) -> HbmTraffic:
    """Weights are read once per microbatch; nothing is kept."""
    used = _layers(work.model) + _head(work.model)
    return HbmTraffic(work.microbatches * used * sharding.compute_bytes / sharding.tensor, 0, 0, 0)


def ici_bytes_per_s(target: Slice, chip: Chip) -> float:
    """Bytes per second that a device can send within its slice. A chip has two links along a side of three or more
    chips, one along a side of two, none along a side of one."""
    if target.topology is None:
        return 0.0
    sides = [int(side) for side in target.topology.split(":")[1].split("x")]
    links = min(chip.ici_links, sum(min(side - 1, 2) for side in sides))
    return links * chip.ici_bytes_per_s_per_link / target.devices_per_chip


def bound(
    flops: StepFlops,
    hbm_bytes: float,
    ici_bytes: float,
    dcn_bytes: float,
    *,
    tokens: int,
    target: Slice,
    chip: Chip,
    num_slices: int = 1,
    repeated: float = 1,
) -> Bound:
    """The least time of a step.

    Args:
        flops: operations of the whole mesh.
        hbm_bytes: HBM traffic of one device.
        ici_bytes, dcn_bytes: bytes that one device sends (`Collective.wire_bytes`). All links of a chip are assumed to
            work at once; real collectives run along one axis and take longer.
        tokens: tokens of the whole step.
        repeated: number of devices that do each operation, if rules do not divide the work over all devices.
    """
    devices = target.devices * num_slices
    peak = chip.peak_bf16_flops / target.devices_per_chip
    dcn = None if chip.dcn_bytes_per_s is None else chip.dcn_bytes_per_s / target.devices_per_chip
    parts = (
        flops.total * repeated / devices / peak,
        hbm_bytes / (chip.hbm_bytes_per_s / target.devices_per_chip),
        # Transfers between the devices of a single chip use no link.
        0.0 if target.chips == 1 else _seconds(ici_bytes, ici_bytes_per_s(target, chip)),
        _seconds(dcn_bytes, dcn),
    )
    seconds = max(parts)
    return Bound(*parts, mfu=flops.model / devices / peak / seconds, tokens_per_s=tokens / seconds)


def _seconds(sent: float, per_second: float | None) -> float:
    if sent == 0:
        return 0.0
    return sent / per_second if per_second else float("inf")


def _kept_widths(model: ModelConfig, recompute: Recompute, tensor: int) -> tuple[float, float]:
    """Elements of a token that a device keeps of each layer, in its own memory and in the host's."""
    if recompute.kept is None:
        heads, kv_heads = model.num_heads * model.head_dim, 2 * model.num_kv_heads * model.head_dim
        return 4 * model.hidden_size + (2 * heads + kv_heads + 3 * model.intermediate_size) / tensor, 0
    widths = {INPUT: float(model.hidden_size)}
    for name in recompute.kept:
        widths[name] = TENSORS[name].width(model) / (tensor if TENSORS[name].axis else 1)
    on_host = sum(widths[name] for name in recompute.on_host)
    return sum(widths.values()) - on_host, on_host


def _layers(model: ModelConfig) -> int:
    heads = (2 * model.num_heads + 2 * model.num_kv_heads) * model.head_dim
    return model.num_layers * model.hidden_size * (2 + heads + 3 * model.intermediate_size)


def _vocabulary(model: ModelConfig) -> int:
    return model.vocab_size * model.hidden_size


def _head(model: ModelConfig) -> int:
    return model.hidden_size if model.head == "value" else _vocabulary(model)
