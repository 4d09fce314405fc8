"""HTML pages by Jinja2 (`templates/`): one skeleton, one style; figures and images are inside, nothing is fetched from anywhere."""

import base64
import io
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from jinja2 import Environment, PackageLoader, StrictUndefined
from matplotlib.artist import Artist
from matplotlib.colors import to_hex
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.spines import Spine
from matplotlib.text import Text
from PIL import Image
from torch import Tensor

from deformable_detr.files import write_text
from deformable_detr.version import __version__
from deformable_detr.visualize.colors import class_color, level_color
from deformable_detr.visualize.figures import INK, plain_text

LIGHT_INK = "#e5e9ef"
"""Replaces the ink of a figure where the reader prefers dark pages; `--ink` of style.css."""

_TEMPLATES = Environment(
    loader=PackageLoader("deformable_detr.visualize.pages"),
    autoescape=True,
    undefined=StrictUndefined,
    trim_blocks=True,
    lstrip_blocks=True,
)


_TEMPLATES.globals.update(class_color=class_color, level_color=level_color)


def macros(template: str) -> Any:
    """The macros of a template, as functions that give HTML; every value is escaped."""
    return _TEMPLATES.get_template(template).module


def render(template: str, **values: Any) -> str:
    """Fill in a file of `templates/`; every value is escaped."""
    return _TEMPLATES.get_template(template).render(version=__version__, **values)


def write_page(path: str | Path, template: str, *, title: str, lead: str, **values: Any) -> Path:
    """Write a page as one HTML file, making its folder where it is missing; gives back `path`.

    Args:
        path: the file.
        template: name of a file in `templates/` that extends `base.html`.
        title: heading.
        lead: a paragraph below it.
        values: what the template needs besides.
    """
    return write_text(path, render(template, title=title, lead=lead, **values))


def embed_figure(figure: Figure, alt: str, *, photos: bool = False) -> dict[str, Any]:
    """Draw a figure for a page.

    Args:
        figure: its ink (black, and `INK`) is replaced for dark pages; other colours stay.
        alt: what it shows, for those who cannot see it.
        photos: it holds photographs, which are compressed with losses.

    Returns:
        `light` and `dark`: `data:` addresses for light and for dark pages, on a transparent ground; `alt`; `width` and `height` in
        CSS pixels.
    """
    plain_text(figure)
    options = {"quality": 88} if photos else {"lossless": True}

    def draw() -> str:
        stream = io.BytesIO()
        figure.savefig(stream, dpi=150, format="webp", transparent=True, pil_kwargs=options)
        return _data_address("webp", stream)

    light = draw()
    inked = list(_inked(figure))
    for artist, name, _ in inked:
        artist.set(**{name: LIGHT_INK})
    dark = draw()
    for artist, name, color in inked:
        artist.set(**{name: color})
    width, height = (round(96 * inches) for inches in figure.get_size_inches())
    return {"alt": alt, "width": width, "height": height, "light": light, "dark": dark}


def embed_image(image: Image.Image | np.ndarray | Tensor, *, longest: int, quality: int = 86) -> str:
    """Make a `data:` address of an image: PNG where it is tiny, else JPEG.

    Args:
        image: RGB; an array `[H, W, 3]` or a tensor `[3, H, W]`, uint8.
        longest: limit of its longer side in pixels; larger images are reduced.
        quality: of the JPEG.
    """
    if isinstance(image, Tensor):
        image = image.permute(1, 2, 0).contiguous().numpy()
    small = Image.fromarray(image) if isinstance(image, np.ndarray) else image.copy()
    small.thumbnail((longest, longest), Image.Resampling.LANCZOS)
    stream = io.BytesIO()
    if small.width * small.height <= 256 * 256:
        small.save(stream, "png")
        return _data_address("png", stream)
    small.save(stream, "jpeg", quality=quality, subsampling=0)
    return _data_address("jpeg", stream)


def _data_address(kind: str, stream: io.BytesIO) -> str:
    return f"data:image/{kind};base64,{base64.b64encode(stream.getvalue()).decode('ascii')}"


def _inked(figure: Figure) -> Iterator[tuple[Artist, str, Any]]:
    """Texts, lines and frames whose colour is ink, with the name of that property and the colour."""
    for artist in figure.findobj():
        name = "edgecolor" if isinstance(artist, Spine) else "color"
        if isinstance(artist, (Text, Line2D, Spine)) and to_hex(color := getattr(artist, f"get_{name}")()) in ("#000000", INK):
            yield artist, name, color
