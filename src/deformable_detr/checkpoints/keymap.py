"""Tables that translate the names of tensors between two layouts, in both directions."""

import re
from collections.abc import Sequence

_PLACEHOLDER = re.compile(r"\{(\w+)\}")


Rules = list[tuple[str, str]]
"""(our name, their name)."""


def query_rules(prefix: str) -> Rules:
    """Where the queries come from, under the names of the original code.

    Args:
        prefix: of the transformer there, such as `transformer.`.
    """
    names = {
        "reference_points": "reference_points",
        "memory_proj": "enc_output",
        "memory_norm": "enc_output_norm",
        "query_proj": "pos_trans",
        "query_norm": "pos_trans_norm",
    }
    return [(f"query_source.{ours}.{{rest}}", f"{prefix}{theirs}.{{rest}}") for ours, theirs in names.items()]


class KeyMap:
    """Pairs of templates (our name, their name), tried in order.

    `{rest}` matches any text, every other placeholder for a number: `("class_heads.{p}.{rest}", "class_embed.{p}.{rest}")`.

    Args:
        rules: used in both directions.
        copies: second names under which the other layout keeps the same tensors once more.
        aliases: other names that occur instead of those of `rules`; only read.
    """

    def __init__(
        self,
        rules: Sequence[tuple[str, str]],
        copies: Sequence[tuple[str, str]] = (),
        aliases: Sequence[tuple[str, str]] = (),
    ) -> None:
        self._to_ours = [(_pattern(theirs), ours) for ours, theirs in (*aliases, *rules, *copies)]
        self._to_theirs = [(_pattern(ours), theirs) for ours, theirs in rules]
        self._to_copies = [(_pattern(ours), theirs) for ours, theirs in copies]

    def to_ours(self, name: str) -> str | None:
        """Our name of a tensor of theirs; None for one that this layout does not have."""
        return _translate(name, self._to_ours)

    def to_theirs(self, name: str) -> str | None:
        """Their name of a tensor of ours; None for one that their layout does not have."""
        return _translate(name, self._to_theirs)

    def copy_of(self, name: str) -> str | None:
        """The second name that they keep the same tensor under; None where there is none."""
        return _translate(name, self._to_copies)


def _pattern(template: str) -> re.Pattern[str]:
    parts = _PLACEHOLDER.split(template)  # text, name, text, name, …
    pattern = "".join(
        re.escape(part) if index % 2 == 0 else f"(?P<{part}>{'.+' if part == 'rest' else '[0-9]+'})"
        for index, part in enumerate(parts)
    )
    return re.compile(pattern)


def _translate(name: str, rules: Sequence[tuple[re.Pattern[str], str]]) -> str | None:
    for pattern, template in rules:
        match = pattern.fullmatch(name)
        if match:
            return template.format(**match.groupdict())
    return None
