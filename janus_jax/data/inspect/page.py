"""The report as one page that needs nothing else: no network, no file beside it.

Texts of data are anybody's. They reach the page escaped, or in a JSON block without `<`, from which they are only ever
set as text; the page allows the one script that its policy names by hash.
"""

import base64
import hashlib
import json
import re
from html import escape
from pathlib import Path

from janus_jax.data.inspect.charts import histogram_svg
from janus_jax.data.inspect.facts import PartFacts, SplitFacts
from janus_jax.data.inspect.rows import CHOSEN, PADDING, PROMPT, REJECTED, ROLES, Segment, ShownRow
from janus_jax.data.inspect.token_text import MORE_BYTES, Pieces, visible
from janus_jax.data.inspect.wording import (
    bias_lines,
    border_lines,
    count_lines,
    counted,
    lengths_note,
    overlap_lines,
    percent,
    repeat_lines,
    row_lines,
)

_ASSETS = Path(__file__).parent / "assets"

_OPEN = 3
"""Examples of a row that are open to begin with."""


def page(target: str, splits: list[SplitFacts], rows: list[ShownRow], pieces: Pieces) -> str:
    """The whole page as text."""
    script = (_ASSETS / "page.js").read_text(encoding="utf-8")
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    policy = f"default-src 'none'; style-src 'unsafe-inline'; script-src 'sha256-{digest}'; base-uri 'none'"
    body = [
        f"<h1>What training sees of {escape(target)}</h1>",
        '<p class="quiet">Examples, rows, slots and epochs are counted from 0.</p>',
        _verdict(splits),
        _contents(rows, splits),
        _rows(rows, splits[0]) if rows else "",
        *(_split(facts, number) for number, facts in enumerate(splits)),
    ]
    return (
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{policy}">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{escape(target)}: what training sees</title>\n"
        f"<style>\n{(_ASSETS / 'page.css').read_text(encoding='utf-8')}</style>\n</head>\n<body>\n"
        f"{chr(10).join(body)}\n"
        '<aside id="slot" aria-live="polite">Point at a token, or tap it, for its slot; arrow keys go on.</aside>\n'
        f'<script type="application/json" id="rows">{_json(rows, pieces)}</script>\n'
        f"<script>{script}</script>\n</body>\n</html>\n"
    )


def _verdict(splits: list[SplitFacts]) -> str:
    problems = [(facts, problem) for facts in splits for problem in facts.problems]
    if not problems:
        read = sum(facts.read_ever for facts in splits)
        return (
            f'<p class="verdict"><strong>Nothing wrong found.</strong> Each of the {counted(read, "example")} that are '
            "read has a response with tokens to learn, EOS at the end of what was not cut, and BOS once where the "
            "tokenizer has one.</p>"
        )
    items = "".join(
        f"<li>{escape(problem.what)}: {counted(problem.count, 'example')} of {escape(facts.title)}. "
        f"{escape(visible(problem.where, ' '))}</li>"
        for facts, problem in problems
    )
    return f'<div class="verdict bad"><strong>Do not train on this yet.</strong><ul>{items}</ul></div>'


def _contents(rows: list[ShownRow], splits: list[SplitFacts]) -> str:
    links = ['<a href="#packed">rows as they are packed</a>'] if rows else []
    links += [f'<a href="#split{number}">numbers of {escape(facts.title)}</a>' for number, facts in enumerate(splits)]
    return f"<nav>{' · '.join(links)}</nav>"


def _rows(rows: list[ShownRow], facts: SplitFacts) -> str:
    names = rows[0].names
    legend = "".join(f'<span class="{role}">{name}</span>' for role, name in zip(ROLES, names, strict=True) if name)
    return (
        f'<h2 id="packed">Rows as they are packed: {escape(facts.title)}</h2>\n'
        f'<p class="legend">{legend}</p>\n'
        '<p class="quiet">In texts: · space, ↵ newline, → tab, '
        f"{MORE_BYTES} a further byte of the character before. A branch begins with the prompt's last token, so that "
        "every target stands on the slot that predicts it. A dashed mark is a target that is not fed.</p>\n"
        + "\n".join(_row(row, place) for place, row in enumerate(rows))
    )


def _row(row: ShownRow, place: int) -> str:
    length = len(row.tokens)
    step = "" if row.step is None else f", step {row.step}"
    said = f"{row.used:,} of {length:,} slots hold a token ({percent(row.used / length)})"
    parts = []
    for segment in row.segments:
        inner = "".join(
            f'<b class="{ROLES[part.role]}" style="flex:{part.end - part.start}"></b>' for part in segment.parts
        )
        size = max(segment.end - segment.start, 0)
        parts.append(
            f'<a href="#r{place}s{segment.number}" style="flex:{size}" title="example {segment.example}">{inner}</a>'
        )
    rest = length - row.used
    shown = [_segment(row, segment, place) for segment in row.segments]
    more = counted(len(shown) - _OPEN, "more example")
    rest_of_them = f"<details><summary>{more}</summary>{''.join(shown[_OPEN:])}</details>" if shown[_OPEN:] else ""
    strip = f'{"".join(parts)}<b class="{ROLES[PADDING]}" style="flex:{rest}"></b>'
    return (
        f'<section data-row="{place}"><h3>Row {row.number} of epoch {row.epoch}{step}</h3>'
        f'<p class="quiet">{said}; {counted(len(row.segments), "example")}</p><div class="strip">{strip}</div>'
        f"{''.join(shown[:_OPEN])}{rest_of_them}</section>"
    )


def _segment(row: ShownRow, segment: Segment, place: int) -> str:
    blocks = []
    for branch, label in enumerate((row.names[PROMPT], row.names[CHOSEN], row.names[REJECTED])):
        slots = [part for part in segment.parts if part.branch == branch]
        if slots:
            start, end = slots[0].start, slots[-1].end
            texts = "".join(_slot(row, at) for at in range(start, end))
            if end - 1 in segment.ends:
                texts += f'<i class="eos target" data-at="{end - 1 - start}">&lt;/s&gt;</i>'
            blocks.append(f'<div class="label">{label}</div><div class="text" data-start="{start}">{texts}</div>')
    return (
        f'<article class="example" id="r{place}s{segment.number}"><strong>Example {segment.example}</strong> of '
        f'{escape(segment.dataset)}<div class="quiet">{segment.described(row.names)}</div>{"".join(blocks)}</article>'
    )


def _slot(row: ShownRow, at: int) -> str:
    text = escape(visible(row.texts[at]))
    text = re.sub("([·→])", r"<wbr><u>\1</u>", text).replace("↵", "<u>↵</u>\n")  # lines break at spaces
    return f'<i class="{ROLES[int(row.roles[at])]}">{text}</i>'


def _split(facts: SplitFacts, number: int) -> str:
    notes = "".join(f"<p>note: {escape(note)}</p>" for note in facts.notes)
    lines = "".join(f"<p>{escape(line)}</p>" for line in row_lines(facts))
    parts = [*facts.parts, facts.whole] if facts.parts else [facts.whole]
    names = [part.name for part in facts.parts] + [f"all parts of {facts.split}" if facts.parts else facts.whole.name]
    return (
        f'<h2 id="split{number}">{escape(facts.title)}</h2>'
        f'<p class="quiet">objective {escape(facts.objective)} · template {escape(facts.template)} · token boundary '
        f"{escape(facts.boundary)} · batch.overlong {escape(facts.overlong)}</p>{notes}<h3>Rows</h3>{lines}"
        f'<div class="charts">{_figure("Fill of the rows", histogram_svg(facts.rows.fills, "fill", "rows"))}</div>'
        f"{_shares(facts)}{''.join(_part(part, name) for part, name in zip(parts, names, strict=True))}"
        f"{''.join(f'<p>{escape(line)}</p>' for line in overlap_lines(facts))}"
    )


def _shares(facts: SplitFacts) -> str:
    if not facts.shares:
        return ""
    rows = [
        (
            share.name,
            "-" if share.weight is None else percent(share.weight),
            f"{share.fit:,}",
            f"{share.read:,}",
            percent(share.examples),
            percent(share.tokens),
            f"{share.passes:.2f}",
        )
        for share in facts.shares
    ]
    names = ("part", "weight", "fit", "read", "of examples", "of tokens", "passes")
    return f"<h3>Shares of epoch {facts.rows.epoch}</h3>{_table(names, rows)}"


def _part(part: PartFacts, name: str) -> str:
    spreads = dict(part.lengths)
    charts = dict(part.histograms)
    if part.bias is not None:
        spreads["chosen - rejected"] = part.bias.difference
        charts["chosen - rejected"] = part.bias.histogram
    rows = [
        (
            column,
            f"{s.mean:,.1f}",
            *(f"{value:,.0f}" for value in (s.least, s.p05, s.p25, s.median, s.p75, s.p95, s.p99, s.most)),
        )
        for column, s in spreads.items()
    ]
    names = ("tokens", "mean", "least", "5 %", "25 %", "50 %", "75 %", "95 %", "99 %", "most")
    said = [*count_lines(part), *bias_lines(part.bias), *repeat_lines(part.repeats), *border_lines(part.borders)]
    figures = "".join(
        _figure(title, histogram_svg(histogram, title, "examples")) for title, histogram in charts.items()
    )
    return (
        f"<h3>Examples: {escape(name)}</h3>{_listed(said)}"
        f'<p class="quiet">{lengths_note(part)}</p>{_table(names, rows)}<div class="charts">{figures}</div>'
    )


def _listed(lines: list[str]) -> str:
    """Lines as paragraphs; those that are indented as a list beneath."""
    found, items = [], []
    for line in [*lines, ""]:
        text = escape(visible(line.strip(), " "))
        if line.startswith("    ") and items:
            items[-1] += f"<br>{text}"
        elif line.startswith("  "):
            items.append(text)
        else:
            found += [f"<ul>{''.join(f'<li>{item}</li>' for item in items)}</ul>"] * bool(items)
            found += [f"<p>{text}</p>"] * bool(text)
            items = []
    return "".join(found)


def _table(names: tuple[str, ...], rows: list[tuple[str, ...]]) -> str:
    head = "".join(f"<th>{escape(name)}</th>" for name in names)
    body = "".join(f"<tr>{''.join(f'<td>{escape(cell)}</td>' for cell in row)}</tr>" for row in rows)
    return f'<div class="scroll"><table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>'


def _figure(title: str, svg: str) -> str:
    return f"<figure><figcaption>{escape(title)}</figcaption>{svg}</figure>"


def _json(rows: list[ShownRow], pieces: Pieces) -> str:
    """Slots of the rows. A script element ends at `</script` whatever is around it, so no `<` may stand in it."""
    fields = ("tokens", "targets", "weights", "position", "segment", "branch")
    found = [{name: getattr(row, name)[: row.used].tolist() for name in fields} for row in rows]
    ids = sorted({id for row in found for name in ("tokens", "targets") for id in row[name]})
    text = json.dumps({"rows": found, "pieces": {id: visible(pieces.one(id)) for id in ids}}, separators=(",", ":"))
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")
