"""The step of `cpu_step` by MaxText or Tunix. It runs as a file, in the peer's own environment, without this package.

    VENV/bin/python tests/benchmarks/cpu_peers.py maxtext WEIGHTS TOKENS.npy [SETTING=VALUE ...]
    VENV/bin/python tests/benchmarks/cpu_peers.py tunix WEIGHTS TOKENS.npy [SETTING=VALUE ...]

Both run the step that their own trainer jits, on our weights. Seconds are those until all outputs of the step are
there, the new weights too. Settings are MaxText's own, or `remat_config` of Tunix; `cpu_step` names them.
"""

import importlib.metadata
import json
import os
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

LAYERS, WIDTH, HEADS, KV_HEADS, HEAD, FEED_FORWARD, VOCABULARY = 8, 512, 8, 4, 64, 1536, 32000
STEPS = 5
PACKAGES = {"maxtext": "maxtext", "tunix": "google-tunix"}
MAXTEXT = (
    "run_name=cpu hardware=cpu skip_jax_distributed_system=True dataset_type=synthetic enable_checkpointing=False "
    f"decoder_block=mistral base_emb_dim={WIDTH} base_num_query_heads={HEADS} base_num_kv_heads={KV_HEADS} "
    f"head_dim={HEAD} base_mlp_dim={FEED_FORWARD} base_num_decoder_layers={LAYERS} mlp_activations=[silu,linear] "
    f"vocab_size={VOCABULARY} logits_via_embedding=False rope_max_timescale=1000000 dtype=float32 weight_dtype=float32 "
    "matmul_precision=highest attention=dot_product enable_tensorboard=False enable_dropout=False "
    f"adam_weight_decay=0.0 steps={STEPS} remat_policy=full scan_layers=True"
)

Step = Callable[[], tuple[Any, Any]]
"""Takes one step: its loss, and all else that it computes."""


def read(weights: Path) -> dict[str, Any]:
    """Our weights as both peers lay them out: input width first, then heads and their size."""
    from safetensors.numpy import load_file

    tensors = load_file(weights / "model.safetensors")

    def of_layer(number: int) -> dict[str, Any]:
        names = {
            "q": ("self_attn.q_proj", (WIDTH, HEADS, HEAD)),
            "k": ("self_attn.k_proj", (WIDTH, KV_HEADS, HEAD)),
            "v": ("self_attn.v_proj", (WIDTH, KV_HEADS, HEAD)),
            "o": ("self_attn.o_proj", (HEADS, HEAD, WIDTH)),
            "gate": ("mlp.gate_proj", (WIDTH, FEED_FORWARD)),
            "up": ("mlp.up_proj", (WIDTH, FEED_FORWARD)),
            "down": ("mlp.down_proj", (FEED_FORWARD, WIDTH)),
            "before": ("input_layernorm", (WIDTH,)),
            "between": ("post_attention_layernorm", (WIDTH,)),
        }
        return {
            name: tensors[f"model.layers.{number}.{key}.weight"].T.reshape(shape)
            for name, (key, shape) in names.items()
        }

    return {
        "layers": [of_layer(number) for number in range(LAYERS)],
        "embedding": tensors["model.embed_tokens.weight"],
        "norm": tensors["model.norm.weight"],
        "head": tensors["lm_head.weight"].T,
    }


def maxtext(weights: dict[str, Any], tokens: np.ndarray, settings: list[str]) -> tuple[Step, int]:
    """A step of MaxText's pre-training, and the number of the model's parameters."""
    import jax
    import maxtext as package
    from flax import nnx
    from maxtext.trainers.pre_train import train
    from maxtext.utils import sharding, train_utils

    rows, length = tokens.shape[0], tokens.shape[1] - 1
    scratch = tempfile.mkdtemp()
    base = str(Path(package.__file__).parent / "configs" / "base.yml")
    places = [f"base_output_directory={scratch}", f"jax_cache_dir={os.environ.get('JAX_COMPILATION_CACHE_DIR', '')}"]
    options = dict(
        option.split("=", 1)
        for option in (
            *MAXTEXT.split(),
            *places,
            f"per_device_batch_size={rows}",
            f"max_target_length={length}",
            *settings,
        )
    )
    config, recorder = train.initialize(["", base, *(f"{name}={value}" for name, value in options.items())])
    made = train_utils.setup_train_loop(config, recorder)
    shardings, mesh = made[2], made[4]
    count = _replace(made[-1].model, _for_maxtext(weights, config.scan_layers))
    model, state = nnx.split(made[-1])
    params_shardings, shardings = sharding.maybe_update_params_sharding_with_opt(config, shardings)
    step, _ = train_utils.jit_train_and_eval_step(
        config, model, mesh, state, shardings, train.train_step, train.eval_step, None, params_shardings
    )
    ones, position = np.ones((rows, length), np.int32), np.tile(np.arange(length, dtype=np.int32), (rows, 1))
    batch = {"inputs": tokens[:, :-1], "targets": tokens[:, 1:]}
    batch |= {f"{name}_position": position for name in ("inputs", "targets")}
    batch |= {f"{name}_segmentation": ones for name in ("inputs", "targets")}
    with jax.set_mesh(mesh), train.logical_axis_rules(config.logical_axis_rules):
        batch = jax.device_put(batch, sharding.get_input_data_sharding(config, mesh))

    def once() -> tuple[Any, Any]:
        nonlocal state
        with jax.set_mesh(mesh), train.logical_axis_rules(config.logical_axis_rules):
            state, metrics = step(state, batch)
        return metrics["scalar"]["learning/loss"], (state, metrics)

    return once, count


def _for_maxtext(weights: dict[str, Any], scan: bool) -> dict[str, Any]:
    """Its tree of parameters; with `scan` it stacks layers on the second axis."""

    def of_layers(get: Callable[[str], np.ndarray]) -> dict[str, Any]:
        query = get("q") * np.float32(HEAD**-0.5)  # it does not scale scores, but begins with smaller weights
        kernels = {"query": query, "key": get("k"), "value": get("v"), "out": get("o")}
        return {
            "mlp": {name: {"kernel": get(own)} for name, own in (("wi_0", "gate"), ("wi_1", "up"), ("wo", "down"))},
            "pre_self_attention_layer_norm": {"scale": get("before")},
            "post_self_attention_layer_norm": {"scale": get("between")},
            "self_attention": {name: {"kernel": kernel} for name, kernel in kernels.items()},
        }

    layers = weights["layers"]
    decoder = {"decoder_norm": {"scale": weights["norm"]}, "logits_dense": {"kernel": weights["head"]}}
    if scan:
        decoder["layers"] = of_layers(lambda name: np.stack([layer[name] for layer in layers], 1))
    else:
        decoder |= {f"layers_{number}": of_layers(layer.__getitem__) for number, layer in enumerate(layers)}
    return {"decoder": decoder, "token_embedder": {"embedding": weights["embedding"]}}


def tunix(weights: dict[str, Any], tokens: np.ndarray, settings: list[str]) -> tuple[Step, int]:
    """A step of Tunix's trainer on all weights of its Llama, and their number."""
    import jax
    import jax.numpy as jnp
    import optax
    from flax import nnx
    from tunix.models.llama3 import model as llama
    from tunix.sft.peft_trainer import PeftTrainer, TrainingConfig

    options = {"remat_config": "NONE"} | dict(setting.split("=", 1) for setting in settings)
    shape = llama.ModelConfig(
        num_layers=LAYERS,
        vocab_size=VOCABULARY,
        embed_dim=WIDTH,
        hidden_dim=FEED_FORWARD,
        num_heads=HEADS,
        head_dim=HEAD,
        num_kv_heads=KV_HEADS,
        rope_theta=1_000_000,
        norm_eps=1e-5,
        remat_config=llama.RematConfig[options["remat_config"]],
    )
    model = llama.Llama3(shape, rngs=nnx.Rngs(0))
    layers = {
        number: {
            "attn": {f"{name}_proj": {"w": layer[name]} for name in "qkvo"},
            "mlp": {f"{name}_proj": {"kernel": layer[name]} for name in ("gate", "up", "down")},
            "input_layernorm": {"w": layer["before"]},
            "post_attention_layernorm": {"w": layer["between"]},
        }
        for number, layer in enumerate(weights["layers"])
    }
    ours = {"embedder": {"input_embedding": weights["embedding"]}, "layers": layers}
    ours |= {"final_norm": {"w": weights["norm"]}, "lm_head": {"w": weights["head"]}}
    count = _replace(model, ours)

    def loss(model: Any, tokens: Any, targets: Any, positions: Any, mask: Any) -> Any:
        """As Tunix's own, but for targets that are given, so that its products too are of 512 slots."""
        logits, _ = model(tokens, positions, None, mask)
        one_hot = jax.nn.one_hot(targets, logits.shape[-1])
        return -jnp.sum(jax.nn.log_softmax(logits) * one_hot) / targets.size

    optimizer = optax.chain(optax.clip_by_global_norm(1.0), optax.adamw(1e-4, b2=0.95, weight_decay=0.0))
    trainer = PeftTrainer(model, optimizer, TrainingConfig(eval_every_n_steps=1000, max_steps=STEPS))
    trainer = trainer.with_loss_fn(loss).with_gen_model_input_fn(lambda batch: batch)
    step, _ = trainer.jit_train_and_eval_step(cache_nnx_graph=True)
    rows, length = tokens.shape[0], tokens.shape[1] - 1
    mask = np.tile(np.tri(length, dtype=bool), (rows, 1, 1))
    position = np.tile(np.arange(length, dtype=np.int32), (rows, 1))
    batch = {"tokens": tokens[:, :-1], "targets": tokens[:, 1:], "positions": position, "mask": mask}
    batch = jax.device_put(batch)

    def once() -> tuple[Any, Any]:
        value, _, norm = step(batch)
        return value, (norm, nnx.state(model), nnx.state(trainer.optimizer))

    return once, count


def _replace(model: Any, values: dict[str, Any]) -> int:
    """Gives a model these parameters, which must have its paths and shapes; returns how many numbers they are."""
    import jax
    from flax import nnx

    params = nnx.state(model, nnx.Param)
    shapes = [{str(path): leaf.shape for path, leaf in nnx.to_flat_state(params)}]
    nnx.replace_by_pure_dict(params, values)
    shapes.append({str(path): leaf.shape for path, leaf in nnx.to_flat_state(params)})
    if shapes[0] != shapes[1]:
        raise SystemExit(f"parameters differ: {shapes}")
    nnx.update(model, params)
    return sum(leaf.size for leaf in jax.tree.leaves(values))


def main() -> None:
    name, weights, tokens, *settings = sys.argv[1:]
    step, parameters = {"maxtext": maxtext, "tunix": tunix}[name](read(Path(weights)), np.load(tokens), settings)
    import jax

    seconds, losses = [], []
    for _ in range(STEPS):
        begun = time.perf_counter()
        loss, _ = jax.block_until_ready(step())
        seconds.append(time.perf_counter() - begun)
        losses.append(float(loss))
    version = f"{PACKAGES[name]} {importlib.metadata.version(PACKAGES[name])}, jax {jax.__version__}"
    print(json.dumps({"seconds": seconds[1:], "losses": losses, "parameters": parameters, "version": version}))


if __name__ == "__main__":
    main()
