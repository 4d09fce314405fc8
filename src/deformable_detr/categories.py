"""The classes of a detector: names, ids, labels."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Self


@dataclass(frozen=True)
class Categories:
    """The classes of a detector: label k of the model is `names[k]` and the dataset's category `ids[k]`."""

    names: tuple[str, ...]
    ids: tuple[int, ...]

    def __post_init__(self) -> None:
        if len(self.names) != len(self.ids):
            raise ValueError(f"{len(self.names)} class names but {len(self.ids)} category ids: there must be one of each per class")
        if len(set(self.ids)) != len(self.ids):
            repeated = sorted({i for i in self.ids if self.ids.count(i) > 1})
            raise ValueError(f"category ids must differ, but these stand more than once: {repeated}")

    @classmethod
    def from_names(cls, names: Sequence[str]) -> Self:
        """Classes whose category ids are simply 0 … K−1."""
        return cls(tuple(names), tuple(range(len(names))))

    @classmethod
    def unnamed(cls, count: int) -> Self:
        """`class 0`, `class 1` …: classes of which only the number is known."""
        return cls.from_names([f"class {label}" for label in range(count)])

    @classmethod
    def from_dict(cls, record: Mapping[str, Sequence]) -> Self:
        """The inverse of :meth:`to_dict`."""
        return cls(tuple(record["names"]), tuple(record["ids"]))

    def to_dict(self) -> dict[str, list]:
        """Plain lists, for JSON."""
        return {field.name: list(getattr(self, field.name)) for field in fields(self)}

    @property
    def label_of(self) -> dict[int, int]:
        """Category id → label."""
        return {category_id: label for label, category_id in enumerate(self.ids)}

    def __len__(self) -> int:
        return len(self.names)
