"""Admission to the server: which requests hold images in it, from the head of the request to the last byte of the response."""

import asyncio
from collections.abc import Callable
from typing import Any

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from deformable_detr.serving.limits import Limits

ABORT = "deformable_detr.abort"
"""The ASGI extension by which the server cuts a connection; see :mod:`deformable_detr.serving.connections`."""

PIECE = 64 * 1024
"""Bytes of a response that are handed to the connection at once; the next piece waits until the client has taken them."""

STALL_SECONDS = 5.0
"""A client that has taken longer over a piece may lose its place to another one, if the server is full."""


class Places:
    """The images that are inside the server. Only the event loop touches it."""

    def __init__(self, limits: Limits) -> None:
        self.max_images = limits.max_waiting
        self.admissions: set[Admission] = set()

    @property
    def num_images(self) -> int:
        """Images inside now."""
        return sum(admission.num_images for admission in self.admissions)

    def make_room(self, num_images: int) -> bool:
        """Whether this number of further images fits, after evicting stalled requests if need be (the longest stalled first)."""
        missing = self.num_images + num_images - self.max_images
        stalled = sorted((one for one in self.admissions if one.stalled), key=lambda one: one.waiting_since or 0.0)
        if missing > sum(one.num_images for one in stalled):
            return False
        for one in stalled:
            if missing <= 0:
                break
            missing -= one.num_images
            one.evict()
        return True


class Admission:
    """The places of one request; a context manager that gives them back.

    Memory for a response is bounded only if its request counts until the response has been sent, so this lives as long as the
    request does, and notes how long the client lets the server wait.

    Args:
        places: where it counts.
        abort: cuts the connection; None where the ASGI server cannot.
    """

    def __init__(self, places: Places, abort: Callable[[], None] | None) -> None:
        self.num_images = 0
        self.waiting_since: float | None = None
        """Since when the client has been sending or taking the current piece; None while the server works."""
        self._places, self._abort = places, abort
        self._reading, self._received = True, 0  # whether the body is still coming; bytes of its current piece

    def __enter__(self) -> "Admission":
        self._places.admissions.add(self)
        return self

    def __exit__(self, *error: object) -> None:
        self._places.admissions.discard(self)

    @property
    def stalled(self) -> bool:
        """Whether the places may be given to another request."""
        waiting = self.waiting_since is not None and asyncio.get_running_loop().time() - self.waiting_since > STALL_SECONDS
        return waiting and self._abort is not None

    def hold(self, num_images: int) -> bool:
        """Hold this number of places in total; False if there is no room for them."""
        if not self._places.make_room(num_images - self.num_images):
            return False
        self.num_images = num_images
        return True

    def evict(self) -> None:
        """Cut the connection and give the places back."""
        self._places.admissions.discard(self)
        if self._abort is not None:
            self._abort()

    def receiving(self, receive: Receive) -> Receive:
        """`receive`, watched."""

        async def receive_watched() -> Message:
            if self._reading and self.waiting_since is None:
                self._wait_for_client()
            message = await receive()
            self._received += len(message.get("body", b""))
            self._reading = message.get("more_body", False)
            if self._received >= PIECE or not self._reading:
                self._received, self.waiting_since = 0, None
            return message

        return receive_watched

    def sending(self, send: Send) -> Send:
        """`send`, watched: it hands on bodies in pieces, and comes back when the client has taken the last one."""

        async def send_in_pieces(message: Message) -> None:
            body = message.get("body", b"")
            if len(body) <= PIECE:
                await send(message)
                return
            for start in range(0, len(body), PIECE):
                self._wait_for_client()
                await send({"type": message["type"], "body": body[start : start + PIECE], "more_body": True})
            self._wait_for_client()
            await send({"type": message["type"], "body": b"", "more_body": message.get("more_body", False)})

        return send_in_pieces

    def _wait_for_client(self) -> None:
        self.waiting_since = asyncio.get_running_loop().time()


class AdmitRequests:
    """ASGI middleware that gives each request to some paths an :class:`Admission`, as `scope["admission"]`."""

    def __init__(self, app: ASGIApp, places: Places, paths: frozenset[str]) -> None:
        self.app, self.places, self.paths = app, places, paths

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle one request."""
        if scope["type"] != "http" or scope["path"] not in self.paths:
            await self.app(scope, receive, send)
            return
        extensions: dict[str, Any] = scope.get("extensions") or {}
        with Admission(self.places, extensions.get(ABORT)) as admission:
            await self.app({**scope, "admission": admission}, admission.receiving(receive), admission.sending(send))
