"""A Markdown extension: formulas as MathML, which browsers draw by themselves, without scripts or fonts from elsewhere."""

import re
from html import unescape
from typing import Any

from latex2mathml.converter import convert
from markdown import Extension, Markdown
from markdown.postprocessors import Postprocessor

FORMULA = re.compile(r'<(span|div) class="arithmatex">\\[(\[](.*?)\\[)\]]</\1>', re.DOTALL)


class Formulas(Postprocessor):
    """Replaces what pymdownx.arithmatex marks as a formula."""

    def run(self, text: str) -> str:
        """The page with its formulas converted.

        Raises:
            ValueError: a command that the converter does not know.
        """
        return FORMULA.sub(self.formula, text)

    def formula(self, found: re.Match[str]) -> str:
        """One formula, wrapped so that a wide one scrolls by itself."""
        display = "inline" if found[1] == "span" else "block"
        drawn = convert(unescape(found[2]).strip(), display=display)
        if "\\" in drawn:  # the converter passes on what it does not know
            raise ValueError(f"formula with an unknown command: {found[2].strip()}")
        return f'<{found[1]} class="formula">{drawn}</{found[1]}>'


class MathML(Extension):
    """Registers :class:`Formulas` behind all other steps."""

    def extendMarkdown(self, md: Markdown) -> None:
        """Add the step."""
        md.postprocessors.register(Formulas(md), "mathml", -10)


def makeExtension(**settings: Any) -> MathML:
    """What Markdown calls."""
    return MathML(**settings)
