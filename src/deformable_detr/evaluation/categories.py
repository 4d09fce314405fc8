"""Which class of the model is which category of a dataset."""

import logging

from deformable_detr.categories import Categories
from deformable_detr.class_names import MatchBy, list_classes, match_classes

__all__ = ["match_categories"]

logger = logging.getLogger(__name__)


def match_categories(model: Categories, dataset: Categories, by: MatchBy = "name") -> dict[int, int]:
    """Match labels of the model with category ids of the dataset (:func:`~deformable_detr.class_names.match_classes`).

    Classes of the model that the dataset does not have are left out: detections of them are not evaluated.

    Args:
        model: the classes that labels of predictions mean.
        dataset: the categories of the annotation file.
        by: what must be equal: names, or category ids.

    Returns:
        Label → category id. Categories of the dataset that no label leads to are logged: they count as never detected.

    Raises:
        ValueError: nothing fits; the message lists both sides.
    """
    found = match_classes(dataset, model, by=by, what="annotations and model")
    mapping = {label: category_id for label, category_id in zip(found, dataset.ids, strict=True) if label is not None}
    listed = list(zip(dataset.names, dataset.ids, strict=True))
    if not mapping:
        hint = "" if by == "id" else "; if equal ids mean the same classes, match classes by id (--match-by id)"
        raise ValueError(
            f"the classes of the model have no {by} in common with the categories of the annotation file: the model detects "
            f"{list_classes(zip(model.names, model.ids, strict=True))}; the file has {list_classes(listed)}{hint}"
        )
    if missing := [entry for entry, label in zip(listed, found, strict=True) if label is None]:
        logger.warning("the model cannot detect these categories of the annotation file: %s", list_classes(missing))
    return mapping
