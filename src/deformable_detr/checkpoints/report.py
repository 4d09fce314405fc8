"""What a reader or a converter did with every tensor."""

from dataclasses import dataclass, field


@dataclass
class Report:
    """Filled on the way; :meth:`lines` is for people."""

    source_format: str
    """Layout that was read."""

    target_format: str = "native"
    """Layout that was made."""

    mapped: int = 0
    """Tensors that are the same in both, but for their name."""

    reshaped: list[str] = field(default_factory=list)
    """Tensors that were split, joined, cast, or lost or gained rows."""

    dropped: list[str] = field(default_factory=list)
    """Tensors of the source with nothing in them that the target needs: copies of heads, counters."""

    missing: list[str] = field(default_factory=list)
    """Tensors that the target needs and the source has not, and what was put there."""

    lossy: list[str] = field(default_factory=list)
    """What the target cannot hold, and what that changes."""

    notes: list[str] = field(default_factory=list)
    """What is to be done to use the result, and assumptions that were made."""

    def lines(self) -> list[str]:
        """One line per kind, with the first names of each."""
        lines = [f"{self.source_format} → {self.target_format}", f"mapped    {self.mapped} tensors"]
        for kind in ("reshaped", "dropped", "missing"):
            names: list[str] = getattr(self, kind)
            lines.append(f"{kind:9} {len(names)}" + (f": {shorten(names)}" if names else ""))
        lines.append(f"lossy     {len(self.lossy) or 'no'}" + "".join(f"\n  - {text}" for text in self.lossy))
        return lines + [f"note: {text}" for text in self.notes]

    def __str__(self) -> str:
        return "\n".join(self.lines())


def shorten(names: list[str], limit: int = 6) -> str:
    """The first names, and how many more there are."""
    more = f" … and {len(names) - limit} more" if len(names) > limit else ""
    return ", ".join(names[:limit]) + more
