"""When two class names mean the same class: the one rule for training, evaluation and class heads."""

import logging
import unicodedata
from collections.abc import Callable, Iterable, Sequence
from typing import Literal, get_args

from deformable_detr.categories import Categories
from deformable_detr.schema import known as known_name

__all__ = ["NO_CLASS", "MatchBy", "list_classes", "match_classes", "normalise_name"]

logger = logging.getLogger(__name__)

MatchBy = Literal["name", "id"]

NO_CLASS = "N/A"
"""Name of the channels of the 91-class layout of COCO that no category has."""

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
    """Lower case, without spaces, hyphens and underscores if something is left; composed and decomposed letters are the same.

    So are letters of full and half width, but `m²` is not `m2`.
    """
    folded = unicodedata.normalize("NFC", "".join(map(_narrow, name))).casefold()
    return "".join(character for character in folded if character not in "-_" and not character.isspace()) or folded


def _narrow(character: str) -> str:
    """A character of full or half width in its usual form; any other as it is."""
    kind = unicodedata.decomposition(character).partition(" ")[0]
    return unicodedata.normalize("NFKC", character) if kind in ("<wide>", "<narrow>") else character


SYNONYMS: dict[str, str] = {
    normalise_name(other): normalise_name(name) for name, others in _SYNONYMS.items() for other in others.split(",")
}
"""Other name → COCO's name, both normalised."""


def match_classes(
    wanted: Categories, known: Categories, *, by: MatchBy = "name", unique: bool = True, what: str | None = None
) -> list[int | None]:
    """Find for each wanted class the known one that it is.

    By name, an identical one first, then one that differs in case, spaces, hyphens or underscores (:func:`normalise_name`), then a
    synonym of a COCO class (`sofa` for `couch`). Where a name occurs more than once, the category id decides. `N/A` is no class.

    Args:
        wanted: the classes to find.
        known: the classes to find them among.
        by: `id` compares category ids and nothing else.
        unique: each known class is given away once. False lets several wanted ones share it.
        what: what is matched with what, for the log line that names the classes that are not written alike; None logs nothing.

    Returns:
        For each wanted class the position in `known`, or None.

    Raises:
        ValueError: `by` is neither.
    """
    if known_name(by, "way to match classes", get_args(MatchBy)) == "id":
        return [known.label_of.get(category_id) for category_id in wanted.ids]
    found: list[int | None] = [None] * len(wanted)
    for key in (str, normalise_name, _meaning):
        _match_level(wanted, known, key, unique, found)
    if what is not None:
        _log_differences(wanted, known, found, what)
    return found


def _match_level(wanted: Categories, known: Categories, key: Callable[[str], str], unique: bool, found: list[int | None]) -> None:
    """Fill the gaps in `found` with classes of equal key, those of equal id first."""
    named: dict[str, list[int]] = {}
    for position, name in enumerate(known.names):
        if name != NO_CLASS:
            named.setdefault(key(name), []).append(position)
    taken = {position for position in found if position is not None}
    open_labels = [label for label, name in enumerate(wanted.names) if found[label] is None and name != NO_CLASS]
    for same_id in (True, False):
        for label in open_labels:
            candidates = named.get(key(wanted.names[label]), ())
            fitting = (i for i in candidates if not (unique and i in taken) and (known.ids[i] == wanted.ids[label]) >= same_id)
            if found[label] is None and (position := next(fitting, None)) is not None:
                found[label] = position
                taken.add(position)


def _meaning(name: str) -> str:
    normalised = normalise_name(name)
    return SYNONYMS.get(normalised, normalised)


def _log_differences(wanted: Categories, known: Categories, found: Sequence[int | None], what: str) -> None:
    pairs = [(name, known.names[position]) for name, position in zip(wanted.names, found, strict=True) if position is not None]
    other = [f"{name!r} = {mate!r}" for name, mate in pairs if name != mate and normalise_name(name) == normalise_name(mate)]
    synonyms = [f"{name!r} = {mate!r}" for name, mate in pairs if normalise_name(name) != normalise_name(mate)]
    if other:
        logger.info("%s: class names that are written differently count as the same: %s", what, ", ".join(other))
    if synonyms:
        logger.warning("%s: class names that are synonyms count as the same: %s", what, ", ".join(synonyms))


def list_classes(entries: Iterable[tuple[str, int]], most: int = 20) -> str:
    """Names with their ids, for messages: `'cat' (id 1), 'dog' (id 2) and 7 more`."""
    entries = list(entries)
    shown = ", ".join(f"{name!r} (id {category_id})" for name, category_id in entries[:most])
    return shown + (f" and {len(entries) - most} more" if len(entries) > most else "")
