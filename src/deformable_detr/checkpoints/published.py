"""Published weights by short names: the table, and fetching one. Only files with a licence and an address that stays are in it."""

import hashlib
import logging
import re
import shutil
import urllib.request
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO
from urllib.error import HTTPError

import torch

from deformable_detr.files import atomic_file

logger = logging.getLogger(__name__)

_MMDET = "https://download.openmmlab.com/mmdetection/v3.0/"
_DETREX = "https://github.com/IDEA-Research/detrex-storage/releases/download/"
_HDETR = "https://github.com/HDETR/H-Deformable-DETR/releases/download/v0.1/"
_TWO_STAGE = "deformable_detr_plus_iterative_bbox_refinement_plus_plus_two_stage"
_HYBRID = "hybrid_branch_lambda1_group6_t1500_"
_TRICKS = "dp0_mqs_lft_"

_HDETR_NAME = re.compile(
    r"(?:decay[\d.]+_)?(?:drop_path(?P<drop_path>[\d.]+)_)?(?:r50|swin_tiny|swin_large)_"
    rf"(?:hybrid_branch_lambda[\d.]+_group\d+_t(?P<further>\d+)_)?(?:n(?P<queries>\d+)_)?(?P<tricks>{_TRICKS})?{_TWO_STAGE}_\d+eps.*"
)
"""What the names of H-DETR's files say, also of those that others have converted."""

_USUAL_OF_DETREX = {"position_temperature": 10_000.0, "position_offset": 0.5}
_USUAL_OF_MMDET = {"position_temperature": 20.0, "position_offset": 0.0}

TIMEOUT = 30.0
"""Seconds without an answer after which fetching ends."""


@dataclass(frozen=True)
class Published:
    """One file of weights that somebody has published."""

    address: str
    """Where it is: `https://…` or `hf://owner/name`."""

    preset: str
    """The preset whose network it is; the number of classes may differ."""

    ap: float
    """COCO val2017, as its authors report it."""

    epochs: int
    """Of training."""

    license: str
    """Of the project that published it."""

    sha256: str | None = None
    """How the SHA-256 of the file begins; None: not known."""

    settings: dict[str, Any] = field(default_factory=dict)
    """Settings of a DINO that its tensors do not say."""

    @property
    def file_name(self) -> str:
        """The last part of the address."""
        return self.address.rsplit("/", 1)[-1]


def _hub(name: str, preset: str, ap: float) -> Published:
    return Published(f"hf://SenseTime/deformable-detr{name}", preset, ap, 50, "apache-2.0")


def _mmdet(folder: str, name: str, preset: str, ap: float, epochs: int, **settings: Any) -> Published:
    """mmdetection's names end in the first eight digits of the SHA-256."""
    config = name.rsplit("_", 2)[0]
    address = f"{_MMDET}{folder}/{config}/{name}.pth"
    return Published(address, preset, ap, epochs, "apache-2.0", name[-8:], _USUAL_OF_MMDET | settings)


def _detrex(name: str, preset: str, ap: float, epochs: int, **settings: Any) -> Published:
    return Published(f"{_DETREX}{name}.pth", preset, ap, epochs, "apache-2.0", None, _USUAL_OF_DETREX | settings)


def _hdetr(name: str, preset: str, ap: float, epochs: int) -> Published:
    return Published(f"{_HDETR}{name}{_TRICKS}{_TWO_STAGE}_{epochs}eps.pth", preset, ap, epochs, "mit")


PUBLISHED: dict[str, Published] = {
    "r50-single-scale-coco": _hub("-single-scale", "r50-single-scale", 39.4),
    "r50-single-scale-dc5-coco": _hub("-single-scale-dc5", "r50-single-scale-dc5", 41.5),
    "r50-coco": _hub("", "r50", 44.5),
    "r50-refine-coco": _hub("-with-box-refine", "r50-refine", 46.2),
    "r50-two-stage-coco": _hub("-with-box-refine-two-stage", "r50-two-stage", 46.9),
    "r50-mmdet": _mmdet("deformable_detr", "deformable-detr_r50_16xb2-50e_coco_20221029_210934-6bc7d21b", "r50", 44.3, 50),
    "r50-refine-mmdet": _mmdet(
        "deformable_detr", "deformable-detr-refine_r50_16xb2-50e_coco_20221022_225303-844e0f93", "r50-refine", 46.2, 50
    ),
    "r50-two-stage-mmdet": _mmdet(
        "deformable_detr",
        "deformable-detr-refine-twostage_r50_16xb2-50e_coco_20221021_184714-acc8a5ff",
        "r50-two-stage",
        47.0,
        50,
    ),
    "r50-plus-12e": _hdetr("r50_", "r50-plus", 47.0, 12),
    "r50-plus-36e": _hdetr("r50_", "r50-plus", 49.0, 36),
    "r50-hdetr-12e": _hdetr(f"r50_{_HYBRID}", "r50-hdetr", 48.7, 12),
    "r50-hdetr-36e": _hdetr(f"r50_{_HYBRID}", "r50-hdetr", 50.0, 36),
    "swin-t-hdetr-12e": _hdetr(f"decay0.05_swin_tiny_{_HYBRID}", "swin-t-hdetr", 51.2, 12),
    "swin-t-hdetr-36e": _hdetr(f"decay0.05_swin_tiny_{_HYBRID}", "swin-t-hdetr", 53.7, 36),
    "swin-l-hdetr-12e": _hdetr(f"swin_large_{_HYBRID}n900_", "swin-l-hdetr", 56.1, 12),
    "swin-l-hdetr-36e": _hdetr(f"decay0.05_drop_path0.5_swin_large_{_HYBRID}n900_", "swin-l-hdetr", 57.8, 36),
    "r50-dino-mmdet-12e": _mmdet("dino", "dino-4scale_r50_8xb2-12e_coco_20221202_182705-55b2bba2", "r50-dino", 49.0, 12),
    "r50-dino-improved-mmdet-12e": _mmdet(
        "dino",
        "dino-4scale_r50_improved_8xb2-12e_coco_20230818_162607-6f47a913",
        "r50-dino",
        50.1,
        12,
        position_temperature=10_000.0,
        position_offset=0.5,
        denoising_queries=300,
    ),
    "r50-dino-detrex-12e": _detrex("v0.2.0/dino_r50_4scale_12ep_49_2AP", "r50-dino", 49.2, 12),
    "r50-dino-300dn-detrex-12e": _detrex("v0.2.0/dino_r50_4scale_12ep_300dn", "r50-dino", 49.5, 12, denoising_queries=300),
    "r50-dino-detrex-24e": _detrex(
        "v0.1.1/dino_r50_4scale_24ep", "r50-dino", 50.6, 24, position_temperature=20.0, position_offset=0.0
    ),
    "r50-dino-5scale-detrex-12e": _detrex("v0.2.1/dino_r50_5scale_12ep", "r50-dino-5scale", 49.6, 12),
    "swin-l-dino-detrex-12e": _detrex("v0.1.1/dino_swin_large_4scale_12ep", "swin-l-dino", 56.9, 12),
    "swin-l-dino-detrex-36e": _detrex("v0.2.0/dino_swin_large_384_4scale_36ep", "swin-l-dino", 58.1, 36),
    "swin-l-dino-5scale-mmdet-12e": _mmdet(
        "dino", "dino-5scale_swin-l_8xb2-12e_coco_20230228_072924-a654145f", "swin-l-dino-5scale", 57.2, 12
    ),
    "swin-l-dino-5scale-detrex-12e": _detrex("v0.2.1/dino_swin_large_384_5scale_12ep", "swin-l-dino-5scale", 57.5, 12),
    "swin-l-dino-5scale-detrex-36e": _detrex("v0.2.1/dino_swin_large_384_5scale_36ep", "swin-l-dino-5scale", 58.5, 36),
}
"""Short name → file. AP of the files of H-DETR with 100 detections per image."""


_FURTHER_DINO: dict[str, dict[str, Any]] = {
    "dino_r50_4scale_12ep_hacked_trainer.pth": _USUAL_OF_DETREX,
    "dino_r50_4scale_12ep_backbone_2e-5_class_weight_2.0.pth": _USUAL_OF_DETREX,
    "dino_r50_4scale_12ep_backbone_2e-5_class_weight_2.0_300dn.pth": {**_USUAL_OF_DETREX, "denoising_queries": 300},
    "dino-5scale_swin-l_8xb2-36e_coco-5486e051.pth": _USUAL_OF_MMDET,
}
"""Files of DINO that are known by name, but without an address that stays."""
_FURTHER_HDETR = {"h_deformable_detr_r50_two_stage_12ep_modified_train_net.pth": f"r50_{_HYBRID}{_TRICKS}{_TWO_STAGE}_12eps"}
"""Name of a file → the name that says what it holds."""


def settings_of(file_name: str, *, dino: bool) -> dict[str, Any]:
    """What is known of a published DINO or H-DETR by the name of its file alone, however it was fetched.

    Args:
        file_name: without folder.
        dino: whether it holds a DINO, whatever its name.
    """
    if dino:
        known = _FURTHER_DINO | {item.file_name: item.settings for item in PUBLISHED.values()}
        return dict(known.get(file_name, {}))
    match = _HDETR_NAME.fullmatch(_FURTHER_HDETR.get(file_name, file_name))
    if match is None:
        return {}
    settings: dict[str, Any] = {
        "num_queries": int(match["queries"] or 300),
        "look_forward_twice": bool(match["tricks"]),
        "dropout": 0.0 if match["tricks"] else 0.1,
    }
    if match["further"]:
        settings["one_to_many_queries"] = int(match["further"])
    return settings | ({"drop_path_rate": float(match["drop_path"])} if match["drop_path"] else {})


def fetch(name: str) -> Path:
    """The file of a short name: from the cache of `torch.hub`, else downloaded to it, whole or not at all.

    Args:
        name: a key of `PUBLISHED` with an `https` address.

    Raises:
        ConnectionError: it cannot be fetched; the message says from where, so that it can be brought by other means.
        ValueError: what was fetched is not the published file.
    """
    item = PUBLISHED[name]
    path = Path(torch.hub.get_dir()) / "checkpoints" / item.file_name
    if path.is_file():
        return path
    logger.info("fetching %s (%s, licence %s)", name, item.address, item.license)
    try:
        with urllib.request.urlopen(item.address, timeout=TIMEOUT) as response, atomic_file(path) as partial:
            _save(response, partial, response.headers.get("Content-Length"))
            _check(partial, item)
    except OSError as error:
        reason = getattr(error, "reason", error)
        said = f"the server answers {error.code} {reason}" if isinstance(error, HTTPError) else reason
        raise ConnectionError(
            f"the published weights {name!r} are neither at {path} nor can they be fetched ({said}). Download {item.address} where "
            "there is a network, and pass the file"
        ) from error
    return path


def _save(response: BinaryIO, path: Path, length: str | None) -> None:
    with path.open("wb") as file:
        shutil.copyfileobj(response, file, 1 << 20)
    if length is not None and path.stat().st_size != int(length):
        raise OSError(f"the connection ended after {path.stat().st_size:,} of {int(length):,} bytes")


def _check(path: Path, item: Published) -> None:
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    if item.sha256 is not None and not digest.startswith(item.sha256):
        raise ValueError(
            f"{item.address} is not the file that was published (its SHA-256 begins with {digest[:8]}, not {item.sha256}): "
            "nothing was kept. A proxy may have put a page in its place"
        )
