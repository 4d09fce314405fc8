"""Load on a running server: a few connections that send images one after the other, for some seconds.

    deformable-detr serve runs/first --no-access-log
    python benchmarks/serve.py http://127.0.0.1:8000 photos/ --connections 8 --seconds 20
    python benchmarks/serve.py http://127.0.0.1:8000 photos/ --seconds 60 --hostile 200 --pid $(pgrep -f "deformable_detr serve")

Prints images per second, latencies as the clients see them, and the sizes of the batches. With `--hostile`, so many more
connections never finish a head, as many never finish a body, and as many ask for drawings of the largest image that they do not
read but for a byte now and then; each begins anew when it is cut.
Nothing but the standard library, so that it costs little beside the server on the same machine. Loopback only.
"""

import argparse
import http.client
import ipaddress
import json
import socket
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
            image, kind = next(self.images)
            began = time.perf_counter()
            connection.request("POST", self.path, image, {"Content-Type": kind})
            response = connection.getresponse()
            content = response.read()
            self.statuses[response.status] += 1
            if response.status == 200:
                self.seconds.append(time.perf_counter() - began)
                if response.getheader("content-type") == "application/json":
                    self.batches[json.loads(content)["images"][0]["times"]["batch_size"]] += 1
            elif response.status == 503:
                connection.close()  # it would be idle for too long
                wait = float(response.getheader("retry-after") or 1)
                time.sleep(max(0.0, min(wait, self.until - time.perf_counter())))


class Hostile(threading.Thread):
    """Connections of one kind that stop in the middle, and begin anew when they are cut.

    Args:
        address: of the server.
        beginnings: what one of them sends.
        count: how many there are.
        until: when to stop.
    """

    def __init__(self, address: str, beginning: bytes, count: int, until: float) -> None:
        super().__init__()
        parts = urlsplit(address)
        self.address = (parts.hostname or "", parts.port or 80)
        self.beginning, self.count, self.until = beginning, count, until
        self.opened = 0

    def run(self) -> None:
        """Keep them open until the time is over."""
        clients: list[socket.socket] = []
        while time.perf_counter() < self.until:
            clients = [client for client in clients if self._is_open(client)]
            for _ in range(min(10, self.count - len(clients))):
                try:
                    clients.append(self._open())
                except OSError:
                    break
            time.sleep(0.05)
        for client in clients:
            client.close()

    def _open(self) -> socket.socket:
        client = socket.socket()
        client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        client.settimeout(2.0)
        client.connect(self.address)
        client.sendall(self.beginning)
        self.opened += 1
        return client

    def _is_open(self, client: socket.socket) -> bool:
        """Whether the server has not closed it; a byte of a response is taken."""
        client.setblocking(False)
        try:
            if client.recv(1) == b"":
                raise ConnectionError
            client.send(b"")
            error = client.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
        except BlockingIOError:
            return True
        except OSError:
            error = 1
        if error:
            client.close()
        return not error


def hostile_clients(address: str, image: tuple[bytes, str], count: int, until: float) -> list[Hostile]:
    """`count` of each kind."""
    content, kind = image
    head = f"HTTP/1.1\r\nHost: x\r\nAccept: image/png\r\nContent-Type: {kind}\r\nContent-Length: {len(content)}\r\n".encode()
    beginnings = (b"POST /detect HTTP/1.1\r\nHost: x\r\n", b"POST /detect " + head + b"\r\n" + content[: len(content) // 2])
    return [Hostile(address, beginning, count, until) for beginning in (*beginnings, b"POST /draw " + head + b"\r\n" + content)]


class Memory(threading.Thread):
    """Watches a process's memory (Linux)."""

    def __init__(self, pid: int, until: float) -> None:
        super().__init__()
        self.pid, self.until = pid, until
        self.first = self.most = self.read()

    def read(self) -> float:
        """Resident memory in MB."""
        lines = Path(f"/proc/{self.pid}/status").read_text().splitlines()
        return next(int(line.split()[1]) / 1024 for line in lines if line.startswith("VmRSS"))

    def run(self) -> None:
        """Until the time is over."""
        while time.perf_counter() < self.until:
            self.most = max(self.most, self.read())
            time.sleep(0.2)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("address", help="of the server, such as http://127.0.0.1:8000")
    parser.add_argument("folder", type=Path, help="with images")
    parser.add_argument("--path", default="/detect", help="/detect, /draw, with a query where wanted")
    parser.add_argument("--connections", type=int, default=8)
    parser.add_argument("--seconds", type=float, default=20.0)
    parser.add_argument("--hostile", type=int, default=0, help="so many clients of each hostile kind beside the others")
    parser.add_argument("--pid", type=int, help="of the server, to watch its memory")
    options = parser.parse_args()
    if not ipaddress.ip_address(urlsplit(options.address).hostname or "").is_loopback:
        parser.error("only a server on this machine is loaded: http://127.0.0.1:PORT")
    files = [path for path in sorted(options.folder.iterdir()) if path.suffix.lower() in KINDS][:100]
    images = [(path.read_bytes(), KINDS[path.suffix.lower()]) for path in files]
    began = time.perf_counter()
    until = began + options.seconds
    clients = [
        Client(options.address, options.path, images, index * len(images) // options.connections, until)
        for index in range(options.connections)
    ]
    hostile = hostile_clients(options.address, max(images, key=lambda image: len(image[0])), options.hostile, until)
    memory = [Memory(options.pid, until)] if options.pid else []
    threads = [*clients, *(hostile if options.hostile else []), *memory]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    elapsed = time.perf_counter() - began
    seconds = sorted(second for client in clients for second in client.seconds)
    statuses = sum((client.statuses for client in clients), Counter())
    batches = sum((client.batches for client in clients), Counter())
    print(f"{options.connections} connections, {elapsed:.1f} s: {len(seconds) / elapsed:.2f} images per second")
    if seconds:
        p95 = seconds[min(len(seconds) - 1, round(0.95 * len(seconds)))]
        median, longest = statistics.median(seconds), seconds[-1]
        print(f"latency: median {1e3 * median:.0f} ms, 95 % {1e3 * p95:.0f} ms, longest {1e3 * longest:.0f} ms")
    print("responses by status:", dict(sorted(statuses.items())))
    if options.hostile:
        print("hostile connections (heads, bodies, responses):", *(one.opened for one in hostile))
    for one in memory:
        print(f"memory of the server: {one.first:.0f} MB before, {one.most:.0f} MB at most")
    if batches:
        print("responses by batch size:", dict(sorted(batches.items())))


if __name__ == "__main__":
    main()
