"""`python -m deformable_detr COMMAND …` is the same as `deformable-detr COMMAND …`."""

import sys

from deformable_detr.cli.__main__ import main

if __name__ == "__main__":
    sys.exit(main())
