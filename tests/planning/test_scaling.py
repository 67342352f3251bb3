"""docs/scaling.md, which a script writes, holds what the planner computes today."""

import pytest

from tests.benchmarks import scaling


@pytest.mark.parametrize(("recipe", "chips"), [("SFT, rows of 8192", 16), ("DPO, rows of 4096", 512)])
def test_the_page_has_the_planner_s_figures(recipe, chips):
    rows = [[part.strip() for part in line.split("|")[1:-1]] for line in scaling.PAGE.read_text().splitlines()]
    column = 3 + scaling.CHIPS.index(chips)
    written = {tuple(row[:3]): row[column] for row in rows if row and row[0] == recipe}
    assert written == {
        (one.recipe, one.family, one.mesh): f"{one.ratio:.2f}" for one in scaling.cells([recipe], [chips])
    }
