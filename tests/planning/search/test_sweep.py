"""Estimates against what was compiled, and sweeps: which cells there are, which are compiled, what is kept of them."""

import dataclasses
import math

import pytest

from janus_jax.config.changes import changed
from janus_jax.config.run import RunConfig
from janus_jax.errors import ConfigError
from janus_jax.model.remat import as_text
from janus_jax.parallel import mesh as meshes
from janus_jax.planning import plan
from janus_jax.planning.chips.slices import devices, find_slice, load_chips
from janus_jax.planning.compile import ProgramRefused, program_of
from janus_jax.planning.inputs import find_inputs
from janus_jax.planning.search import sweep as sweeping
from janus_jax.planning.search import worker
from janus_jax.planning.search.cache_key import cache_key, code_hash
from janus_jax.planning.search.candidates import SearchSpace, mesh_shapes
from janus_jax.planning.search.estimate import MARGIN, choices_of_kept, estimate
from janus_jax.planning.search.pareto import pareto, plot
from janus_jax.planning.search.sweep import Cell, sweep
from janus_jax.planning.search.worker import write_result
from tests.support.run_configs import recipe

MODEL = {"preset": "tiny", "vocab_size": 64, "hidden_size": 32, "intermediate_size": 48, "head_dim": 8}


def tiny(**changes) -> RunConfig:
    values = {
        "run": {"dir": "runs/tiny"},
        "model": MODEL,
        "data": {"dir": "nowhere"},
        "batch": {"rows": 8, "row_length": 64, "max_sequence_length": 32},
        "objective": {"name": "sft"},
        "schedule": {"name": "constant", "learning_rate": 1e-3, "steps": 5},
        "mesh": {"fsdp": -1},
        **changes,
    }
    return RunConfig.model_validate(values)


ONE_ROW, TWO_ROWS = ("batch.rows=16", "batch.microbatches=1"), ("batch.rows=32", "batch.microbatches=1")
NARROW, DOTS = "optimizer.moments=bfloat16", "remat=dots"
COMPILED = [
    ("v5litepod-16", recipe("sft_65k", *ONE_ROW), 5.058, 9.893),
    ("v5litepod-16", recipe("sft_65k", *TWO_ROWS), 5.059, 13.709),
    ("v5litepod-16", recipe("dpo"), 5.059, 8.307),
    ("v5litepod-16", recipe("sft_65k", "mesh.tensor=4", "batch.microbatches=8"), 5.060, 8.771),
    ("v5litepod-16", recipe("sft_65k", *ONE_ROW, "remat=offload"), 5.058, 9.100),
    ("v5litepod-8", recipe("sft_65k", NARROW, "remat=offload", "batch.microbatches=4"), 6.745, 15.157),
    ("v4-32", recipe("sft_65k", "batch.rows=16", "mesh.tensor=2", "mesh.context=2"), 10.117, 19.898),
    ("v5litepod-16", recipe("rm", "batch.microbatches=1"), 4.967, 13.649),
    ("v5litepod-16", recipe("orpo", "mesh.fsdp=2", "mesh.tensor=8", "batch.microbatches=2", DOTS), 5.060, 14.814),
    ("v5litepod-64", recipe("sft_65k", *TWO_ROWS, "mesh.tensor=2", DOTS), 1.265, 13.681),
    ("v5litepod-8", recipe("sft_65k", "batch.rows=8", "batch.microbatches=1", "remat=offload"), 10.117, 15.058),
    ("v6e-16", recipe("dpo", "mesh.fsdp=4", "mesh.tensor=4", DOTS), 5.059, 13.360),
    ("v5p-32", recipe("sft_65k", *ONE_ROW, "remat=none"), 5.058, 80.875),
    ("v5p-16", recipe("sft_65k", "remat=dots", "batch.microbatches=4"), 10.117, 39.117),
]
"""Slice, configuration, GiB of arguments, GiB at the peak: of the program as libtpu 0.0.50 compiled it."""
REFUSED = [
    ("v5litepod-8", recipe(), 23.55),
    ("v5litepod-8", recipe("sft_65k", NARROW, "batch.microbatches=4"), 17.08),
    ("v5litepod-8", recipe("sft_65k", NARROW, "remat=offload"), 16.62),
]
"""GiB that XLA asked for where there were 15.75."""


@pytest.mark.parametrize(("topology", "config", "arguments", "peak"), COMPILED)
def test_estimates_are_near_what_was_compiled(topology, config, arguments, peak):
    target = find_slice(topology)
    estimated, usable = estimate(config, target), load_chips().chips[target.family].usable_hbm_bytes_per_device
    assert estimated.arguments / 2**30 == pytest.approx(arguments, abs=2e-3)
    assert estimated.bytes / 2**30 == pytest.approx(peak, rel=MARGIN - 1)
    assert not estimated.is_hopeless(usable)


@pytest.mark.parametrize(("topology", "config", "asked"), REFUSED)
def test_estimates_are_near_what_was_refused(topology, config, asked):
    assert estimate(config, find_slice(topology)).bytes / 2**30 == pytest.approx(asked, rel=MARGIN - 1)


def test_only_what_is_far_too_large_is_hopeless():
    usable = load_chips().chips["v5e"].usable_hbm_bytes_per_device
    hopeless = [estimate(config, find_slice(topology)).is_hopeless(usable) for topology, config, _ in REFUSED]
    assert hopeless == [True, False, False]
    assert not estimate(recipe(), find_slice("v5litepod-8")).is_hopeless(None)


@pytest.mark.parametrize(
    "changes",
    [
        {"mesh.tensor": 2, "mesh.fsdp": 2, "mesh.context": 2},
        {"optimizer.moments": "bfloat16", "batch.microbatches": 1},
        {"mesh.data": 4, "mesh.fsdp": 2, "compat.bfloat16_weights": True},
    ],
)
def test_arguments_are_exact(changes, uncompiled):
    config = changed(tiny(), changes)
    exact = sum(plan(config, "cpu:8").memory.arguments.values())
    # Counters of the optimizer, a few numbers in all, are left out.
    assert exact - 64 <= estimate(config, find_slice("cpu:8")).arguments <= exact


@pytest.mark.parametrize(("rules", "shares"), [((), 4), (("sharding.batch=[data, tensor]", "sharding.embed=null"), 1)])
def test_inputs_of_blocks_are_kept_whole_where_rows_are_split_over_the_axes_of_mlp(rules, shares):
    """Each slot of a row adds one block's input for each of 32 layers, and what one block computes."""
    mesh = "mesh.data=4", "mesh.fsdp=1", "mesh.tensor=4", "batch.microbatches=1"
    short, long = (
        estimate(recipe("sft_65k", *mesh, *rules, f"batch.row_length={length}"), find_slice("v5litepod-16"))
        for length in (8192, 16384)
    )
    slots = 32 / (16 if rules else 4) * 8192
    kept, block = 32 * 4096 / shares, 4 * 14336 / 4 + 9 * 4096
    assert (long.temporaries - short.temporaries) / slots == pytest.approx(2 * (kept + block), rel=1e-6)


def test_estimates_refuse_what_training_refuses():
    """Of all meshes of eight devices, by the trainer's own program."""
    target = find_slice("cpu:8")
    accepted = []
    for sizes in mesh_shapes(8):
        config, outcomes = tiny(mesh=sizes), []
        mesh = meshes.build_mesh(meshes.MeshShape(**sizes), devices(target))
        for attempt in (
            lambda config=config: estimate(config, target),
            lambda config=config, mesh=mesh: program_of(config, find_inputs(config, 8), mesh),
        ):
            try:
                attempt()
            except ConfigError:
                outcomes.append(False)
            else:
                outcomes.append(True)
        assert outcomes[0] == outcomes[1], sizes
        accepted += [sizes] * outcomes[0]
    assert 0 < len(accepted) < 20


def test_an_online_reference_is_counted():
    with_it = recipe("dpo", "reference.mode=online")
    kept = estimate(with_it, find_slice("v5litepod-16")).reference
    assert kept / 2**30 == pytest.approx(0.843, abs=1e-3) and not estimate(recipe("dpo"), find_slice("v4-32")).reference


def test_meshes_are_all_factorisations():
    shapes = list(mesh_shapes(8))
    assert len({tuple(sizes.values()) for sizes in shapes}) == len(shapes) == 20  # 3 twos over 4 axes
    assert {math.prod(sizes.values()) for sizes in shapes} == {8}
    assert {sizes["data"] for sizes in mesh_shapes(8, 4)} == {4, 8}


class Compiler:
    """In place of a compiler: what fits takes longer with less memory. Ends the sweep at its `die_at`th call."""

    def __init__(self, die_at=None):
        self.jobs, self.die_at = [], die_at

    def __call__(self, job):
        if len(self.jobs) == self.die_at:
            raise KeyboardInterrupt
        self.jobs.append(job)
        config = job["config"]
        peak = 2**30 * (8 + len(self.jobs))
        seconds = {"none": 1.0, "dots": 1.1, "full": 1.3, "offload": 1.3}.get(str(config["remat"]), 1.2)
        bound = {"serial_seconds": seconds + 0.2, "tokens_per_s": 1e5 / seconds}
        fits = config["optimizer"]["moments"] == "bfloat16"
        result = {"plan": {"fits": fits, "reason": None, "bound": bound, "memory": {"needed": peak, "usable": 2**34}}}
        result["plan"]["tokens_per_step"] = 1e5
        sweeping.Path(job["path"]).parent.mkdir(exist_ok=True)
        write_result(sweeping.Path(job["path"]), result)
        return result


def run(cache, compiler, config=None, topology="v5litepod-16", **options):
    return sweep(config or recipe(), topology, run=compiler, workers=1, cache=cache, **options)


TWO_MESHES = SearchSpace(meshes=({"fsdp": 16}, {"fsdp": 8, "tensor": 2}))
"""Instead of all meshes, whose thousand cells take seconds to estimate."""


def test_a_sweep_that_was_ended_goes_on_where_it_was(tmp_path):
    first = Compiler(die_at=3)
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path, first, space=TWO_MESHES, limit=6)
    second, seen = Compiler(), []
    cells = run(tmp_path, second, space=TWO_MESHES, limit=6, report=seen.append)
    assert len(first.jobs) == 3 and len(second.jobs) == 3 and len(seen) == 3
    assert not {job["path"] for job in first.jobs} & {job["path"] for job in second.jobs}
    assert sum(cell.was_known for cell in cells) == 3
    third = Compiler()
    again = run(tmp_path, third, space=TWO_MESHES, limit=6)
    assert [dataclasses.replace(cell, was_known=False) for cell in again] == [
        dataclasses.replace(cell, was_known=False) for cell in cells
    ]
    assert third.jobs == []


def test_what_another_program_would_be_is_compiled_again(tmp_path):
    space = SearchSpace(
        meshes=({"data": 1, "fsdp": 16, "tensor": 1, "context": 1},), remat=("full",), moments=("bfloat16",)
    )
    for times, (config, options) in enumerate(
        [
            (recipe(), {}),
            (recipe("sft_65k", "schedule.learning_rate=1e-5"), {}),
            (recipe("sft_65k", "precision.attention=reference"), {}),
            (recipe("sft_65k", "batch.max_segments=7"), {}),
            (recipe(), {"topology": "v6e-16"}),
        ],
        1,
    ):
        compiler = Compiler()
        run(tmp_path, compiler, config, space=space, **options)
        assert len(compiler.jobs) == 2 and len(list(tmp_path.glob("*.json"))) == 2 * times
    compiler = Compiler()
    run(tmp_path, compiler, recipe("sft_65k", "run.dir=elsewhere", "logging.every_steps=7"), space=space)
    assert compiler.jobs == []


@pytest.mark.parametrize("name", ["LIBTPU_INIT_ARGS", "XLA_FLAGS", "JAX_DEFAULT_MATMUL_PRECISION"])
def test_flags_of_the_compiler_are_part_of_what_is_known(name, monkeypatch):
    run = recipe()
    target, inputs = find_slice("v5litepod-16"), find_inputs(run, 16)
    names = []
    for value in ("--one", "--other", "--one"):
        monkeypatch.setenv(name, value)
        names.append(cache_key(run, inputs, target, 1, None))
    assert names[0] == names[2] != names[1]


def test_cells_are_ranked_and_what_was_left_out_is_said(tmp_path):
    compiler, whole = Compiler(), {"data": 16, "fsdp": 1}
    cells = run(tmp_path, compiler, space=SearchSpace(meshes=(*TWO_MESHES.meshes, whole)), limit=8)
    by_status = {status: [cell for cell in cells if cell.status == status] for status in ("fits", "too large")}
    assert sum(map(len, by_status.values())) == len(compiler.jobs) == 8
    for some in by_status.values():
        speeds = [cell.serial_tokens_per_s for cell in some]
        assert speeds == sorted(speeds, reverse=True)
    assert [cell.status for cell in cells[:8]] == sorted(
        (cell.status for cell in cells[:8]), key=["fits", "too large"].index
    )
    left, hopeless = ([cell for cell in cells if cell.status == status] for status in ("left out", "hopeless"))
    assert all("8 others" in cell.reason for cell in left) and all("by estimate" in cell.reason for cell in hopeless)
    assert left and hopeless and len(left) + len(hopeless) + 8 == len(cells)
    usable = load_chips().chips["v5e"].usable_hbm_bytes_per_device
    assert min(cell.estimated_bytes for cell in hopeless) > MARGIN * usable
    assert max(cell.estimated_bytes for cell in cells if cell not in hopeless) <= MARGIN * usable


def test_overrides_of_a_cell_make_its_configuration(tmp_path):
    compiler = Compiler()
    for cell in [cell for cell in run(tmp_path, compiler, space=TWO_MESHES, limit=4) if cell.peak]:
        made = recipe("sft_65k", *cell.changes)
        assert (as_text(made.remat), made.optimizer.moments) == (cell.remat, cell.moments)
        assert made.mesh.model_dump() == cell.mesh and made.batch.microbatches == cell.microbatches
        assert made.batch.rows == 32 == cell.rows_per_device * cell.microbatches * cell.mesh["data"] * cell.mesh["fsdp"]
        assert made.model_dump(mode="json", by_alias=True) in [job["config"] for job in compiler.jobs]


def test_lists_of_tensors_are_the_best_that_fit_by_estimate(tmp_path):
    mesh, usable = {"fsdp": 16}, load_chips().chips["v5e"].usable_hbm_bytes_per_device
    space = SearchSpace(meshes=(mesh,), moments=("float32",))
    cells = run(tmp_path, Compiler(), space=space, limit=2)
    lists = [cell for cell in cells if cell.remat.startswith("[")]
    assert {cell.microbatches for cell in lists} == {1, 2} and lists[0].status == "too large"
    for cell in lists:
        made = recipe("sft_65k", *cell.changes)
        known = choices_of_kept(made, find_slice("v5litepod-16"))
        (place,) = [place for place, choice in enumerate(known) if choice.remat == made.remat]
        assert cell.estimated_bytes == known[place].bytes < usable and known[place + 1].bytes > 0.97 * usable
    assert not [cell for cell in run(tmp_path, Compiler(), tiny(), "cpu:8", limit=0) if cell.remat.startswith("[")]


def test_rows_per_device_that_are_asked_for(tmp_path):
    cells = run(tmp_path, Compiler(), space=SearchSpace(rows_per_device=(3,), remat=("full",)), limit=0)
    assert {cell.rows_per_device for cell in cells} == {3}
    every = SearchSpace(remat=("full",), moments=("float32",))
    everything = run(tmp_path, Compiler(), recipe("dpo"), space=every, limit=0)
    assert len({cell.rows_per_device for cell in everything}) > 1
    one = dataclasses.replace(every, rows_per_device=(1,))
    some = run(tmp_path, Compiler(), recipe("dpo"), space=one, limit=0)
    assert {cell.rows_per_device for cell in some} == {1}


def test_no_cell_at_all_is_an_error(tmp_path):
    with pytest.raises(ConfigError, match="kv_heads"):
        run(tmp_path, Compiler(), space=SearchSpace(meshes=({"data": 1, "fsdp": 1, "tensor": 16, "context": 1},)))


def test_processes_compile_and_results_stay(tmp_path):
    """For real, on simulated devices."""
    config, space = tiny(), SearchSpace(meshes=({"data": 1, "fsdp": 2, "tensor": 1, "context": 1},), remat=("full",))
    narrow = dataclasses.replace(space, moments=("bfloat16",), rows_per_device=(2,))
    (cell,) = sweep(config, "cpu:2", space=narrow, cache=tmp_path, workers=1)
    assert cell.status == "fits" and cell.reason is None and not cell.was_known
    assert cell.plan["mesh"]["fsdp"] == 2 and cell.microbatches == cell.plan["microbatches"] == 2
    assert cell.peak > sum(cell.plan["memory"]["arguments"].values()) and cell.tokens_per_s is None
    (again,) = sweep(config, "cpu:2", space=narrow, cache=tmp_path, workers=1)
    assert again == dataclasses.replace(cell, was_known=True)


def test_what_xla_refuses_is_known_afterwards(tmp_path, monkeypatch):
    def refuse(*_, **__):
        raise error

    monkeypatch.setattr(worker, "plan", refuse)
    plain = tiny().model_dump(mode="json", by_alias=True)
    for error, known in ((ProgramRefused("XLA refuses the program: x"), True), (ConfigError("no libtpu"), False)):
        path = tmp_path / type(error).__name__
        job = {
            "config": plain,
            "topology": "cpu:2",
            "num_slices": 1,
            "chips": None,
            "code": code_hash(),
            "path": str(path),
        }
        assert worker.run_job(job | {"code": "of before"})["error"].startswith("the sources have changed")
        assert not path.exists()
        assert worker.run_job(job) == {"error": str(error)} and path.exists() == known
        assert sweeping._read(path) == ({"error": str(error)} if known else None)


def test_axes_that_a_mesh_leaves_out_have_one_device(tmp_path):
    some = run(tmp_path, Compiler(), space=SearchSpace(meshes=({"fsdp": 16},), remat=("full",)))
    assert {tuple(cell.mesh.items()) for cell in some} == {(("data", 1), ("fsdp", 16), ("tensor", 1), ("context", 1))}


def test_a_process_that_dies_fails_its_cell_alone(tmp_path, monkeypatch):
    dying = tmp_path / "python"
    dying.write_text("#!/bin/sh\necho last words >&2\nkill -9 $$\n")
    dying.chmod(0o755)
    monkeypatch.setattr(sweeping.sys, "executable", str(dying))
    job = {"config": {}, "topology": "cpu:2", "num_slices": 1, "chips": None, "path": str(tmp_path / "x.json")}
    assert sweeping._Processes()(job) == {"error": "the process ended with code -9: last words"}
    assert list(tmp_path.iterdir()) == [dying]


def cell(peak, speed, status="fits", remat="full") -> Cell:
    bound = {"tokens_per_s": 2 * speed, "serial_seconds": 100 / speed}
    planned = {"memory": {"needed": peak * 2**30, "usable": 16 * 2**30}, "bound": bound, "tokens_per_step": 100}
    return Cell((), {"data": 1, "fsdp": 8, "tensor": 2, "context": 1}, 1, 1, remat, "float32", 0, status, plan=planned)


def test_the_front_has_what_nothing_else_beats(tmp_path):
    best, smallest = cell(12, 900), cell(8, 500)
    cells = [cell(10, 400), best, smallest, cell(9, 500), cell(13, 900), cell(15, 2000, "too large", "none")]
    assert pareto(cells) == [smallest, best]
    plot(cells, tmp_path / "sweep.png")
    assert (tmp_path / "sweep.png").read_bytes().startswith(b"\x89PNG")
    plot([], tmp_path / "empty.png")
