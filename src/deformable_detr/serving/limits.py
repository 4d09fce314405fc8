"""Limits of the server on requests, and the error for those beyond them."""

from dataclasses import dataclass, fields


@dataclass(frozen=True)
class Limits:
    """Bounds on requests. Memory for images stays below `max_waiting * (max_megabytes + 3 * max_megapixels)` MB."""

    max_megabytes: float = 20.0
    """Largest body of a request, in megabytes (10^6 bytes); counted while it is read."""

    max_megapixels: float = 25.0
    """Largest image, in millions of pixels; looked up in its header, before it is decoded."""

    max_images: int = 8
    """Images per request."""

    max_waiting: int = 32
    """Images inside the server, from the first byte of their request to the last of the response; more get status 503."""

    timeout: float = 60.0
    """Seconds until a request is given up: 408 while its body is coming, else 504. Sending the response may take as long again."""

    def __post_init__(self) -> None:
        for item in fields(self):
            if not getattr(self, item.name) > 0:
                raise ValueError(f"{item.name} must be positive, not {getattr(self, item.name)}")
        if self.max_images > self.max_waiting:
            raise ValueError(
                f"max_images ({self.max_images}) must not exceed max_waiting ({self.max_waiting}): "
                "a request of so many images could never be taken in"
            )

    @property
    def max_bytes(self) -> int:
        """`max_megabytes` in bytes."""
        return round(1e6 * self.max_megabytes)

    @property
    def max_pixels(self) -> int:
        """`max_megapixels` in pixels."""
        return round(1e6 * self.max_megapixels)


class RefusedError(Exception):
    """A request that gets an error status and a reason for the client to read: what was wrong, and what to do."""

    def __init__(self, status: int, reason: str, headers: dict[str, str] | None = None) -> None:
        super().__init__(reason)
        self.status = status
        self.reason = reason
        self.headers = headers or {}
