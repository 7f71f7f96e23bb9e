"""Histograms as small SVG files: text, no plotting library, the same bytes each time."""

from __future__ import annotations

from html import escape

_ROW, _LABEL, _BAR = 18, 190, 360  # pixels


def bars(title: str, values: list[tuple[str, int]]) -> str:
    """Horizontal bars for (label, count) pairs, each with its count behind it."""
    largest = max([count for _, count in values] + [1])
    height = _ROW * (len(values) + 2)
    width = _LABEL + _BAR + 80
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{height}" font-family="sans-serif" '
        f'font-size="11">',
        f'<rect width="{width}" height="{height}" fill="#fff"/>',
        f'<text x="8" y="{_ROW - 4}" font-weight="bold">{escape(title)}</text>',
    ]
    for i, (label, count) in enumerate(values):
        y = _ROW * (i + 1)
        parts.append(f'<text x="{_LABEL - 6}" y="{y + 13}" text-anchor="end">{escape(label[:32])}</text>')
        parts.append(
            f'<rect x="{_LABEL}" y="{y + 3}" width="{round(_BAR * count / largest, 1)}" height="12" fill="#4477aa"/>'
        )
        parts.append(f'<text x="{_LABEL + round(_BAR * count / largest, 1) + 5}" y="{y + 13}">{count}</text>')
    return "\n".join([*parts, "</svg>"]) + "\n"
