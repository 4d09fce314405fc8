"""The parts of the report's HTML page: tiles of numbers, tables that can be sorted, figures, pairs of images."""

import base64
import io
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure
from PIL import Image

from deformable_detr.visualize.pages.page import STYLE

MORE_STYLE = """
main { max-width: 1200px; }
section > p.read { max-width: 100ch; margin: 8px 0; } section > p.read b { color: var(--ink); }
.tiles { display: flex; flex-wrap: wrap; gap: 10px; margin: 6px 0 2px; }
.tile { flex: 1 1 105px; border: 1px solid var(--line); border-radius: 10px; padding: 9px 13px; }
.tile b { display: block; font-size: 24px; line-height: 1.2; font-variant-numeric: tabular-nums; }
.tile span { color: var(--soft); font-size: 13px; }
.tile.main { background: #1f6feb; border-color: #1f6feb; color: #fff; } .tile.main span { color: #dbe8ff; }
ul { margin: 4px 0 2px; padding-left: 20px; } li { margin: 5px 0; max-width: 100ch; }
.table { max-height: 520px; overflow: auto; }
th { position: sticky; top: 0; background: var(--card); cursor: pointer; white-space: nowrap; }
th[aria-sort=ascending]::after { content: " ▲"; font-size: 10px; }
th[aria-sort=descending]::after { content: " ▼"; font-size: 10px; }
td.bar { background: linear-gradient(90deg, #58a6ff44 var(--share), transparent var(--share)); }
.legend span { display: inline-block; margin: 0 14px 6px 0; white-space: nowrap; }
.legend i { display: inline-block; width: 12px; height: 12px; border-radius: 3px; margin-right: 5px; vertical-align: -1px; }
.pair { margin: 16px 0 4px; } .pair figcaption { margin-bottom: 5px; overflow-wrap: anywhere; }
.pair figcaption b { color: var(--ink); } .pair figcaption { color: var(--soft); }
.pair div { display: grid; grid-template-columns: 1fr 1fr; gap: 8px; align-items: start; } .pair img { width: 100%; }
footer { grid-column: 1 / -1; color: var(--soft); font-size: 13px; }
@media print { .table { max-height: none; } section { break-inside: avoid; } }
"""

SCRIPT = """
for (const head of document.querySelectorAll("th")) head.addEventListener("click", () => {
  const body = head.closest("table").tBodies[0], place = head.cellIndex;
  const falling = head.getAttribute("aria-sort") !== "descending";
  for (const other of head.parentNode.cells) other.removeAttribute("aria-sort");
  head.setAttribute("aria-sort", falling ? "descending" : "ascending");
  const key = row => { const text = row.cells[place].textContent; return isNaN(parseFloat(text)) ? text : parseFloat(text); };
  const below = (a, b) => typeof a === "number" && typeof b === "number" ? a - b : String(a).localeCompare(String(b));
  const rows = [...body.rows].sort((a, b) => falling ? below(key(b), key(a)) : below(key(a), key(b)));
  body.append(...rows);
});
"""

LARGEST_SIDE = 760
"""Pixels of an embedded image's longer side at most."""


@dataclass(frozen=True)
class Tile:
    """One large number."""

    value: str
    name: str
    main: bool = False


def write_page(path: Path, title: str, lead: str, sections: Sequence[str], footer: str) -> Path:
    """Write the page, whole or not at all, making the folder where needed.

    Args:
        path: the HTML file.
        title: heading.
        lead: a paragraph below it.
        sections: HTML of :func:`section`.
        footer: a line at the end.
    """
    page = f"""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<link rel="icon" href="data:,">
<title>{escape(title)}</title>
<style>{STYLE}{MORE_STYLE}</style>
</head>
<body>
<main>
<header><h1>{escape(title)}</h1><p>{escape(lead)}</p></header>
{"".join(sections)}
<footer>{escape(footer)}</footer>
</main>
<script>{SCRIPT}</script>
</body>
</html>
"""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(path.name + ".partial")
    partial.write_text(page, encoding="utf-8")
    return partial.replace(path)


def section(heading: str, *parts: str, half: bool = False) -> str:
    """One card of the page."""
    return f"<section{' class=half' if half else ''}><h2>{escape(heading)}</h2>{''.join(parts)}</section>\n"


def paragraph(text: str) -> str:
    """How to read what follows or precedes."""
    return f'<p class="read">{escape(text)}</p>'


def bullets(sentences: Sequence[str]) -> str:
    """A list."""
    return "<ul>" + "".join(f"<li>{escape(sentence)}</li>" for sentence in sentences) + "</ul>"


def tiles(entries: Sequence[Tile]) -> str:
    """A row of large numbers."""
    cells = (f'<div class="tile{" main" * tile.main}"><b>{tile.value}</b><span>{tile.name}</span></div>' for tile in entries)
    return f'<div class="tiles">{"".join(cells)}</div>'


def table(columns: Sequence[str], rows: Sequence[Sequence[str]], bars: Sequence[int] = ()) -> str:
    """A table that a click on a column's head sorts.

    Args:
        columns: their heads.
        rows: their cells.
        bars: columns of percentages that get a bar behind the number.
    """
    head = "".join(f"<th>{escape(name)}</th>" for name in columns)
    body = "\n".join("<tr>" + "".join(_cell(cell, place in bars) for place, cell in enumerate(row)) + "</tr>" for row in rows)
    return f'<div class="table"><table><thead><tr>{head}</tr></thead><tbody>\n{body}\n</tbody></table></div>'


def figure_image(figure: Figure, description: str) -> str:
    """A figure, embedded."""
    buffer = io.BytesIO()
    figure.savefig(buffer, dpi=150, format="png")
    width = figure.get_figwidth() * 96
    return f'<figure><img alt="{escape(description)}" width="{width:.0f}" src="{_data("png", buffer)}"></figure>'


def legend(colors: Sequence[tuple[str, str]]) -> str:
    """Colours with their meaning."""
    entries = (f'<span><i style="background:{color}"></i>{escape(name)}</span>' for name, color in colors)
    return f'<p class="legend">{"".join(entries)}</p>'


def image_pair(name: str, caption: str, left: np.ndarray, right: np.ndarray) -> str:
    """Two drawings of one image, embedded; `[H, W, 3]` uint8 RGB."""
    sides = (("detected", left), ("truth", right))
    images = "".join(f'<img alt="{what} in {escape(name)}" src="{_jpeg(drawing)}">' for what, drawing in sides)
    head = f"<figcaption><b>{escape(name)}</b> · {escape(caption)}</figcaption>"
    return f'<figure class="pair">{head}<div>{images}</div></figure>'


def _cell(text: str, bar: bool) -> str:
    share = text if bar and text.replace(".", "").isdigit() else ""
    return f'<td class="bar" style="--share:{share}%">{escape(text)}</td>' if share else f"<td>{escape(text)}</td>"


def _jpeg(drawing: np.ndarray) -> str:
    image = Image.fromarray(drawing)
    image.thumbnail((LARGEST_SIDE, LARGEST_SIDE), Image.Resampling.LANCZOS)
    buffer = io.BytesIO()
    image.save(buffer, format="JPEG", quality=86, subsampling=0)
    return _data("jpeg", buffer)


def _data(kind: str, buffer: io.BytesIO) -> str:
    return f"data:image/{kind};base64,{base64.b64encode(buffer.getvalue()).decode('ascii')}"
