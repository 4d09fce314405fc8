"""A page that shows a running training: curves, predictions beside the ground truth, advice, the time left.

The page reads what the run writes into its folder (progress.json, log.jsonl, samples/), so it works beside the training, in another
process, and after the end. It listens on this machine alone; from elsewhere it is reached by an SSH tunnel.
"""

import json
import threading
import time
from collections.abc import Sequence
from contextlib import suppress
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, Self

from deformable_detr.visualize.pages.page import render

HOST = "127.0.0.1"
FIRST_PORT, PORTS = 6070, 30
MOST_POINTS = 400
"""Of a curve."""

LOCAL_NAMES = {"127.0.0.1", "localhost", "[::1]"}
"""What the browser may call this machine: a page of another site that has its name point here is refused."""


def run_state(folder: str | Path, now: float | None = None) -> dict[str, Any]:
    """What a run folder says of its training, as plain values for JSON.

    Args:
        folder: of the run; files that are not there yet are left out.
        now: seconds since 1970; None: the clock's.
    """
    folder, now = Path(folder), time.time() if now is None else now
    records = _records(folder / "log.jsonl")
    path = folder / "progress.json"
    progress = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    age = max(0.0, now - progress["time"]) if progress else 0.0
    left = progress.get("seconds_left")
    evaluations = [record for record in records if record["kind"] == "evaluation"]
    overview = folder / "samples" / "overview.png"
    return {
        "name": folder.resolve().name,
        **{name: progress.get(name) for name in ("state", "step", "total_steps", "epoch", "total_epochs")},
        "age": round(age, 1),
        "seconds_left": None if left is None else max(0.0, round(left - age, 1)),
        "advice": progress.get("advice", []),
        "loss": _curve(records, "loss"),
        "ap": _curve(evaluations, "ap"),
        "ap50": _curve(evaluations, "ap50"),
        "classes": evaluations[-1]["per_class"] if evaluations else [],
        "samples": overview.stat().st_mtime if overview.is_file() else None,
    }


class Dashboard:
    """Serves the page of one run until it is closed; a context manager.

    Args:
        folder: of the run; it need not exist yet.
        port: None: the first free one from 6070 on.

    Raises:
        OSError: the port is taken.
    """

    def __init__(self, folder: str | Path, port: int | None = None) -> None:
        self._server = _listen(Path(folder), [port] if port is not None else range(FIRST_PORT, FIRST_PORT + PORTS))
        self.address = f"http://{HOST}:{self._server.server_port}/"
        self._thread = threading.Thread(target=self._server.serve_forever, name="dashboard", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Stop serving."""
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()


class _Handler(BaseHTTPRequestHandler):
    """Answers for one run folder; :func:`_listen` sets it."""

    folder: Path

    def do_GET(self) -> None:
        """The page, its state, the drawing of the samples."""
        if self.headers.get("Host", "").rsplit(":", 1)[0].lower() not in LOCAL_NAMES:
            self.send_error(HTTPStatus.FORBIDDEN, "only for this machine")
            return
        path = self.path.partition("?")[0]
        try:
            if path == "/":
                page = render("dashboard.html", title=self.folder.resolve().name)
                self._answer(page.encode(), "text/html; charset=utf-8")
            elif path == "/state.json":
                self._answer(json.dumps(run_state(self.folder)).encode(), "application/json")
            elif path == "/overview.png":
                self._answer((self.folder / "samples" / "overview.png").read_bytes(), "image/png")
            else:
                self.send_error(HTTPStatus.NOT_FOUND)
        except FileNotFoundError:
            self.send_error(HTTPStatus.NOT_FOUND)
        except (BrokenPipeError, ConnectionResetError):
            pass  # the browser has gone

    def log_message(self, format: str, *args: object) -> None:
        """Nothing: the terminal belongs to the training."""

    def _answer(self, content: bytes, kind: str) -> None:
        self.send_response(HTTPStatus.OK)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(content)))
        self.send_header("Cache-Control", "no-store")
        self.end_headers()
        self.wfile.write(content)


def _listen(folder: Path, ports: Sequence[int]) -> ThreadingHTTPServer:
    handler = type("Handler", (_Handler,), {"folder": folder})
    for port in ports:
        with suppress(OSError):
            return ThreadingHTTPServer((HOST, port), handler)
    raise OSError(f"cannot listen on port {ports[0]} of {HOST}: choose another one with --port")


def _records(path: Path) -> list[dict[str, Any]]:
    """The lines of a log; one that is being written, or was cut off by a full disk, is left out."""
    records = []
    if path.is_file():
        for line in path.read_text(encoding="utf-8").splitlines():
            with suppress(ValueError):
                records.append(json.loads(line))
    return records


def _curve(records: Sequence[dict[str, Any]], name: str) -> list[tuple[int, float]]:
    """(step, value), at most 400 of them, evenly spread and with the last one."""
    points = [(record["step"], record[name]) for record in records if record.get(name) is not None]
    step = -(-len(points) // MOST_POINTS) or 1
    return points[::-1][::step][::-1]
