"""Communication over computing of the 7B recipes on 16 to 1,024 chips, by arithmetic; draws docs/scaling.svg.

    python -m tests.benchmarks.scaling          # a minute; needs no libtpu, compiles nothing

Weak scaling: a row for each shard of the rows, so that a chip always has the same work. More chips than a slice of
v5e or v6e can have are several slices, with `data` over DCN. Writes the table and the picture of docs/scaling.md.
"""

import contextlib
import dataclasses
import io
import sys
import warnings
from collections.abc import Iterable, Iterator
from pathlib import Path

import matplotlib

from janus_jax.config.run import load_config
from janus_jax.errors import ConfigError
from janus_jax.planning.chips.slices import find_slice
from janus_jax.planning.search.estimate import estimate

matplotlib.use("svg")
from matplotlib import pyplot

ROOT = Path(__file__).parents[2]
PAGE, PICTURE = ROOT / "docs/scaling.md", ROOT / "docs/scaling.svg"
CHIPS = (16, 32, 64, 128, 256, 512, 1024)
FAMILIES = {"v5litepod": ("v5e", 256, 1), "v6e": ("v6e", 256, 1), "v5p": ("v5p", 1024, 2)}
"""Name in slices -> family, chips of the largest slice here, TensorCores of a chip (the names of v5p count them)."""
RECIPES = {
    "SFT, rows of 8192": ("sft_65k", ()),
    "DPO, rows of 4096": ("dpo", ("batch.examples=null",)),
    "reward model, rows of 4096": ("rm", ("batch.examples=null",)),
}
MESHES = {
    "fsdp": {"fsdp": -1},
    "fsdp, tensor 4": {"fsdp": -1, "tensor": 4},
    "fsdp, tensor 8": {"fsdp": -1, "tensor": 8},
    "data, fsdp 16": {"data": -1, "fsdp": 16},
}
_COLOURS, _MARKERS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7"), "os^D"


@dataclasses.dataclass(frozen=True)
class Cell:
    """One step."""

    recipe: str
    family: str
    mesh: str
    chips: int
    slices: int
    compute_s: float
    ici_s: float
    dcn_s: float

    @property
    def ratio(self) -> float:
        """Seconds of all communication over those of computing: below 1, all of it can hide."""
        return (self.ici_s + self.dcn_s) / self.compute_s


def cells(recipes: Iterable[str] = RECIPES, sizes: Iterable[int] = CHIPS) -> Iterator[Cell]:
    """Every step that the meshes allow."""
    for recipe in recipes:
        name, changes = RECIPES[recipe]
        for prefix, (family, largest, cores) in FAMILIES.items():
            for chips in sizes:
                slices = max(1, chips // largest)
                target = find_slice(f"{prefix}-{chips // slices * cores}")
                for mesh, split in MESHES.items():
                    axes = {"data": 1, "fsdp": 1, "tensor": 1, "context": 1} | split
                    if slices > 1:
                        axes["data"] = axes["data"] if axes["data"] == -1 else slices
                    rows = chips // axes["tensor"]
                    made = [f"mesh.{axis}={size}" for axis, size in axes.items()]
                    made += [f"batch.rows={rows}", "batch.microbatches=1", "remat=full", *changes]
                    with contextlib.suppress(ConfigError):  # a mesh that these chips do not divide into
                        config = load_config(ROOT / f"configs/{name}.yaml", made)
                        bound = estimate(config, target, slices).bound
                        times = (bound.compute_s, bound.ici_s, bound.dcn_s)
                        yield Cell(recipe, family, mesh, chips, slices, *times)


def table(made: list[Cell]) -> str:
    """Ratios, a line for each recipe, chip and mesh."""
    lines = ["| recipe | chip | mesh | " + " | ".join(f"{chips:,}" for chips in CHIPS) + " |"]
    lines.append("|---|---|---|" + "---:|" * len(CHIPS))
    for recipe in RECIPES:
        for family, _, _ in FAMILIES.values():
            for mesh in MESHES:
                result = {
                    one.chips: one for one in made if (one.recipe, one.family, one.mesh) == (recipe, family, mesh)
                }
                shown = [f"{result[chips].ratio:.2f}" if chips in result else "" for chips in CHIPS]
                lines.append(f"| {recipe} | {family} | {mesh} | " + " | ".join(shown) + " |")
    return "\n".join(lines)


def draw(made: list[Cell]) -> str:
    """The picture: a row of panels for each recipe, a column for each chip."""
    figure, panels = pyplot.subplots(len(RECIPES), len(FAMILIES), figsize=(11, 9), sharex=True, sharey=True)
    for across, recipe in zip(panels, RECIPES, strict=True):
        for panel, (family, _, _) in zip(across, FAMILIES.values(), strict=True):
            for mesh, colour, marker in zip(MESHES, _COLOURS, _MARKERS, strict=True):
                of = [one for one in made if (one.recipe, one.family, one.mesh) == (recipe, family, mesh)]
                panel.plot(
                    [one.chips for one in of], [one.ratio for one in of], marker, ls="-", color=colour, label=mesh
                )
            panel.axhline(1, color="black", lw=0.8, ls=":")
            panel.set_xscale("log", base=2, subs=[])
            panel.set_yscale("log")
            panel.set_xticks(CHIPS, [f"{chips:,}" for chips in CHIPS])
            panel.set_yticks([0.03, 0.1, 0.3, 1, 3], ["0.03", "0.1", "0.3", "1", "3"])
            panel.minorticks_off()
            panel.set_title(f"{recipe}, {family}", fontsize=10)
            panel.grid(alpha=0.3)
    for panel in panels[-1]:
        panel.set_xlabel("chips")
    for panel in panels[:, 0]:
        panel.set_ylabel("communication / computing")
    panels[0, 0].legend(fontsize=8)
    figure.tight_layout()
    text = io.StringIO()
    with matplotlib.rc_context({"svg.hashsalt": "scaling"}):  # the same picture from the same figures
        figure.savefig(text, format="svg", metadata={"Date": None})
    return "".join(f"{line.rstrip()}\n" for line in text.getvalue().splitlines())


def main() -> int:
    warnings.simplefilter("ignore")
    made = list(cells())
    PICTURE.write_text(draw(made))
    head, _, rest = PAGE.read_text().partition("<!-- table -->\n")
    PAGE.write_text(f"{head}<!-- table -->\n\n{table(made)}\n\n<!-- end -->{rest.partition('<!-- end -->')[2]}")
    print(table(made))
    return 0


if __name__ == "__main__":
    sys.exit(main())
