"""`janus data inspect`: open, read once, show, judge."""

import dataclasses
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from rich.console import Console
from rich.text import Text

from janus_jax.data.inspect import terminal
from janus_jax.data.inspect.facts import SplitFacts, scan_parts, split_facts
from janus_jax.data.inspect.opened import DirectoryOptions, open_views
from janus_jax.data.inspect.page import page
from janus_jax.data.inspect.rows import show_rows
from janus_jax.data.inspect.scan import Scan
from janus_jax.data.inspect.token_text import Pieces, visible
from janus_jax.errors import ConfigError, DataError
from janus_jax.storage import staging
from janus_jax.storage.local import write_json, write_whole


@dataclasses.dataclass(frozen=True)
class Shown:
    """What is wanted of the rows, and where the report goes."""

    rows: int = 2
    row: int | None = None
    epoch: int = 0
    slots: range | None = None
    full: bool = False
    html: Path | None = None
    json: Path | None = None


@staging.naming_urls()
def inspect(
    target: str,
    overrides: Sequence[str] = (),
    *,
    options: DirectoryOptions | None = None,
    split: str | None = None,
    shown: Shown | None = None,
    console: Console | None = None,
) -> list[SplitFacts]:
    """Shows what training will see of a built data set or of a configuration; no device is asked for anything.

    Raises:
        ConfigError: a configuration or an option that cannot be used.
        DataError: data that cannot be used; after everything was shown, also examples that must not be trained on.
    """
    shown, console = shown or Shown(), console or Console(markup=False, highlight=False, emoji=False)
    views = open_views(target, overrides, options, split)
    first = views[0]
    length = first.plan.settings.row_length
    if shown.slots is not None and shown.slots.stop > length:
        asked = f"{shown.slots.start}-{shown.slots.stop - 1}"
        raise ConfigError(f"--slots {asked}: a row of {first.title} has slots 0 to {length - 1}")
    pieces = Pieces(first.plan.dataset.tokenizer())
    epochs = [shown.epoch if view.role != "held out" else 0 for view in views]  # held-out rows are those of epoch 0
    numbers = list(range(min(shown.rows, len(first.rows(shown.epoch))))) if shown.row is None else [shown.row]
    rows = show_rows(first, shown.epoch, numbers, pieces)
    scans = [scan_parts(view) for view in views]
    facts = [split_facts(view, scan, epoch, pieces) for view, scan, epoch in zip(views, scans, epochs, strict=True)]
    digests = [Scan.join(scan).digests[view.plan.fitted.index, 0] for view, scan in zip(views, scans, strict=True)]
    for at in range(1, len(facts)):
        known = int(np.isin(digests[at], digests[0]).sum())
        facts[at] = dataclasses.replace(facts[at], prompts_also_in_first=known, first=facts[0].title)

    # files first: whoever pipes the text away early has them
    if shown.json is not None:
        values = {"target": target, "splits": [dataclasses.asdict(one) for one in facts]}
        write_json(shown.json, values)
    if shown.html is not None:
        write_whole(shown.html, page(target, facts, rows, pieces))
    if rows:
        console.rule(Text(first.title), style="bold")
        terminal.show_legend(console)
    for row in rows:
        terminal.show_row(console, row, pieces, shown.slots, shown.full)
    for one in facts:
        terminal.show_facts(console, one)
    console.print()
    for what, file in (("numbers", shown.json), ("page", shown.html)):
        if file is not None:
            console.print(Text(f"{what}: {file}"), soft_wrap=True)
    _judge(console, facts)
    return facts


def _judge(console: Console, facts: list[SplitFacts]) -> None:
    found = [problem for one in facts for problem in one.problems]
    if found:
        lines = [f"{problem.what}: {problem.count:,}, the first {visible(problem.where, ' ')}" for problem in found]
        raise DataError("examples that must not be trained on: " + "; ".join(lines))
    read = sum(one.read_ever for one in facts)
    console.print(
        f"nothing wrong in {read:,} examples: responses with tokens, EOS at their ends, BOS once where there is one",
        style="bold green",
    )
