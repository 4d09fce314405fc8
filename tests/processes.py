"""Other processes for tests, forked from one that has imported everything and done nothing: no test waits for imports.

Not forked from the tests' own process: torch refuses derivatives in a fork once any test before has used another of its threads.
"""

import multiprocessing
import os
import socket
import sys
from collections.abc import Callable
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

from torch.multiprocessing import start_processes

METHOD = "forkserver" if "forkserver" in multiprocessing.get_all_start_methods() else "spawn"
WHERE_TESTS_ARE = str(Path(__file__).parents[1])


def start(function: Callable[..., None], *arguments: object) -> BaseProcess:
    """Call a function of a module in a process of its own; the arguments are pickled."""
    process = _context().Process(target=function, args=arguments)
    process.start()
    return process


def _context() -> Any:
    if WHERE_TESTS_ARE not in sys.path:
        sys.path.append(WHERE_TESTS_ARE)  # handed to the processes, which import the function's module
    made = multiprocessing.get_context(METHOD)
    made.set_forkserver_preload(["deformable_detr.cli.train", "deformable_detr.training", "deformable_detr.detector", "pytest"])
    return made


def run_two(function: Callable[..., None], *arguments: object) -> None:
    """Call a function in two processes that know of each other, as torchrun starts them; an error in one is raised.

    Args:
        function: of a module; called with the process's rank and the arguments.
        arguments: what can be pickled.
    """
    _context()
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    start_processes(_member, (port, function, arguments), nprocs=2, start_method=METHOD)


def _member(rank: int, port: int, function: Callable[..., None], arguments: tuple) -> None:
    group = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": 2, "LOCAL_WORLD_SIZE": 2, "MASTER_PORT": port}
    os.environ |= {name: str(value) for name, value in group.items()} | {"MASTER_ADDR": "127.0.0.1", "OMP_NUM_THREADS": "1"}
    function(rank, *arguments)
