"""The badge of the coverage, drawn here: docs/coverage.svg, which git ignores and `make docs` puts on the site.

python website/badge.py        after `make coverage`
"""

import io
from pathlib import Path

from coverage import Coverage

ROOT = Path(__file__).parents[1]
BADGE = """<svg xmlns="http://www.w3.org/2000/svg" width="104" height="20" role="img" aria-label="coverage: {percent} %">
<rect width="104" height="20" rx="3" fill="#3b4252"/><path d="M62 0h39a3 3 0 0 1 3 3v14a3 3 0 0 1-3 3H62z" fill="#3f51b5"/>
<g fill="#fff" font-family="system-ui,Verdana,sans-serif" font-size="11" text-anchor="middle"><text x="31" y="14">coverage</text>
<text x="83" y="14">{percent} %</text></g></svg>
"""


def main() -> None:
    """Read what was measured last, and draw it."""
    measured = Coverage(data_file=ROOT / ".coverage", config_file=str(ROOT / "pyproject.toml"))
    measured.load()
    percent = round(measured.report(file=io.StringIO()))
    (ROOT / "docs" / "coverage.svg").write_text(BADGE.format(percent=percent), encoding="utf-8")


if __name__ == "__main__":
    main()
