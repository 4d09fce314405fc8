"""The site's live demo: a trained detector as a page in docs/live/, which git ignores, with drawn images to try it on.

python website/live.py demo/run        the run of `make demo`; the next `make docs` puts it on the site
"""

import argparse
import sys
from pathlib import Path

import numpy as np
from PIL import Image

from deformable_detr.cli.__main__ import main as command
from deformable_detr.data.scenes import draw_scene

LIVE = Path(__file__).parents[1] / "docs" / "live"
EXAMPLES = ("scene-1.png", "scene-2.png", "scene-3.png")


def main() -> None:
    """Write the page and its images."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", help="a run folder, or weights")
    options = parser.parse_args()
    if command(["export", options.run, str(LIVE), "--to", "web"]) != 0:
        sys.exit(1)
    for seed, name in enumerate(EXAMPLES):
        pixels, _ = draw_scene(np.random.default_rng((2026, seed)), 256)
        Image.fromarray(pixels).save(LIVE / name)


if __name__ == "__main__":
    main()
