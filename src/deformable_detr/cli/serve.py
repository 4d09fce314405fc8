"""`deformable-detr serve`: a detector behind HTTP."""

import ipaddress
import logging
import socket
from dataclasses import dataclass, fields
from pathlib import Path

from deformable_detr.cli.command import MAX_PORT, Command
from deformable_detr.cli.detector_options import DetectorOptions
from deformable_detr.schema import check_range

logger = logging.getLogger(__name__)

EXAMPLES = """\
  deformable-detr serve runs/first                                         then open http://127.0.0.1:8000
  curl -F image=@street.jpg "http://127.0.0.1:8000/detect?threshold=0.3"
  curl --data-binary @street.jpg -H "Content-Type: image/jpeg" http://127.0.0.1:8000/draw -o drawn.jpg
  deformable-detr serve runs/first --port 9000 --batch-size 16 --max-wait-ms 20
  deformable-detr serve runs/first --host 0.0.0.0                          reachable from other machines: there is no login
"""


@dataclass(frozen=True, kw_only=True)
class ServeOptions(DetectorOptions):
    """Serve a detector over HTTP. POST /detect turns images into JSON, POST /draw into drawn images; images of several
    requests go through the model together. GET /health, /metrics (for Prometheus) and /docs (a page to try it on).
    """

    weights: str
    """A run folder (its best weights), weights of any known format, or an exported file."""

    batch_size: int = 4
    """At most this many images, of all requests, per forward pass. The results are the same for any."""

    max_wait_ms: float = 5.0
    """Milliseconds that an image waits for others to share its forward pass, at most; not at all where none are on their way."""

    host: str = "127.0.0.1"
    """Address to listen on. The default is reachable from this machine only."""

    port: int = 8000
    """Port to listen on. 0 takes a free one, which the log names."""

    max_megabytes: float = 20.0
    """Largest body of a request."""

    max_megapixels: float = 25.0
    """Largest image, in millions of pixels."""

    max_images: int = 8
    """Images per request."""

    max_waiting: int = 32
    """Images inside the server, from the first byte of their request to the last of the response; more get status 503 and a time to
    come back."""

    timeout: float = 60.0
    """Seconds until a request is given up; sending the response may take as long again."""

    threads: int = 2
    """Threads that decode and draw images."""

    access_log: bool = True
    """A log line for each request."""


def run(options: ServeOptions) -> int:
    """Serve until SIGINT or SIGTERM; then requests under way get the timeout to finish."""
    check_range(options, "port", 0, MAX_PORT)
    check_range(options, "threads", 1)
    try:
        from deformable_detr.serving import Limits, build_server, create_app
    except ModuleNotFoundError as error:
        hint = 'pip install "deformable-detr[serve]"'
        raise ModuleNotFoundError(f"the server needs {error.name}, which is not installed: {hint}") from error
    limits = Limits(**{item.name: getattr(options, item.name) for item in fields(Limits)})
    listener = bind(options.host, options.port)
    try:
        app = create_app(
            options.open(),
            name=Path(options.weights).name,
            limits=limits,
            batch_size=options.batch_size,
            max_wait=options.max_wait_ms / 1e3,
            num_threads=options.threads,
            top_k=options.top_k,
        )
        server = build_server(app, timeout=options.timeout, access_log=options.access_log)
        server.run(sockets=[listener])
        return 0 if server.started else 1
    finally:
        listener.close()


def bind(host: str, port: int) -> socket.socket:
    """Take the port, before the weights are read. Warns where other machines can reach it.

    Raises:
        OSError: the address is not ours, or the port is taken.
    """
    listener = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((host, port))
    except OSError as error:
        listener.close()
        raise OSError(f"cannot listen on {host}, port {port}: {error.strerror or error}; choose another --host or --port") from None
    address, number = listener.getsockname()[:2]
    if not ipaddress.ip_address(address).is_loopback:
        logger.warning(
            "listening on %s: whoever reaches this machine can use the detector, there is no login and no encryption; "
            "put a proxy with both in front, or stay with --host 127.0.0.1",
            address,
        )
    logger.info("http://%s:%d  (the page to try it on: /docs)", f"[{address}]" if ":" in address else address, number)
    return listener


COMMAND = Command("serve", ServeOptions, run, EXAMPLES)
