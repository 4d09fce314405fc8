"""A page of figures and tables as one HTML file: images and style are inside it, nothing is fetched from anywhere."""

import base64
import io
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path

from matplotlib.figure import Figure

STYLE = """
:root { color-scheme: light dark; --ground: #f6f8fa; --card: #fff; --ink: #1f2328; --soft: #59636e; --line: #d1d9e0; }
@media (prefers-color-scheme: dark) {
  :root { --ground: #0d1117; --card: #161b22; --ink: #e6edf3; --soft: #9198a1; --line: #30363d; }
  figure img { background: #fff; }
}
* { box-sizing: border-box; }
body { margin: 0; background: var(--ground); color: var(--ink); font: 15px/1.55 system-ui, sans-serif; }
main { max-width: 1120px; margin: 0 auto; padding: 28px 20px 48px; display: grid; gap: 18px; grid-template-columns: 1fr 1fr; }
header, section { grid-column: 1 / -1; }
section.half { grid-column: span 1; }
@media (max-width: 760px) { section.half { grid-column: 1 / -1; } }
h1 { font-size: 26px; margin: 0 0 6px; } h2 { font-size: 17px; margin: 0 0 4px; }
p { margin: 0 0 10px; color: var(--soft); }
section { background: var(--card); border: 1px solid var(--line); border-radius: 12px; padding: 16px 18px; min-width: 0; }
figure { margin: 0; overflow-x: auto; }
figure img { max-width: 100%; height: auto; border-radius: 8px; display: block; margin: 0 auto; }
.table { overflow-x: auto; } table { border-collapse: collapse; width: 100%; font-variant-numeric: tabular-nums; }
th { text-align: right; font-weight: 600; color: var(--soft); border-bottom: 1px solid var(--line); padding: 4px 8px; }
td { text-align: right; padding: 3px 8px; } th:first-child, td:first-child { text-align: left; }
tbody tr:nth-child(even) { background: var(--ground); }
"""


@dataclass(frozen=True, eq=False)
class Section:
    """One part of a page."""

    heading: str
    text: str
    figure: Figure | None = None
    table: tuple[Sequence[str], Sequence[Sequence[str]]] | None = None
    """Column names and rows."""
    half: bool = False
    """Half as wide as the page, where there is room."""


def write_page(path: Path, title: str, lead: str, sections: Sequence[Section]) -> Path:
    """Write the page, making the folder where needed.

    Args:
        path: the HTML file.
        title: heading.
        lead: a paragraph below it.
        sections: one card each.
    """
    body = "\n".join(_section(section) for section in sections)
    page = f"""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{escape(title)}</title>
<style>{STYLE}</style>
</head>
<body>
<main>
<header><h1>{escape(title)}</h1><p>{escape(lead)}</p></header>
{body}
</main>
</body>
</html>
"""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(path.name + ".partial")
    partial.write_text(page, encoding="utf-8")
    return partial.replace(path)


def _section(section: Section) -> str:
    parts = [f"<h2>{escape(section.heading)}</h2>"]
    if section.text:
        parts.append(f"<p>{escape(section.text)}</p>")
    if section.figure is not None:
        parts.append(
            f'<figure><img alt="{escape(section.heading)}" width="{section.figure.get_figwidth() * 96:.0f}" '
            f'src="{_inline(section.figure)}"></figure>'
        )
    if section.table is not None:
        parts.append(_table(*section.table))
    return f"<section{' class=half' if section.half else ''}>" + "\n".join(parts) + "</section>"


def _table(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    head = "".join(f"<th>{escape(name)}</th>" for name in columns)
    body = "\n".join("<tr>" + "".join(f"<td>{escape(cell)}</td>" for cell in row) + "</tr>" for row in rows)
    return f'<div class="table"><table><thead><tr>{head}</tr></thead><tbody>\n{body}\n</tbody></table></div>'


def _inline(figure: Figure) -> str:
    buffer = io.BytesIO()
    figure.savefig(buffer, dpi=120, format="png")
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode("ascii")
