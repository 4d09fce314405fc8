"""The classes of COCO in both layouts."""

from collections.abc import Sequence

from deformable_detr.categories import Categories
from deformable_detr.class_names import NO_CLASS, normalise_name

_NAMES = (
    "person,bicycle,car,motorcycle,airplane,bus,train,truck,boat,traffic light,fire hydrant,stop sign,parking meter,"
    "bench,bird,cat,dog,horse,sheep,cow,elephant,bear,zebra,giraffe,backpack,umbrella,handbag,tie,suitcase,frisbee,"
    "skis,snowboard,sports ball,kite,baseball bat,baseball glove,skateboard,surfboard,tennis racket,bottle,"
    "wine glass,cup,fork,knife,spoon,bowl,banana,apple,sandwich,orange,broccoli,carrot,hot dog,pizza,donut,cake,"
    "chair,couch,potted plant,bed,dining table,toilet,tv,laptop,mouse,remote,keyboard,cell phone,microwave,oven,"
    "toaster,sink,refrigerator,book,clock,vase,scissors,teddy bear,hair drier,toothbrush"
)

COCO_NAMES: dict[int, str] = dict(
    zip(
        (*range(1, 12), *range(13, 26), 27, 28, *range(31, 45), *range(46, 66), 67, 70, *range(72, 83), *range(84, 91)),
        _NAMES.split(","),
        strict=True,
    )
)
"""Category id → name of the 80 classes."""

COCO_80 = Categories(tuple(COCO_NAMES.values()), tuple(COCO_NAMES))
"""Contiguous labels (mmdetection, detrex)."""

COCO_91 = Categories(tuple(COCO_NAMES.get(index, NO_CLASS) for index in range(91)), tuple(range(91)))
"""The label is the raw category id (official, transformers)."""


def default_categories(num_classes: int) -> Categories | None:
    """The classes that a file without names means: COCO's where their number says so, else unknown ones."""
    return {80: COCO_80, 91: COCO_91}.get(num_classes)


def categories_of_names(names: tuple[str, ...]) -> Categories:
    """The classes that a file names, with COCO's category ids where they are COCO's."""
    for known in (COCO_80, COCO_91):
        if names == known.names:
            return known
    return Categories.from_names(names)


def is_coco_80(names: Sequence[str]) -> bool:
    """Whether these are the 80 classes in COCO's order; a few may be spelled otherwise (`motorbike`, `sofa`, translated ones)."""
    if len(names) != len(COCO_80.names):
        return False
    pairs = zip(names, COCO_80.names, strict=True)
    return sum(normalise_name(name) == normalise_name(known) for name, known in pairs) > 40
