"""From a configuration to everything that the loop needs. Mistakes are found here, before any step."""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from janus_jax.checkpoint.stored_model import StoredModel, open_model
from janus_jax.config.run import RunConfig
from janus_jax.data.dataset import Dataset, TokenizedDataset
from janus_jax.data.from_config import batch_settings, eval_batch_settings, open_held_out, open_training
from janus_jax.data.loader import Loader
from janus_jax.errors import ConfigError, named
from janus_jax.model.config import ModelConfig
from janus_jax.model.kernels.choice import counts
from janus_jax.model.mistral import Params, init_params, param_specs
from janus_jax.model.remat import INPUT, TENSORS, kept
from janus_jax.objectives import Objective, build_objective
from janus_jax.parallel import environment
from janus_jax.parallel import mesh as meshes
from janus_jax.parallel.host_memory import require_host_memory
from janus_jax.storage import staging
from janus_jax.training.course import Course, Past, course_of
from janus_jax.training.optimizer import Rates
from janus_jax.training.program import Program, build_program
from janus_jax.training.same_tokenizer import (
    check_vocabulary,
    require_same_held_out,
    require_same_tokenizer,
    require_whole_ids,
)
from janus_jax.training.sample_memory import require_room
from janus_jax.training.sample_prompts import SamplePrompts, open_sample_prompts


@dataclasses.dataclass(frozen=True)
class Setup:
    """What a run computes with, without any weights."""

    config: RunConfig
    model: ModelConfig
    objective: Objective
    program: Program
    schedule: Rates
    course: Course
    loader: Loader
    eval_loader: Loader | None
    source: StoredModel | None
    reference: StoredModel | None  # reference.from; None: the initial weights
    past: Past | None  # the newest checkpoint of the run; None: it begins
    samples: SamplePrompts | None  # what is answered while the run trains

    @property
    def total_steps(self) -> int:
        """Optimizer steps of the whole run."""
        return self.course.total_steps

    def learning_rate(self, updates: int) -> float:
        """The rate of the update that follows `updates` others."""
        return float(jax.device_get(_rate(self.schedule, jax.device_put(np.int32(updates)))))

    def initial_params(self, dtype: Any) -> Params:
        """The weights that a fresh run begins from: `init.from`, or random ones of `run.seed`."""
        return self._load(self.source, dtype)

    @property
    def reference_step(self) -> int | None:
        """The step of the run that the reference comes from, since that run may go on; None if it comes from no run."""
        source = self.reference or self.source
        return None if source is None else source.step

    def reference_params(self, step: int | None) -> Params | None:
        """The frozen reference in the compute dtype, to which every use casts it anyway; None if none is needed.

        Args:
            step: `reference_step` when this run began: the reference stays the same if the other run has gone on.
        """
        if not self.objective.needs_reference:
            return None
        model, path = self.source, self.config.init.from_
        if self.reference is not None:
            model, path = self.reference, self.config.reference.from_
        if model is not None and model.step != step:
            assert path is not None
            model = open_model(path, step)
        dtype, kept = self.program.functions.compute.dtype, jnp.dtype(self.config.params_dtype)
        if self.reference is not None or jnp.promote_types(dtype, kept) == kept:
            return self._load(model, dtype)
        initial = self._load(model, kept)  # rounded as the policy's are
        return jax.tree.map(lambda leaf: leaf.astype(dtype), initial)

    def _load(self, source: StoredModel | None, dtype: Any) -> Params:
        """The parameters of the source, or random ones. A language model that becomes a reward model gives all but its
        head; the value head is random."""
        shardings = self.program.state_shardings.params
        if source is not None and source.config == self.model:
            return source.load(dtype=dtype, shardings=shardings)
        key, dtype = jax.random.key(self.config.run.seed), jnp.dtype(dtype)
        if source is None:
            return self.program.random_params(key, dtype)
        specs = param_specs(source.config, dtype)
        body = source.load(dtype=dtype, shardings=meshes.param_shardings(specs, self.program.mesh, self.program.rules))
        init = functools.partial(init_params, self.model, dtype=self.program.params_dtype)
        head = jax.jit(lambda key: init(key)["value_head"].astype(dtype), out_shardings=shardings["value_head"])(key)
        return {name: body[name] if name in body else head for name in shardings}


_rate = jax.jit(lambda schedule, updates: schedule(updates), static_argnums=0)
"""One program for each schedule; operation by operation it would be many small ones."""


def open_reference_source(config: RunConfig, model: ModelConfig) -> StoredModel | None:
    """The model that `reference.from` names; None without it.

    Raises:
        ConfigError: a model of another shape than the trained one, or a reward model.
        ConversionError: it cannot be read.
    """
    path = config.reference.from_
    if path is None:
        return None
    with named("reference.from"):
        reference = open_model(path)
    if reference.config.head != model.head:
        raise ConfigError(f"reference.from={path}: is a reward model; allowed: a language model")
    if reference.config != model:
        ours, theirs = dataclasses.asdict(model), dataclasses.asdict(reference.config)
        differing = [f"{key} {theirs[key]}, not {value}" for key, value in ours.items() if theirs[key] != value]
        raise ConfigError(
            f"reference.from={path}: has another shape than the trained model: {'; '.join(differing)}; allowed: a "
            "model of the same shape"
        )
    return reference


@staging.naming_urls()
def prepare(config: RunConfig, past: Past | None = None) -> Setup:
    """Checks data, weights, mesh and batch against each other and builds the step functions.

    Files are checked before any device is used.

    Args:
        past: the newest checkpoint of the run, to go on from; see `resume.require_same_config`.
    Raises:
        ConfigError, DataError, ConversionError: with the key or file, the value and what is allowed.
        StorageError: data or weights on gs:// that cannot be read.
    """
    dataset, held_out = open_training(config), open_held_out(config)
    source = None
    if config.init.from_ is not None:
        with named("init.from"):
            source = open_model(config.init.from_)
    objective = build_objective(config)
    model = model_to_train(config, None if source is None else source.config, objective)
    for examples in filter(None, (dataset, held_out)):
        for built in examples.parts:
            check_fits(model, built, config)
    reference = open_reference_source(config, model)
    if held_out is not None:
        require_same_held_out(dataset, held_out)
    for examples in filter(None, (dataset, held_out)):
        if model.head == "value":
            require_whole_ids(examples)
        for key, weights in (("init.from", source), ("reference.from", reference)):
            require_same_tokenizer(key, weights, examples, allow_other=config.init.allow_other_tokenizer)
    samples = open_sample_prompts(config, model, dataset)

    mesh = meshes.build_mesh(config.mesh.shape)
    if meshes.Placement(mesh).platform == "cpu":
        environment.keep_freed_memory()
    rules = meshes.merge_rules(config.sharding)
    loader, eval_loader = _loaders(config, dataset, held_out, mesh, rules, objective)
    course = course_of(config, loader, past)
    schedule = course.rates(config)
    loaders = [loader] if eval_loader is None else [loader, eval_loader]
    wanted, place = config.precision.attention, meshes.Placement(mesh)
    shared = max(loader.most_shared_slots() for loader in loaders) if counts("copies", wanted, place) else 0
    exactly = counts("segments", wanted, place)
    segments = max(loader.most_segments() if exactly else loader.max_segments for loader in loaders)
    longest = max(loader.longest_sequence() for loader in loaders) if exactly else None
    sizes = {"shared_slots": shared, "max_segments": segments, "longest": longest}
    program = build_program(config, model, objective, mesh, rules, schedule, **sizes)
    _check_host_memory(config, model, program, loader)
    if samples is not None:
        online = objective.needs_reference and config.reference.mode == "online"
        require_room(samples, model, program, online_reference=online)
    return Setup(
        config=config,
        model=model,
        objective=objective,
        program=program,
        schedule=schedule,
        course=course,
        loader=loader,
        eval_loader=eval_loader,
        source=source,
        reference=reference,
        past=past,
        samples=samples,
    )


def model_to_train(config: RunConfig, stored: ModelConfig | None, objective: Objective) -> ModelConfig:
    """The shape to train: that of the weights to start from, or of `model:`, with the head that the objective reads.

    Args:
        stored: the shape of `init.from`; None without it.
    Raises:
        ConfigError: init.from is a reward model, and the objective needs a head over the vocabulary.
    """
    if stored is None:
        assert config.model is not None
        stored = config.model.build()
    elif stored.head == "value" and objective.head == "lm":
        raise ConfigError(
            f"init.from={config.init.from_}: is a reward model, without a head over the vocabulary; objective "
            f"{objective.name} needs one"
        )
    return dataclasses.replace(stored, head=objective.head)


def check_fits(model: ModelConfig, dataset: TokenizedDataset, config: RunConfig) -> None:
    """Raises ConfigError if a data set has ids or sequences that the model has no room for."""
    check_vocabulary(model, dataset, config.init.from_)
    if config.batch.max_sequence_length > model.max_position_embeddings:
        raise ConfigError(
            f"batch.max_sequence_length={config.batch.max_sequence_length} is more than the model's "
            f"max_position_embeddings={model.max_position_embeddings}"
        )


def _loaders(
    config: RunConfig, dataset: Dataset, held_out: Dataset | None, mesh: Mesh, rules: meshes.Rules, objective: Objective
) -> tuple[Loader, Loader | None]:
    settings = batch_settings(config)
    common: dict[str, Any] = {"mesh": mesh, "rules": rules, "branches": objective.branches, "head": objective.head}
    common |= {"seed": config.run.seed}
    loader = Loader(dataset, settings, epochs=config.schedule.epochs or 0, steps=config.schedule.steps or 0, **common)
    if held_out is None:
        return loader, None
    eval_settings = eval_batch_settings(config, loader.rows)
    assert eval_settings.rows is not None
    meshes.check_rows(eval_settings.rows, mesh, rules, "eval.rows")
    return loader, Loader(held_out, eval_settings, shuffle=False, rows_key="eval.rows", **common)


def _check_host_memory(config: RunConfig, model: ModelConfig, program: Program, loader: Loader) -> None:
    """Raises ConfigError if a step surely needs more memory than this machine has: with `remat: offload`, and where
    devices are simulated, whose memory is this machine's."""
    slots = loader.rows // loader.settings.microbatches * loader.settings.row_length
    mine = host_bytes_of_step(config, model, program, slots) // jax.process_count()
    require_host_memory(loader.host_bytes + mine, loader.keys, "weights, moments, batches and activations of a step")


def host_bytes_of_step(config: RunConfig, model: ModelConfig, program: Program, slots: int) -> int:
    """What a step surely keeps in the memory of all hosts together, in bytes, beside batches: with `remat: offload` the
    activations for the backward pass; on simulated devices these in any case, and weights and moments.

    Args:
        slots: of a microbatch, over all devices.
    """
    simulated, chosen = meshes.Placement(program.mesh).platform == "cpu", kept(config.remat)
    state = sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(program.abstract_state()))
    names = (*chosen.device, *chosen.host) if simulated else chosen.host  # of a slot, kept by each layer
    width = sum(model.hidden_size if name == INPUT else TENSORS[name].width(model) for name in names)
    return slots * width * model.num_layers * program.functions.compute.dtype.itemsize + state * simulated
