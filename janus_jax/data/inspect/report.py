"""`janus data inspect`: opens the splits, reads them once, and writes the report with its verdict."""

import dataclasses
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from rich.console import Console
from rich.text import Text

from janus_jax.data.inspect import terminal, wording
from janus_jax.data.inspect.facts import SplitFacts, split_facts
from janus_jax.data.inspect.opened import DirectoryOptions, open_splits
from janus_jax.data.inspect.page import page
from janus_jax.data.inspect.rows import annotate_rows
from janus_jax.data.inspect.scan import Scan, scan
from janus_jax.data.inspect.thresholds import thresholds
from janus_jax.data.inspect.token_text import TokenDecoder, visible
from janus_jax.data.inspect.verdict import judged
from janus_jax.errors import ConfigError, DataError
from janus_jax.storage import staging
from janus_jax.storage.local import write_json, write_whole


@dataclasses.dataclass(frozen=True)
class ReportOptions:
    """Which rows to show, and where to write the report."""

    rows: int = 2
    row: int | None = None
    epoch: int = 0
    slots: range | None = None
    full: bool = False
    html: Path | None = None
    json: Path | None = None
    look_at: tuple[str, ...] = ()
    """Thresholds other than the defaults, as `thresholds` takes them."""


@staging.naming_urls()
def inspect(
    target: str,
    overrides: Sequence[str] = (),
    *,
    options: DirectoryOptions | None = None,
    split: str | None = None,
    report: ReportOptions | None = None,
    console: Console | None = None,
) -> list[SplitFacts]:
    """Shows what training will see of a built data set or of a configuration, without any device.

    Raises:
        ConfigError: the configuration or an option cannot be used.
        DataError: the data cannot be used or, after the whole report, holds examples that must not be trained on.
    """
    report, console = report or ReportOptions(), console or Console(markup=False, highlight=False, emoji=False)
    limits = thresholds(report.look_at)
    splits = open_splits(target, overrides, options, split)
    first = splits[0]
    length = first.packed.settings.row_length
    if report.slots is not None and report.slots.stop > length:
        slots = f"{report.slots.start}-{report.slots.stop - 1}"
        raise ConfigError(f"--slots {slots}: a row of {first.title} has slots 0 to {length - 1}")
    tokenizer = first.packed.dataset.tokenizer()
    decoder = TokenDecoder(tokenizer)
    shown = range(min(report.rows, len(first.rows(report.epoch)))) if report.row is None else [report.row]
    rows = annotate_rows(first, report.epoch, shown, decoder)
    results: list[SplitFacts] = []
    prompts: list[np.ndarray] = []
    for opened in splits:
        scans = [scan(part, tokenizer.unk_id) for part in opened.mixture.parts]
        epoch = 0 if opened.role == "held out" else report.epoch  # every evaluation reads the rows of epoch 0
        facts = split_facts(opened, scans, epoch, decoder)
        prompts.append(Scan.join(scans).digests[opened.packed.fitted.index, 0])
        if results:
            shared = int(np.isin(prompts[-1], prompts[0]).sum())
            facts = dataclasses.replace(facts, prompts_in_first=shared, first_title=results[0].title)
        results.append(judged(facts, limits))
    verdicts = wording.verdicts(results)

    # Files come first: they are complete even if a pipe closes early.
    if report.json is not None:
        values = {"target": target, "verdict": verdicts[0].level, "thresholds": limits}
        write_json(report.json, values | {"splits": [dataclasses.asdict(facts) for facts in results]})
    if report.html is not None:
        write_whole(report.html, page(target, results, rows, decoder))
    if rows:
        console.rule(Text(first.title), style="bold")
        terminal.show_legend(console)
    for row in rows:
        terminal.show_row(console, row, decoder, report.slots, report.full)
    for facts in results:
        terminal.show_facts(console, facts)
    for name, file in (("numbers", report.json), ("page", report.html)):
        if file is not None:
            console.print(Text(f"{name}: {file}"), soft_wrap=True)
    terminal.show_verdicts(console, verdicts)
    if verdicts[0].level == "wrong":
        raise DataError("examples that must not be trained on: " + visible("; ".join(verdicts[0].lines), " "))
    return results
