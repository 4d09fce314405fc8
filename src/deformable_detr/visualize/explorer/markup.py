"""HTML of the page's panels, from the plain values of :mod:`.tables`."""

from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path

from deformable_detr.data.images import read_image
from deformable_detr.visualize.colors import class_color, level_color
from deformable_detr.visualize.explorer.drawing import image_data
from deformable_detr.visualize.explorer.tables import LevelShare, Table

THUMBNAIL_SIDE = 112


def table_html(table: Table, *, classes: Mapping[int, str] | None = None, marked: int | None = None) -> str:
    """A table; nothing where it has no rows.

    Args:
        table: its cells.
        classes: of single columns: `number` is set to the right, `shape` is not broken into lines.
        marked: the row that is emphasised.
    """
    if not table.rows:
        return ""
    kinds = [f' class="{classes[column]}"' if classes and column in classes else "" for column in range(len(table.headings))]

    def row(cells: Sequence[str], tag: str, name: str = "") -> str:
        inner = "".join(f"<{tag}{kind}>{escape(cell)}</{tag}>" for cell, kind in zip(cells, kinds, strict=True))
        return f"<tr{name}>{inner}</tr>"

    body = "".join(row(cells, "td", ' class="marked"' if index == marked else "") for index, cells in enumerate(table.rows))
    return f'<table class="numbers"><thead>{row(table.headings, "th")}</thead><tbody>{body}</tbody></table>'


def heading_html(title: str, explanation: str) -> str:
    """What is looked at, and the sentence that explains it."""
    return f'<div class="looking"><h2>{escape(title)}</h2><p>{escape(explanation)}</p></div>'


def shares_html(shares: Sequence[LevelShare], shown: Sequence[int]) -> str:
    """A bar for each level; those that are not shown are pale."""
    rows = ""
    for item in shares:
        color, pale = level_color(item.level), "" if item.level in shown else " hidden-level"
        rows += (
            f'<div class="share{pale}">{_dot(color)}<span>level {item.level}</span>'
            f'<span class="quiet">{item.shape[0]} × {item.shape[1]}</span>'
            f'<span class="bar"><i style="width:{100 * item.weight:.1f}%;background:{color}"></i></span>'
            f"<b>{item.weight:.0%}</b></div>"
        )
    return f'<div class="shares">{rows}</div>' if rows else '<p class="quiet">Nothing is sampled here.</p>'


def legend_html(num_levels: int) -> str:
    """What colours and sizes mean."""
    dots = "".join(f'<span class="key">{_dot(level_color(level))}level {level}</span>' for level in range(num_levels))
    return (
        f'<div class="legend">{dots}<span class="key">larger dot: more weight</span>'
        '<span class="key"><span class="cross">+</span> reference</span>'
        '<span class="key"><span class="dashes"></span> box of an earlier layer</span>'
        '<span class="key">hover over a dot or box: numbers</span></div>'
    )


def queries_html(rows: Sequence[tuple[int, int, str, float]], chosen: int) -> str:
    """The queries as buttons, best first."""
    buttons = "".join(
        f'<button type="button" data-index="{query}"{" class=chosen" if query == chosen else ""}>'
        f"{_dot(class_color(label).as_hex())}<span>query {query}</span>"
        f"<span>{escape(name)}</span><b>{score:.2f}</b></button>"
        for query, label, name, score in rows
    )
    return f'<div class="queries">{buttons}</div>'


def thumbnails_html(images: Sequence[tuple[str, str, bool]], total: int) -> str:
    """The images (name, content, whether it is the chosen one) as buttons."""
    buttons = "".join(
        f'<button type="button" title="{escape(name)}" data-index="{index}"{" class=chosen" if chosen else ""}>{content}</button>'
        for index, (name, content, chosen) in enumerate(images)
    )
    more = f'<span class="quiet">the first {len(images)} of {total}</span>' if total > len(images) else ""
    return f'<div class="thumbnails">{buttons}{more}</div>'


def thumbnail(path: Path) -> str:
    """An image file as a small `<img>`; its name where it cannot be read."""
    try:
        return f'<img alt="{escape(path.name)}" src="{image_data(read_image(path), THUMBNAIL_SIDE)}">'
    except (OSError, ValueError):
        return f"<span>{escape(path.name)}</span>"


def _dot(color: str) -> str:
    return f'<span class="dot" style="background:{color}"></span>'
