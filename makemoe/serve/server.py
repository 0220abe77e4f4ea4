"""Runs the application on a socket, until Ctrl-C or SIGTERM."""

import asyncio
import errno
import math
import os
import socket
import time
from typing import NamedTuple

import uvicorn
from starlette.types import ASGIApp
from uvicorn.protocols.http.h11_impl import H11Protocol, RequestResponseCycle

from makemoe.errors import DataError, UsageError
from makemoe.serve.engine import Engine

WATCH_S = 1.0
"""Seconds between two looks at all connections."""

REQUEST_S = 15.0
"""Seconds in which a client must have sent the whole of a request."""

READ_S = 30.0
"""Seconds in which a client must read some of what waits for it."""

STOP_S = 1
"""Seconds that clients get to read the rest when the server stops."""

SPARE = 192
"""Connections beside one per text that may run or wait; further ones get the status 503."""

BACKLOG = 1024
"""Connections that the system keeps until they are accepted."""


def listening(host: str, port: int) -> socket.socket:
    """A socket that listens.

    Args:
        host: a name or an address of this machine.
        port: 0: any that is free.

    Raises:
        UsageError: if this address cannot be used.
    """
    if not 0 <= port < 1 << 16:
        raise UsageError(f"--port {port} is out of range: use 0 to 65535; 0 takes a free one")
    try:
        family = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0][0]
        listener = socket.create_server((host, port), family=family, backlog=BACKLOG)
        # Connections inherit it. Without it, a piece waits until the client's system has
        # acknowledged the one before, which takes up to 40 ms.
        listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        return listener
    except socket.gaierror as error:
        raise UsageError(f"--host {host}: no such address: {error.strerror}") from error
    except UnicodeError as error:
        raise UsageError(f"--host {host}: no such address: not a host name") from error
    except OverflowError as error:
        raise UsageError(f"--port {port} is out of range: use 0 to 65535") from error
    except OSError as error:
        if error.errno == errno.EADDRINUSE:
            raise UsageError(
                f"--port {port} is taken on {host}: use another, or 0 for a free one"
            ) from error
        if error.errno == errno.EACCES:
            raise UsageError(f"--port {port} is not allowed to you: use 1024 or more") from error
        if error.errno == errno.EADDRNOTAVAIL:
            raise UsageError(f"--host {host} is not an address of this machine") from error
        raise DataError(
            f"cannot listen on {host}:{port}: {os.strerror(error.errno or 0)}"
        ) from error


def url_of(listener: socket.socket) -> str:
    """Where a browser finds it."""
    host, port = listener.getsockname()[:2]
    shown = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)
    return f"http://[{shown}]:{port}" if ":" in shown else f"http://{shown}:{port}"


def is_local(listener: socket.socket) -> bool:
    """Whether only programs of this machine can reach it."""
    host = str(listener.getsockname()[0])
    return host == "::1" or host.startswith("127.")


class Seen(NamedTuple):
    """A connection as it was.

    Attributes:
        since: since when nothing of this has changed, in seconds.
        cycle: its request; None: there was none yet.
        patience_s: how long the client may take to go on; infinite: it waits for us.
        unread: how many bytes wait for the client.
    """

    since: float
    cycle: RequestResponseCycle | None
    patience_s: float
    unread: int

    def after(self, before: "Seen | None") -> "Seen":
        """With the time since when it stands still."""
        stands = (
            before is not None
            and before.cycle is self.cycle
            and before.patience_s == self.patience_s
            and before.unread <= self.unread
        )
        return self._replace(since=before.since) if before is not None and stands else self


def look_at(connection: H11Protocol, now: float) -> Seen:
    """What a connection does."""
    cycle, unread = connection.cycle, connection.transport.get_write_buffer_size()
    patience_s = math.inf
    if unread:
        if connection.flow.write_paused or cycle is None or cycle.response_complete:
            patience_s = READ_S
    elif cycle is None or cycle.more_body or cycle.response_complete:
        patience_s = REQUEST_S
    return Seen(now, cycle, patience_s, unread)


class Server(uvicorn.Server):
    """uvicorn, which also ends connections that stand still, and texts when it stops.

    Args:
        config: of uvicorn.
        engine: samples the texts.
    """

    def __init__(self, config: uvicorn.Config, engine: Engine) -> None:
        super().__init__(config)
        self.engine = engine
        self.seen: dict[H11Protocol, Seen] = {}

    async def main_loop(self) -> None:
        """Serve until the server is to stop."""
        watching = asyncio.create_task(self.watch())
        try:
            await super().main_loop()
        finally:
            watching.cancel()

    async def watch(self) -> None:
        """Look after the connections, now and then."""
        while True:
            await asyncio.sleep(WATCH_S)
            self.end_overdue(time.monotonic())

    def end_overdue(self, now: float) -> None:
        """Cut connections whose client neither sends nor reads."""
        before, self.seen = self.seen, {}
        for connection in list(self.server_state.connections):
            if isinstance(connection, H11Protocol):
                seen = look_at(connection, now).after(before.get(connection))
                self.seen[connection] = seen
                if now - seen.since > seen.patience_s:
                    connection.transport.abort()

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """End all texts first: uvicorn waits for their answers."""
        self.engine.stop()
        await super().shutdown(sockets)


def new_server(app: ASGIApp, engine: Engine) -> Server:
    """A server of the guarded application, whose texts the engine samples."""
    limits = engine.limits
    config = uvicorn.Config(
        app,
        http="h11",
        ws="none",
        lifespan="off",
        log_config=None,
        log_level="critical",  # its messages may hold what a client has sent
        access_log=False,
        proxy_headers=False,
        server_header=False,
        limit_concurrency=limits.rows + limits.waiting + SPARE,
        backlog=BACKLOG,
        timeout_graceful_shutdown=STOP_S,
    )
    return Server(config, engine)


async def serve(server: Server, listener: socket.socket) -> None:
    """Serve until Ctrl-C or SIGTERM, which is then raised again.

    Args:
        server: from `new_server`.
        listener: from `listening`.
    """
    running = asyncio.create_task(server.engine.run())
    # If the engine fails, the server ends too.
    running.add_done_callback(lambda _: setattr(server, "should_exit", True))
    try:
        await server.serve(sockets=[listener])
    finally:
        if running.done() and not running.cancelled():
            running.result()
        running.cancel()
