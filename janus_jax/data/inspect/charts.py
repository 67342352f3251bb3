"""Histograms as SVG for a page, with axes, units and a title for screen readers."""

from html import escape

from janus_jax.data.statistics import Histogram

_WIDTH, _HEIGHT = 340, 190
_LEFT, _RIGHT, _TOP, _BOTTOM = 46, 10, 10, 38


def histogram_svg(histogram: Histogram, what: str, of: str) -> str:
    """Bars over an x axis in the histogram's unit.

    Args:
        what: is measured; `of`: what is counted, in the plural.
    """
    counts = histogram.counts
    wide, high = _WIDTH - _LEFT - _RIGHT, _HEIGHT - _TOP - _BOTTOM
    most = max(counts) or 1
    base = _TOP + high
    step = wide / len(counts)
    bars = []
    for number, count in enumerate(counts):
        tall = max(high * count / most, 1.0 if count else 0.0)
        low = histogram.start + number * histogram.width
        label = f"{low:g} to {low + histogram.width:g} {histogram.unit}: {count:,} {of}"
        bars.append(
            f'<rect class="bar" x="{_LEFT + number * step + 0.5:.1f}" y="{base - tall:.1f}" width="{step - 1:.1f}" '
            f'height="{tall:.1f}"><title>{escape(label)}</title></rect>'
        )
    end = histogram.start + histogram.width * len(counts)
    marks = []
    for part in range(5):
        value = histogram.start + (end - histogram.start) * part / 4
        anchor = {0: "start", 4: "end"}.get(part, "middle")
        marks.append(
            f'<text x="{_LEFT + wide * part / 4:.1f}" y="{base + 14}" text-anchor="{anchor}">{value:,.0f}</text>'
        )
    zero = ""
    if histogram.start < 0 < end:
        x = _LEFT + wide * (0 - histogram.start) / (end - histogram.start)
        zero = f'<line class="zero" x1="{x:.1f}" y1="{_TOP}" x2="{x:.1f}" y2="{base}"/>'
    outside = histogram.before + histogram.beyond
    note = f" ({outside:,} {of} outside)" if outside else ""
    return (
        f'<svg viewBox="0 0 {_WIDTH} {_HEIGHT}" role="img" aria-label="{escape(f"Histogram: {what}, {of}")}">'
        f'{"".join(bars)}{zero}<line class="axis" x1="{_LEFT}" y1="{base}" x2="{_LEFT + wide}" y2="{base}"/>'
        f'<line class="axis" x1="{_LEFT}" y1="{_TOP}" x2="{_LEFT}" y2="{base}"/>{"".join(marks)}'
        f'<text x="{_LEFT - 5}" y="{_TOP + 9}" text-anchor="end">{most:,}</text>'
        f'<text x="{_LEFT - 5}" y="{base}" text-anchor="end">0</text>'
        f'<text x="12" y="{_TOP + high / 2:.0f}" text-anchor="middle" '
        f'transform="rotate(-90 12 {_TOP + high / 2:.0f})">{escape(of)}</text>'
        f'<text x="{_LEFT + wide / 2:.0f}" y="{base + 30}" text-anchor="middle">{escape(histogram.unit + note)}</text>'
        "</svg>"
    )
