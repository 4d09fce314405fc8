"""What the server counts, for Prometheus."""

import time
from collections.abc import Callable

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram
from starlette.types import ASGIApp, Message, Receive, Scope, Send

_SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60)
_PREFIX = "deformable_detr_"


class ServerMetrics:
    """Counters of one server, in a registry of its own.

    Args:
        num_waiting: gives the length of the queue.
        num_inside: gives the number of images from the first byte of their request to the last of the response.
    """

    def __init__(self, num_waiting: Callable[[], int], num_inside: Callable[[], int]) -> None:
        self.registry = CollectorRegistry()
        registry = self.registry
        self.requests = Counter(
            _PREFIX + "requests", "Requests by path and status.", ["method", "path", "status"], registry=registry
        )
        self.latency = Histogram(
            _PREFIX + "request_seconds", "From the first byte to the last.", ["path"], buckets=_SECONDS, registry=registry
        )
        self.images = Counter(_PREFIX + "images", "Images that went through the network.", registry=registry)
        self.batch_sizes = Histogram(
            _PREFIX + "batch_size", "Images per forward pass.", buckets=(1, 2, 4, 8, 16, 32, 64), registry=registry
        )
        self.network = Histogram(_PREFIX + "batch_seconds", "Duration of a batch.", buckets=_SECONDS, registry=registry)
        Gauge(_PREFIX + "queue_images", "Images that wait for their batch.", registry=registry).set_function(num_waiting)
        Gauge(
            _PREFIX + "inside_images", "Images from the first byte of their request to the last of the response.", registry=registry
        ).set_function(num_inside)

    def count_batch(self, size: int, seconds: float) -> None:
        """Count one forward pass."""
        self.images.inc(size)
        self.batch_sizes.observe(size)
        self.network.observe(seconds)


class CountRequests:
    """ASGI middleware that counts every response and times it.

    Paths and methods that the server does not know are counted as `other`, so that clients cannot add time series.
    """

    def __init__(self, app: ASGIApp, metrics: ServerMetrics, paths: frozenset[str]) -> None:
        self.app = app
        self.metrics = metrics
        self.paths = paths

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle one connection."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        path = scope["path"] if scope["path"] in self.paths else "other"
        method = scope["method"] if scope["method"] in ("GET", "POST", "HEAD", "OPTIONS") else "other"
        status, began = 500, time.perf_counter()

        async def send_and_look(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        try:
            await self.app(scope, receive, send_and_look)
        finally:
            self.metrics.requests.labels(method, path, str(status)).inc()
            self.metrics.latency.labels(path).observe(time.perf_counter() - began)
