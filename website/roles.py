"""A Markdown extension: what docstrings mark for Sphinx and editors, as :class:`~package.module.Name`, is shown as code: Name."""

import re
from typing import Any

from markdown import Extension, Markdown
from markdown.preprocessors import Preprocessor

ROLE = re.compile(r":(?:attr|class|data|exc|func|meth|mod):`(?:~[\w.]*\.)?([^`]+)`")


class Roles(Preprocessor):
    """Replaces the marks, before anything else reads the text."""

    def run(self, lines: list[str]) -> list[str]:
        """The lines with code in place of marks; after a ~ the last part of a name is enough."""
        return ROLE.sub(r"`\1`", "\n".join(lines)).split("\n")


class RolesExtension(Extension):
    """Registers :class:`Roles` behind what sets blocks of code aside."""

    def extendMarkdown(self, md: Markdown) -> None:
        """Add the step."""
        md.preprocessors.register(Roles(md), "roles", 0)


def makeExtension(**settings: Any) -> RolesExtension:
    """What Markdown calls."""
    return RolesExtension(**settings)
