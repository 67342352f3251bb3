"""What is said of a plan: the numbers of the plan, in words and pictures that can be read."""

import dataclasses
import io
import itertools
import json

import matplotlib.image
import pytest
from rich.console import Console

from janus_jax.planning.chips.roofline import StepFlops
from janus_jax.planning.chips.slices import find_slice
from janus_jax.planning.hlo.memory import Buffer
from janus_jax.planning.report.grouping import buffer_groups, collective_traffic
from janus_jax.planning.report.picture import _apart, picture
from janus_jax.planning.report.text import operations, seconds, show, show_timing, size
from janus_jax.planning.result import Plan, Timing
from tests.support.plans import GIB, INSIDE, example_plan


@pytest.fixture
def fitting() -> Plan:
    return example_plan()


@pytest.fixture
def too_large(fitting) -> Plan:
    """XLA gave up."""
    memory = dataclasses.replace(fitting.memory, peak=None, temporaries=(), estimated_temporaries=0)
    nothing = {"collectives": (), "findings": (), "bound": None}
    return dataclasses.replace(fitting, fits=False, reason="the step needs 38.2G", memory=memory, **nothing)


@pytest.fixture
def simulated(fitting) -> Plan:
    memory = dataclasses.replace(fitting.memory, usable=None)
    return dataclasses.replace(
        fitting, target=find_slice("cpu:8"), num_slices=1, memory=memory, bound=None, usd_per_hour=None
    )


def printed(plan: Plan, width: int = 80, **how: object) -> list[str]:
    file = io.StringIO()
    console = Console(file=file, width=width, markup=False, highlight=False, emoji=False, **how)  # type: ignore[arg-type]
    show(plan, console, prices_of="2025-11")
    return file.getvalue().splitlines()


def cells(lines: list[str], label: str) -> str:
    """The line that begins with a label, without it and with single spaces."""
    (only,) = [line for line in lines if line.startswith(label)]
    return " ".join(only.removeprefix(label).split())


def test_the_memory_of_a_host_is_told_beside_what_it_has(fitting, simulated):
    for plan, has in (
        (fitting, "what a host of this slice has is not known here"),
        (simulated, "this machine has 8.00 GiB"),
    ):
        present = None if plan is fitting else 8 * GIB
        memory = dataclasses.replace(plan.memory, host=GIB // 4, host_present=present)
        lines = printed(dataclasses.replace(plan, memory=memory), width=100)
        text = " ".join(" ".join(lines).split())
        assert f"host: at least 0.25 GiB of a host's own memory, libraries and data files not counted; {has}" in text


def test_what_lies_beside_the_step_is_told(fitting):
    memory = dataclasses.replace(fitting.memory, code=GIB, reference=GIB // 2, peak_is_estimate=True)
    lines = printed(dataclasses.replace(fitting, memory=memory, flops=StepFlops(1e15, 0, 2e15)))
    assert cells(lines, "code") == "1.00 the compiled programs; exact"
    assert cells(lines, "needed") == "13.50" and "estimated" in cells(lines, "temporaries")
    assert not any("the compiler reports" in line for line in lines)
    assert "2.00 PFLOP for the reference" in " ".join(" ".join(lines).split())
    failed = dataclasses.replace(fitting.memory, evaluation_failed=True)
    lines = printed(dataclasses.replace(fitting, fits=False, reason="evaluation", memory=failed))
    assert cells(lines, "evaluation") == "more than a device has; the compiler gave up"
    assert not any(line.startswith("free") for line in lines)


def timed(plan: Plan, **more: object) -> list[str]:
    values = {"device": "TPU v5 lite", "devices": 32, "tokens_per_step": 256000, "held_bytes": 13 * GIB, **more}
    file = io.StringIO()
    console = Console(file=file, width=80, markup=False, highlight=False, emoji=False)
    show_timing(Timing(plan=plan, seconds=(9.0, 8.0, 8.5), **values), console)  # type: ignore[arg-type]
    return file.getvalue().splitlines()


def test_what_was_measured_stands_beside_the_plan(fitting):
    lines = timed(fitting)
    assert lines[0] == "MEASURED on 32 x TPU v5 lite: 8.5 s per step"
    assert cells(lines, "step ") == "8.5 s 4 s at the bound; 5.62 s in series"
    assert cells(lines, "tokens/s") == "30,118 64,000 at the bound"
    assert cells(lines, "work per device") == "44.12 TFLOP/s"  # 1.2e16 / 32 / 8.5
    assert cells(lines, "MFU") == "37.6% 80.0% at the bound"  # 0.8 * 4 / 8.5
    assert cells(lines, "memory per device") == "13.00 GiB 12.00 GiB the compiler's"
    message = " ".join(" ".join(lines).split())
    assert "median of 3 steps, 8 s to 9 s" in message and "while it made weights and moments" in message


def test_without_figures_only_what_was_measured_is_shown(simulated):
    lines = timed(simulated, device="cpu", devices=8, held_bytes=None)
    assert cells(lines, "step ") == "8.5 s" and not any(line.startswith("MFU") for line in lines)
    assert cells(lines, "memory per device").startswith("not reported ")
    assert "none: no figures for cpu:8" in lines[-1]


def test_what_evaluation_needs_is_told(fitting):
    memory = dataclasses.replace(fitting.memory, evaluation=13 * GIB)
    lines = printed(dataclasses.replace(fitting, memory=memory))
    assert lines[0].startswith("FITS: 13.00 of 15.75 GiB") and cells(lines, "evaluation").startswith(
        "13.00 its own total"
    )
    assert cells(lines, "needed") == "13.00"


def test_what_samples_need_beside_the_weights_is_told_and_counts(fitting):
    parts = {"weights": 2 * GIB, "cache": GIB, "temporaries": GIB}
    memory = dataclasses.replace(fitting.memory, samples=parts)
    kept = memory.arguments["parameters"] + memory.arguments["moments"]
    assert memory.sampling == kept + 4 * GIB and memory.needed == fitting.memory.needed  # there is no step meanwhile
    lines = printed(dataclasses.replace(fitting, memory=memory))
    text = " ".join(" ".join(lines).split())
    beside = "samples: 4.00 GiB beside the step's weights and moments, between steps"
    assert f"{beside}: weights 2.00 GiB, cache 1.00 GiB, temporaries 1.00 GiB; an estimate" in text
    assert cells(lines, "samples ").startswith(f"{memory.sampling / GIB:.2f} their total")
    large = dataclasses.replace(memory, samples=parts | {"cache": 20 * GIB})
    assert large.samples_are_most and large.needed == kept + 23 * GIB + large.reference + large.code
    assert not any("samples" in line for line in printed(fitting))


def test_the_verdict_is_the_first_line_and_every_figure_is_the_plans(fitting):
    lines = printed(fitting)
    assert lines[0] == "FITS: 12.00 of 15.75 GiB on each device of 2 x v5litepod-16, 3.75 GiB free"
    expected = {
        "slice:": "2 x v5litepod-16 (v5e:4x4): 32 chips, 32 devices, 8 hosts",
        "mesh:": "data 2 x fsdp 16 x tensor 1 x context 1",
        "step:": "sft, 64 rows of 8,192 slots in 2 microbatches of 1 row per device",
        "memory:": "remat full, moments float32",
        "assumed:": "the data are not on this machine [at all]",
        "note:": "model.vocab_size is [large]",
        "parameters": "2.00 exact",
        "moments": "4.00 exact",
        "batch": "0.00 exact",
        "temporaries": "6.00 the compiler's peak minus the arguments above",
        "needed": "12.00",
        "usable": "15.75 what libtpu lets a program use",
        "free": "3.75",
        "saved block inputs": "2.00 1 bf16[32,1,8192,4096]",
        "all-gather": "fsdp ICI 66 4.00 75 %",
        "all-reduce": "data DCN ~1 0.50 none",
        "Each device sends": "4.50 GiB per step, 0.50 GiB of it over DCN.",
        "warning:": "padding in mlp/dot: 64.00 MiB, f32[7] is filled up to f32[8]",
        "compute": "4 s <- limits the step",
        "HBM  ": "125 ms",
        "DCN": "1 s",
        "bound:": "4 s per step, 64,000 tokens/s, MFU 80.0 %, limited by compute",
        "epoch:": "900 steps, 1.00 hours, 38.40 USD at the bound; 38.40 USD per hour on",
    }
    assert {label: cells(lines, label) for label in expected} == expected
    text = " ".join(" ".join(lines).split())
    assert "12.00 PFLOP per step for the model, 3.00 PFLOP recomputed" in text
    assert "list prices of 2025-11" in text and "A bound, not a promise" in text


@pytest.mark.parametrize("which", ["fitting", "too_large", "simulated"])
def test_it_is_plain_and_at_most_80_wide_when_piped(which, request):
    lines = printed(request.getfixturevalue(which))
    assert max(map(len, lines)) <= 80
    assert [line for line in lines if line != line.rstrip() or "\x1b" in line] == []


def test_a_terminal_gets_colours_and_the_same_words(fitting):
    lines = printed(fitting, force_terminal=True, color_system="standard")
    assert lines[0].startswith("\x1b[1;32mFITS")


def test_a_plan_that_the_compiler_gave_up_has_no_figures_that_it_does_not_know(too_large):
    lines = printed(too_large)
    assert lines[0] == "DOES NOT FIT 2 x v5litepod-16: the step needs 38.2G"
    text = "\n".join(lines)
    assert cells(lines, "needed") == "6.00 plus temporaries; the compiler gave up, see above"
    assert cells(lines, "bound:") == "none: the compiler gave up"
    assert "collectives per step" not in text and "findings: none" not in text and "live at" not in text


def test_a_step_that_compiles_and_does_not_fit_says_what_is_lacking(fitting):
    memory = dataclasses.replace(fitting.memory, reference=5 * GIB)
    lines = printed(dataclasses.replace(fitting, fits=False, reason="17 of 15.75", memory=memory))
    assert lines[0].startswith("DOES NOT FIT")
    assert cells(lines, "reference") == "5.00 weights of the online reference; exact"
    assert cells(lines, "needed") == "17.00" and cells(lines, "missing") == "1.25"


def test_simulated_devices_are_said_to_be_no_tpu(simulated):
    lines = printed(simulated)
    assert lines[0] == "COMPILES for cpu:8: simulated devices have no memory limit and no bound on time"
    assert cells(lines, "bound:") == "none: the devices are simulated"
    assert [line for line in lines if line.startswith(("epoch", "usable", "free"))] == []
    assert "ICI" not in "".join(lines)


def test_gpus_are_said_to_be_no_tpu_and_not_to_be_here(fitting):
    lines = printed(dataclasses.replace(fitting, target=find_slice("h100:8"), num_slices=1, usd_per_hour=None))
    text = " ".join(" ".join(lines).split())
    assert cells(lines, "slice:") == "h100:8: 8 GPUs of one machine"
    assert "all-gather fsdp NVLink 66" in text and cells(lines, "NVLink") == "500 ms"
    assert "90% of the GPU's memory" in text and "one block" in cells(lines, "temporaries")
    assert "Compiled for a GPU that is not here, and not checked on one" in text
    assert not any(word in text for word in ("ICI", "libtpu lets", "over DCN", "chips,"))


def test_without_data_there_is_no_epoch_and_without_a_price_no_cost(fitting):
    none = printed(dataclasses.replace(fitting, steps_per_epoch=None))
    message = " ".join(" ".join(none).split())
    assert "its length is unknown without the data set; 1,000 steps take 1.11 hours, 42.67 USD at the bound" in message
    assert cells(none, "in series:") == "5.62 s per step if nothing overlaps"
    free = printed(dataclasses.replace(fitting, usd_per_hour=None))
    assert cells(free, "epoch:") == "900 steps, 1.00 hours at the bound; no price for this chip"


def test_buffers_are_grouped_by_what_they_are_for(fitting):
    groups = {group.label: (group.bytes / GIB, group.count) for group in buffer_groups(fitting)}
    assert groups == {
        "saved block inputs": (2, 1),
        "gradients, float32": (1, 1),
        "bfloat16 copy of the weights": (1, 2),
        "gradients, bfloat16": (0.25, 1),
        "MLP activations": (0.5, 2),
        "gathered weights": (0.25, 2),
        "attention activations": (0.0625, 1),  # 32 heads, not 32 layers
        "embedding, logits and head": (0.0625, 1),
        "other": (0.0625, 1),
    }


def test_rows_as_long_as_the_model_is_wide_do_not_make_activations_weights(fitting):
    buffers = (
        Buffer(GIB, "bf16[4096,14336]", f"{INSIDE}/mlp/bld,df->blf/dot_general"),
        Buffer(GIB // 2, "bf16[1,4096,14336]", f"{INSIDE}/jit(dynamic_index_in_dim)/squeeze"),
        Buffer(GIB // 4, "bf16[1,4096,4096]", "jit(train)/while/body/jvp(head)/mul"),
    )
    memory = dataclasses.replace(fitting.memory, temporaries=buffers)
    groups = buffer_groups(dataclasses.replace(fitting, row_length=4096, memory=memory))
    assert [group.label for group in groups] == ["MLP activations", "gathered weights", "other"]


def test_collectives_are_summed_by_kind_axes_and_network(fitting):
    first, second = collective_traffic(fitting)
    assert (first.count, first.wire_bytes, first.async_bytes, first.network) == (66, 4 * GIB, 3 * GIB, "ICI")
    assert (second.axes, second.network, second.is_certain) == (("data",), "DCN", False)


def test_numbers_have_units_that_suit_them():
    assert [size(count) for count in (0, 300, 5 << 20, 3 * GIB)] == ["0.00 KiB", "0.29 KiB", "5.00 MiB", "3.00 GiB"]
    assert [operations(count) for count in (0, 999, 1e12, 2.5e19)] == [
        "0.00 FLOP",
        "999.00 FLOP",
        "1.00 TFLOP",
        "25.00 EFLOP",
    ]
    assert [seconds(value) for value in (0, 0.0123, 4.506, float("inf"))] == ["0 s", "12.3 ms", "4.51 s", "no figure"]


# The picture


@pytest.mark.parametrize("which", ["fitting", "too_large", "simulated"])
def test_no_two_texts_of_the_picture_overlap(which, request, tmp_path, monkeypatch):
    from matplotlib import pyplot

    kept = []
    monkeypatch.setattr(pyplot, "close", kept.append)
    picture(request.getfixturevalue(which), tmp_path / "plan.png")
    (figure,) = kept
    pixels = matplotlib.image.imread(tmp_path / "plan.png")
    assert pixels.shape[:2] == (770, 1320)
    renderer = figure.canvas.get_renderer()
    boxes = [(each.get_text(), each.get_window_extent(renderer)) for each in _texts(figure)]
    frame = figure.bbox
    assert [text for text, box in boxes if box.x0 < 0 or box.y0 < 0 or box.x1 > frame.x1 or box.y1 > frame.y1] == []
    pairs = [(a[0], b[0]) for i, a in enumerate(boxes) for b in boxes[:i] if a[1].overlaps(b[1])]
    monkeypatch.undo()
    pyplot.close(figure)
    assert pairs == []
    assert len(boxes) > 8


def _texts(figure) -> list:
    """All that are drawn: of ticks' labels those within the axes."""
    texts = [figure._suptitle]
    for axes in figure.axes:
        texts += [*axes.texts, axes._left_title]
        if not axes.axison:
            continue
        texts += [axes.xaxis.label, axes.yaxis.label]
        for axis, limits in ((axes.xaxis, axes.get_xlim()), (axes.yaxis, axes.get_ylim())):
            shown = [tick for tick in axis.get_major_ticks() if min(limits) <= tick.get_loc() <= max(limits)]
            texts += [tick.label1 for tick in shown]
    return [text for text in texts if text.get_text().strip()]


def test_labels_keep_apart_and_stay_where_they_belong():
    assert _apart([1, 5, 9], 1) == [1, 5, 9]
    moved = _apart([0.0, 4.9, 5.0, 5.1, 10.0, 10.0], 1)
    assert min(b - a for a, b in itertools.pairwise(moved)) >= 1 - 1e-9 and moved == sorted(moved)
    assert moved[-1] <= 10 and moved[0] >= 0


# JSON


def test_what_json_gets_can_be_written_and_has_the_derived_figures(fitting):
    stored = json.loads(json.dumps(fitting.to_json()))
    assert stored["hours_per_epoch"] == 1 and stored["memory"]["needed"] == 12 * GIB
    assert stored["bound"]["limit"] == "compute" and stored["parameters"]["final_norm"] == {
        "shape": [4096],
        "on_device": [256],
    }
