"""One word for one thing, that of the field: old words do not come back."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]

OLD_WORDS = {
    r"\bpictures?\b(?! source| img)": "image",
    r"\bfilms?\b": "video",
    r"\bdata[ -]sets?\b": "dataset",
    r"\bmistakes?\b": "error, false positive, false negative",
    r"\baveraged weights\b": "EMA weights",
    r"\bnot finite\b": "non-finite",
    r"\bnumber format\b": "precision",
    r"\bfalse alarms?\b": "false positive",
    r"\bsecond boxes\b": "duplicate detections",
    r"\blearn(?:ing)? speed\b": "learning rate",
    r"\bpicture_|_pictures?\b": "image_",
    r"\bbefalls?\b|\bdearest\b": "a plain statement",
}
"""Patterns, and what is written instead."""

FILES = [
    path
    for folder, suffixes in {
        "src": (".py", ".js", ".css"),
        "tests": (".py",),
        "docs": (".md",),
        "configs": (".yaml",),
        "benchmarks": (".py",),
        ".": (".md", ".toml"),
    }.items()
    for path in sorted((ROOT / folder).glob("*" if folder == "." else "**/*"))
    if path.suffix in suffixes and path != Path(__file__)
]


@pytest.mark.parametrize("pattern", OLD_WORDS)
def test_old_words_do_not_come_back(pattern: str) -> None:
    found = [
        f"{path.relative_to(ROOT)}:{number}: {line.strip()}"
        for path in FILES
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1)
        if re.search(pattern, line, re.IGNORECASE)
    ]
    assert not found, f"write {OLD_WORDS[pattern]!r}:\n" + "\n".join(found)


def test_options_are_written_with_hyphens() -> None:
    """In what people read; other programs' options keep their form."""
    foreign = "nproc_per_node|num_processes|rdzv_backend|rdzv_endpoint"
    pattern = re.compile(rf"(?<![\w-])--(?!{foreign})[a-z0-9]+_[a-z]")
    found = [
        f"{path.relative_to(ROOT)}: {match[0]}"
        for path in FILES
        if path.suffix in (".md", ".yaml") or path.is_relative_to(ROOT / "src")
        for match in pattern.finditer(path.read_text(encoding="utf-8"))
    ]
    assert found == []


def test_addresses_name_one_owner() -> None:
    """Of the repository, in whatever file: `make owner NAME=…` has changed all of them or none."""
    address = re.compile(r"github(?:\.com)?/([\w-]+)/deformable-detr|([\w-]+)\.github\.io/deformable-detr")
    hidden = [path for folder in (".github", ".ci") for path in (ROOT / folder).rglob("*")]
    others = [*(ROOT / "notebooks").glob("*.ipynb"), *ROOT.glob("*.yml"), *ROOT.glob("*.cff"), *hidden]
    owners = {
        match[1] or match[2]: path
        for path in (*FILES, *others)
        if path.is_file()
        for match in address.finditer(path.read_text(encoding="utf-8"))
    }
    assert len(owners) == 1, owners
