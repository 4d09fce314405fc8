"""Connections that cannot be held open for ever: time limits for request heads and responses, under uvicorn."""

import asyncio
import re
import socket
from functools import partial
from typing import Any

import h11
import uvicorn
from starlette.types import ASGIApp
from uvicorn.protocols.http.h11_impl import H11Protocol

from deformable_detr.serving.admission import ABORT

HEAD_SECONDS = 10.0
"""From the opening of a connection, or from the last response, to the end of the next head; the timeout if that is less."""

MAX_CONNECTIONS = 500
"""More close the one that has been without a complete request for longest. A process may often open 1024 files."""

_AUTHORITY = re.compile(r"\Ahttps?://[^/]*", re.IGNORECASE)
"""What stands before the path where a client writes a whole address into its request line, as to a proxy (RFC 9112, 3.2.2)."""

_TOO_SLOW = (
    b"HTTP/1.1 408 Request Timeout\r\nConnection: close\r\nContent-Type: application/json\r\nContent-Length: 47\r\n\r\n"
    b'{"error":"the request\'s head came too slowly"}\n'
)


class BoundedConnection(H11Protocol):
    """uvicorn's connection with a clock: one that waits for its client for too long is cut.

    uvicorn itself bounds the time between two requests alone. A client that never finishes a head, or never takes its response,
    would stay for ever, with all that has been written for it in memory. Beside uvicorn's arguments it takes `timeout`: the seconds
    that a client may take over a response.
    """

    def __init__(self, *arguments: Any, timeout: float, **keywords: Any) -> None:
        super().__init__(*arguments, **keywords)
        self.app = self._run_app
        self._seconds = {"head": min(HEAD_SECONDS, timeout), "response": timeout}
        self._phase = ""
        self._clock: asyncio.TimerHandle | None = None

    async def _run_app(self, scope: Any, receive: Any, send: Any) -> None:
        app: ASGIApp = self.config.loaded_app  # type: ignore[assignment]
        path = _AUTHORITY.sub("", scope["path"]) or "/"
        await app({**scope, "path": path, "extensions": {ABORT: self.transport.abort}}, receive, send)

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """A client has connected."""
        super().connection_made(transport)
        client: socket.socket = transport.get_extra_info("socket")
        if client.family in (socket.AF_INET, socket.AF_INET6):
            # The head of a response and its body are written apart. Otherwise the body would wait for the client to acknowledge the
            # head, 40 ms on most systems: asyncio sees to that only where the listener was made with its protocol's number.
            client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        transport.set_write_buffer_limits(high=0)  # the next piece of a response waits until the last one has been taken
        self._watch()
        if len(self.connections) > MAX_CONNECTIONS:
            idle = [one for one in self.connections if isinstance(one, BoundedConnection) and one._phase == "head"]
            min(idle, key=lambda one: one._clock.when() if one._clock else 0.0).give_up()

    def connection_lost(self, exc: Exception | None) -> None:
        """The connection is closed, by either side."""
        super().connection_lost(exc)
        if self._clock is not None:
            self._clock.cancel()

    def data_received(self, data: bytes) -> None:
        """The client has sent something."""
        super().data_received(data)
        self._watch()

    def pause_writing(self) -> None:
        """Something written waits for the client to take it."""
        super().pause_writing()
        self._watch()

    def resume_writing(self) -> None:
        """The client has taken all that was written."""
        super().resume_writing()
        self._watch()

    def on_response_complete(self) -> None:
        """The app has written the whole response."""
        super().on_response_complete()
        self._watch()

    def give_up(self) -> None:
        """Cut the connection; a client that has begun a request is told why."""
        self.connections.discard(self)  # at once: the next one to be closed is another
        if self._phase == "head" and self.conn.their_state is h11.IDLE and self.conn.trailing_data[0]:
            self.transport.write(_TOO_SLOW)
            self.transport.close()
        else:
            self.transport.abort()

    def _watch(self) -> None:
        """Start the clock anew if what the connection waits for has changed."""
        under_way = self.cycle is not None and not self.cycle.response_complete
        if self.transport.get_write_buffer_size() or (under_way and self.cycle.response_started):
            phase = "response"
        else:
            phase = "work" if under_way else "head"
        if phase == self._phase:
            return
        self._phase = phase
        if self._clock is not None:
            self._clock.cancel()
        seconds = self._seconds.get(phase)  # while the app works, it keeps its own time
        self._clock = None if seconds is None else self.loop.call_later(seconds, self.give_up)


def build_server(app: ASGIApp, *, timeout: float = 60.0, access_log: bool = True) -> uvicorn.Server:
    """uvicorn, with connections that have a clock; `server.run(sockets=[listener])` serves until SIGINT, SIGTERM or `should_exit`.

    Args:
        app: the application.
        timeout: seconds that a client may take over a response, and that requests under way get at the end.
        access_log: log each request.
    """
    config = uvicorn.Config(
        app,
        http=partial(BoundedConnection, timeout=timeout),  # pyright: ignore[reportArgumentType]
        ws="none",
        log_config=None,
        access_log=access_log,
        server_header=False,
        timeout_graceful_shutdown=max(1, round(timeout)),
    )
    return uvicorn.Server(config)
