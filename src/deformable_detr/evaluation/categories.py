"""Which class of the model is which category of an annotation file."""

import logging
from collections.abc import Iterable

from deformable_detr.categories import Categories

logger = logging.getLogger(__name__)


def match_categories(model: Categories, dataset: Categories) -> dict[int, int]:
    """Label of the model → category id of the dataset, by name; by id only where not a single name fits.

    Names are compared without regard to upper and lower case. Classes of the model that the dataset does not have are left
    out: what is detected of them is not evaluated.

    Args:
        model: the classes that labels of predictions mean.
        dataset: the categories of the annotation file.

    Returns:
        For each label that fits, the category id. Categories of the dataset that no label leads to are logged: they count
        as never detected.

    Raises:
        ValueError: neither a name nor an id fits; the message lists both sides.
    """
    mapping = _by_name(model, dataset) or {label: i for label, i in enumerate(model.ids) if i in dataset.ids}
    if not mapping:
        raise ValueError(
            "the classes of the model have neither a name nor an id in common with the categories of the annotation file: the "
            f"model detects {_listed(zip(model.names, model.ids, strict=True))}; the file has "
            f"{_listed(zip(dataset.names, dataset.ids, strict=True))}"
        )
    reached = set(mapping.values())
    unreached = [(name, i) for name, i in zip(dataset.names, dataset.ids, strict=True) if i not in reached]
    if unreached:
        logger.warning("the model cannot detect these categories of the annotation file: %s", _listed(unreached))
    return mapping


def _by_name(model: Categories, dataset: Categories) -> dict[int, int]:
    ids_of: dict[str, list[int]] = {}
    for name, category_id in zip(dataset.names, dataset.ids, strict=True):
        ids_of.setdefault(name.strip().casefold(), []).append(category_id)
    mapping, taken = {}, set()
    for label, (name, own_id) in enumerate(zip(model.names, model.ids, strict=True)):
        candidates = [i for i in ids_of.get(name.strip().casefold(), []) if i not in taken]
        if candidates:  # where a name stands twice, the id decides
            mapping[label] = own_id if own_id in candidates else candidates[0]
            taken.add(mapping[label])
    return mapping


def _listed(entries: Iterable[tuple[str, int]], most: int = 20) -> str:
    entries = list(entries)
    shown = ", ".join(f"{name!r} (id {category_id})" for name, category_id in entries[:most])
    return shown + (f" and {len(entries) - most} more" if len(entries) > most else "")
