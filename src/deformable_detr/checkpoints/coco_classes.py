"""The classes of COCO in both layouts, and other names by which datasets call them."""

from deformable_detr.categories import Categories

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

NO_CLASS = "N/A"
"""Name of the channels of the 91-class layout that no category has."""

COCO_80 = Categories(tuple(COCO_NAMES.values()), tuple(COCO_NAMES))
"""Contiguous labels (mmdetection, detrex)."""

COCO_91 = Categories(tuple(COCO_NAMES.get(index, NO_CLASS) for index in range(91)), tuple(range(91)))
"""The label is the raw category id (official, transformers)."""

_SYNONYMS = {
    "person": "people, persons, pedestrian, human",
    "bicycle": "bike, cycle, pushbike",
    "car": "automobile",
    "motorcycle": "motorbike, motor",
    "airplane": "aeroplane, plane, aircraft",
    "truck": "lorry",
    "boat": "ship",
    "traffic light": "traffic signal, stoplight",
    "fire hydrant": "hydrant",
    "cow": "cattle",
    "backpack": "rucksack",
    "handbag": "purse",
    "tie": "necktie",
    "skis": "ski",
    "sports ball": "ball",
    "tennis racket": "tennis racquet, racket",
    "cup": "mug",
    "donut": "doughnut",
    "couch": "sofa",
    "potted plant": "houseplant, pot plant",
    "dining table": "table",
    "tv": "television, tv monitor, tv set",
    "laptop": "notebook computer",
    "mouse": "computer mouse",
    "remote": "remote control",
    "keyboard": "computer keyboard",
    "cell phone": "mobile phone, cellphone, mobile, smartphone",
    "microwave": "microwave oven",
    "refrigerator": "fridge",
    "teddy bear": "teddy",
    "hair drier": "hair dryer, hairdryer",
}


def normalise_name(name: str) -> str:
    """Lower case, without spaces, hyphens and underscores."""
    return "".join(character for character in name.lower() if character not in " -_")


SYNONYMS: dict[str, str] = {
    normalise_name(other): normalise_name(name) for name, others in _SYNONYMS.items() for other in others.split(",")
}
"""Other name → COCO's name, both normalised."""


def default_categories(num_classes: int) -> Categories | None:
    """The classes that a file without names means: COCO's where their number says so, else unknown ones."""
    return {80: COCO_80, 91: COCO_91}.get(num_classes)


def categories_of_names(names: tuple[str, ...] | None, num_classes: int) -> Categories | None:
    """The classes that a file names, with COCO's category ids where they are COCO's; guessed from their number without names."""
    if names is None:
        return default_categories(num_classes)
    for known in (COCO_80, COCO_91):
        if names == known.names:
            return known
    return Categories.from_names(names)
