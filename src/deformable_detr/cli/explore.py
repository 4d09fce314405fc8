"""`deformable-detr explore`: a local web page that shows where a detector looks."""

import logging
import os
import threading
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

from deformable_detr.cli.command import MAX_PORT, POSITIONAL, Command
from deformable_detr.cli.screen import show
from deformable_detr.schema import check_range

EXAMPLES = """\
  deformable-detr explore                             the demo's detector and its images
  deformable-detr explore street.jpg                  the demo's detector on an image of yours
  deformable-detr explore runs/first photos/          your own detector and images
  deformable-detr explore runs/first street.jpg --port 8000
"""


@dataclass(frozen=True, kw_only=True)
class ExploreOptions:
    """Look inside a detector, in the browser: click a box, and its sampling points appear on the image, by layer, head and
    level; a slider follows the boxes through the decoder layers; a click on any place shows where the encoder looks from there.
    The shapes of every stage stand beside it, and what is shown can be saved as PNG, SVG or JSON.

    Without WEIGHTS the small detector of `deformable-detr demo` is taken; the first time it is trained, which takes a few
    minutes. The page is served by this machine for this machine alone (--host), and needs no network.
    """

    weights: str | None = field(default=None, metadata=POSITIONAL)
    """A run folder, or weights of any known format; may be left out."""

    images: list[str] = field(default_factory=list, metadata=POSITIONAL)
    """Files, folders, patterns in quotes."""

    host: str = "127.0.0.1"
    """Address to listen on. The default is reached from this machine alone; `0.0.0.0` lets the whole network in."""

    port: int | None = None
    """Port of the page. Without it: the first free one from 7860 on."""

    browser: bool = False
    """Open the page in the default browser."""

    device: str = "auto"
    """`auto` takes a GPU where there is one; else `cpu`, `cuda` or `mps`."""


def run(options: ExploreOptions) -> None:
    """Serve the page until Ctrl-C."""
    check_range(options, "port", 0, MAX_PORT)
    os.environ.setdefault("GRADIO_ANALYTICS_ENABLED", "False")
    try:
        from deformable_detr.visualize.explorer.page import Page
    except ModuleNotFoundError as error:
        if error.name != "gradio":
            raise
        raise ImportError('the explorer needs gradio: pip install "deformable-detr[explorer]"') from error

    from deformable_detr.cli.demo_detector import demo_detector
    from deformable_detr.detector import Detector
    from deformable_detr.inference.sources import IMAGE_SUFFIXES, list_images

    logging.getLogger("httpx").setLevel(logging.WARNING)  # gradio asks its own server whether it is up
    weights, images = options.weights, options.images
    if weights is not None and Path(weights).suffix.lower() in IMAGE_SUFFIXES:
        weights, images = None, [weights, *images]
    paths = [path for source in images for path in list_images(source)]
    if missing := [path for path in paths if not path.is_file()]:
        raise FileNotFoundError(f"no such image or folder: {missing[0]}")
    if weights is None:
        weights, demo_paths = demo_detector(options.device)
        paths = paths or demo_paths
    detector = Detector.load(weights, device=options.device)
    page = Page(detector, paths, f"detector: {weights}")
    address = page.serve(options.host, options.port, open_browser=options.browser)
    show(f"The explorer is at {address}   (Ctrl-C ends it)")
    with suppress(KeyboardInterrupt):
        threading.Event().wait()
    page.blocks.close()


COMMAND = Command("explore", ExploreOptions, run, EXAMPLES)
