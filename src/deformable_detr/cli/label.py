"""`deformable-detr label`: annotations proposed for new images, to be corrected and trained on."""

import csv
import io
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from deformable_detr.cli.command import Command
from deformable_detr.cli.detector_options import DetectorOptions
from deformable_detr.cli.screen import Finish, progress
from deformable_detr.schema import check_range

if TYPE_CHECKING:
    from deformable_detr.inference.labelling import Proposal

EXAMPLES = """\
  deformable-detr label runs/first photos/ --output to_correct --take 50       the 50 images that help most
  deformable-detr label runs/first photos/ --output to_correct --format yolo
  deformable-detr train to_correct --recipe finetune --weights runs/first      after correction
"""


@dataclass(frozen=True, kw_only=True)
class LabelOptions(DetectorOptions):
    """Propose annotations for images that have none: what is detected with a score from the class's threshold on becomes a box to
    correct in any labelling tool. Images come in the order in which correcting them helps the detector most: those with many
    doubtful detections first, and among them those unlike the ones before; order.csv says how doubtful. The folder is a dataset
    that `train` takes as it is, once the boxes are right: COCO by default, YOLO or Pascal VOC.
    """

    source: list[str]
    """Images: files, folders, patterns in quotes."""

    output: str = "runs/label"
    """Folder of the dataset: annotations, images (hard links where possible, else copies) and order.csv. Must be new or empty."""

    format: Literal["coco", "yolo", "voc"] = "coco"
    """Form of the annotations."""

    take: int | None = None
    """Only the so many most helpful images. Default: all."""

    threshold: float | None = None
    """Smallest score of a box that is proposed, in [0, 1]. Default: for each class the one stored with the weights, else 0.5."""

    on_error: Literal["raise", "skip"] = "raise"
    """What an unreadable image does: end with an error that names it, or be left out with a warning."""


def run(options: LabelOptions) -> None:
    """Predict on all images, put them into order, write the dataset."""
    from deformable_detr.data.images import is_address
    from deformable_detr.data.writing import check_names, check_new, write_dataset
    from deformable_detr.inference.labelling import CANDIDATE, by_usefulness, propose
    from deformable_detr.inference.sources import list_all

    check_range(options, "take", 1)
    if addresses := [source for source in options.source if is_address(source)]:
        raise ValueError(f"labels are proposed for files: download {addresses[0]} first")
    check_new(Path(options.output))

    paths = list_all(options.source)
    detector = options.open()
    check_names(detector.categories, options.format)
    limits = detector.score_limits(options.threshold).numpy()
    settings = {"batch_size": options.batch_size, "top_k": options.top_k, "on_error": options.on_error}
    with progress("labelling") as bar:
        results = detector.iterate(paths, min(CANDIDATE, float(limits.min())), **settings)
        proposals = by_usefulness(propose(bar.track(results, total=len(paths)), limits))[: options.take]
    images = [proposal.image for proposal in proposals]
    with Finish() as finish:
        notes = {"order.csv": _order(proposals)}
        finish.write(options.output, lambda folder: write_dataset(folder, images, detector.categories, options.format, notes))
        finish.show(f"{sum(len(image.labels) for image in images)} boxes in {len(images)} of {len(paths)} images")


def _order(proposals: "list[Proposal]") -> str:
    """The text of order.csv."""
    text = io.StringIO()
    rows = csv.writer(text, lineterminator="\n")
    rows.writerow(("place", "image", "doubt_bits", "boxes"))
    for place, proposal in enumerate(proposals, 1):
        rows.writerow((place, proposal.image.path, round(proposal.uncertainty, 3), len(proposal.image.labels)))
    return text.getvalue()


COMMAND = Command("label", LabelOptions, run, EXAMPLES)
