"""Load on a running server: a few connections that send images one after the other, for some seconds.

    deformable-detr serve runs/first --no-access-log
    python benchmarks/serve.py http://127.0.0.1:8000 photos/ --connections 8 --seconds 20

Prints images per second, latencies as the clients see them, and the sizes of the batches. Nothing but the standard library, so
that it costs little beside the server on the same machine.
"""

import argparse
import http.client
import json
import statistics
import threading
import time
from collections import Counter
from itertools import cycle
from pathlib import Path
from urllib.parse import urlsplit

KINDS = {".jpg": "image/jpeg", ".jpeg": "image/jpeg", ".png": "image/png", ".webp": "image/webp"}


class Client(threading.Thread):
    """One connection."""

    def __init__(self, address: str, path: str, images: list[tuple[bytes, str]], first: int, until: float) -> None:
        super().__init__()
        self.address = urlsplit(address)
        self.path = path
        self.images = cycle(images[first:] + images[:first])
        self.until = until
        self.seconds: list[float] = []
        self.statuses: Counter[int] = Counter()
        self.batches: Counter[int] = Counter()

    def run(self) -> None:
        """Send until the time is over."""
        connection = http.client.HTTPConnection(self.address.hostname or "", self.address.port, timeout=120)
        while time.perf_counter() < self.until:
            content, kind = next(self.images)
            began = time.perf_counter()
            connection.request("POST", self.path, content, {"Content-Type": kind})
            answer = connection.getresponse()
            body = answer.read()
            self.statuses[answer.status] += 1
            if answer.status == 200:
                self.seconds.append(time.perf_counter() - began)
                if answer.getheader("content-type") == "application/json":
                    self.batches[json.loads(body)["images"][0]["times"]["batch_size"]] += 1
            elif answer.status == 503:
                time.sleep(float(answer.getheader("retry-after") or 1))


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("address", help="of the server, such as http://127.0.0.1:8000")
    parser.add_argument("folder", type=Path, help="with images")
    parser.add_argument("--path", default="/detect", help="/detect, /draw, with a query where wanted")
    parser.add_argument("--connections", type=int, default=8)
    parser.add_argument("--seconds", type=float, default=20.0)
    options = parser.parse_args()
    files = [path for path in sorted(options.folder.iterdir()) if path.suffix.lower() in KINDS][:100]
    images = [(path.read_bytes(), KINDS[path.suffix.lower()]) for path in files]
    began = time.perf_counter()
    until = began + options.seconds
    clients = [
        Client(options.address, options.path, images, index * len(images) // options.connections, until)
        for index in range(options.connections)
    ]
    for client in clients:
        client.start()
    for client in clients:
        client.join()
    elapsed = time.perf_counter() - began
    seconds = sorted(second for client in clients for second in client.seconds)
    statuses = sum((client.statuses for client in clients), Counter())
    batches = sum((client.batches for client in clients), Counter())
    print(f"{options.connections} connections, {elapsed:.1f} s: {len(seconds) / elapsed:.2f} images per second")
    if seconds:
        p95 = seconds[min(len(seconds) - 1, round(0.95 * len(seconds)))]
        median, longest = statistics.median(seconds), seconds[-1]
        print(f"latency: median {1e3 * median:.0f} ms, 95 % {1e3 * p95:.0f} ms, longest {1e3 * longest:.0f} ms")
    print("answers by status:", dict(sorted(statuses.items())))
    if batches:
        print("answers by batch size:", dict(sorted(batches.items())))


if __name__ == "__main__":
    main()
