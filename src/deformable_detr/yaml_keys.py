"""YAML in which no key stands twice: PyYAML takes the last of two values without a word."""

from collections import Counter
from typing import Any

import yaml


class _NoKeyTwice:
    """A constructor of mappings, for PyYAML's loaders."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        """See PyYAML."""
        counts = Counter(str(key.value) for key, _ in node.value)
        if twice := [key for key, count in counts.items() if count > 1]:
            raise yaml.constructor.ConstructorError(None, None, f"twice: {', '.join(sorted(twice))}", node.start_mark)
        return super().construct_mapping(node, deep)  # type: ignore[misc]


class Typed(_NoKeyTwice, yaml.SafeLoader):
    """Values of YAML's types."""


class AsWritten(_NoKeyTwice, yaml.BaseLoader):
    """All values as text: class names such as `no`, `1.0` or `null` stay as their author wrote them."""
