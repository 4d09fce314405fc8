"""What holds for a whole process: its place among those that work together, its log."""

import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager


def is_first_process() -> bool:
    """Whether this is the first of the processes that torchrun or accelerate has started, or there is no other."""
    return os.environ.get("RANK", "0") == "0"


@contextmanager
def without_warnings() -> Iterator[None]:
    """No log lines below an error, of any logger and thread, while the block lasts."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        yield
    finally:
        logging.disable(before)
