"""Write who owns the repository into every file that names its address: python .ci/set_owner.py NAME (make owner NAME=…)."""

import re
import subprocess
import sys
from pathlib import Path

ADDRESSES = r"(github(?:\.com)?/){}(/deformable-detr)|(\b){}(\.github\.io/deformable-detr)"
"""On the forge, in Colab, and of the site."""


def main() -> None:
    """Replace the owner that pyproject.toml names in all tracked files."""
    new = sys.argv[1]
    if not re.fullmatch(r"[A-Za-z\d](?:[A-Za-z\d-]{0,37}[A-Za-z\d])?", new):
        sys.exit(f"{new!r} is not the name of a user or an organisation")
    old = re.search(r'^Source = "https://github\.com/([^/]+)/', Path("pyproject.toml").read_text(encoding="utf-8"), re.MULTILINE)
    assert old is not None
    addresses = re.compile(ADDRESSES.replace("{}", re.escape(old[1])))
    names = subprocess.run(["git", "ls-files", "-z"], capture_output=True, check=True, text=True).stdout.split("\0")
    for path in map(Path, filter(None, names)):
        content = path.read_bytes()
        if path.is_file() and not path.is_symlink() and b"\0" not in content:
            text = content.decode()
            changed = addresses.sub(lambda match: (match[1] or match[3] or "") + new + (match[2] or match[4]), text)
            if changed != text:
                path.write_bytes(changed.encode())
                sys.stdout.write(f"{path}\n")


if __name__ == "__main__":
    main()
