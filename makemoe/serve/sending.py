"""Reads bodies, and sends answers in JSON."""

import asyncio
import json
import time
from typing import Any

from starlette.types import Message, Receive, Send

from makemoe.serve.refusals import Refusal

LINGER_S, LINGER_BYTES = 2.0, 4 << 20
"""How long, and how much, is read after a body that is too large. If the connection were closed at
once, a client that is still sending would not see the answer."""


async def read_body(headers: dict[bytes, bytes], receive: Receive, most: int) -> bytes:
    """The body of a request.

    Raises:
        Refusal: if it is too large, before it is read if it says so.
    """
    too_large = Refusal(
        413, f"the body is larger than {most:,} bytes", headers={"connection": "close"}
    )
    length = headers.get(b"content-length", b"0")
    if length.isdigit() and int(length) > most:
        raise too_large
    parts, size, more = [], 0, True
    while more:
        message = await receive()
        if message["type"] == "http.disconnect":
            raise ConnectionError
        parts.append(message.get("body", b""))
        size += len(parts[-1])
        if size > most:
            raise too_large
        more = message.get("more_body", False)
    return b"".join(parts)


async def send_json(
    send: Send, status: int, content: Any, headers: dict[str, str] | None = None
) -> None:
    """Send an answer in JSON."""
    body = json.dumps(content).encode()
    await send_start(
        send,
        status,
        [
            (b"content-type", b"application/json"),
            (b"content-length", str(len(body)).encode()),
            *((name.encode(), value.encode()) for name, value in (headers or {}).items()),
        ],
    )
    await send({"type": "http.response.body", "body": body})


async def send_start(send: Send, status: int, headers: list[tuple[bytes, bytes]]) -> None:
    """Send the head of an answer."""
    await send({"type": "http.response.start", "status": status, "headers": headers})


async def refuse(refusal: Refusal, receive: Receive, send: Send) -> None:
    """Send an error in JSON."""
    if refusal.status != 413:
        await send_json(send, refusal.status, refusal.as_json(), refusal.headers)
        return

    async def unfinished(message: Message) -> None:
        await send({**message, "more_body": True} if "body" in message else message)

    await send_json(unfinished, refusal.status, refusal.as_json(), refusal.headers)
    await linger(receive)
    await send({"type": "http.response.body", "body": b""})


async def linger(receive: Receive) -> None:
    """Read a little of what a client still sends."""
    end, size = time.monotonic() + LINGER_S, 0
    while size < LINGER_BYTES and time.monotonic() < end:
        try:
            message = await asyncio.wait_for(receive(), LINGER_S)
        except TimeoutError:
            return
        size += len(message.get("body", b""))
        if message["type"] == "http.disconnect" or not message.get("more_body"):
            return
