"""Sends the texts of one request, at once or as they come, and lets go when the client does."""

import asyncio
import json
import sys
import time
from collections.abc import Awaitable, Sequence
from typing import Any, Literal

from starlette.types import Message, Receive, Send

from makemoe.errors import MakeMoEError
from makemoe.serve.batch import Score
from makemoe.serve.engine import Engine
from makemoe.serve.fields import Asked
from makemoe.serve.refusals import refusal_of
from makemoe.serve.sending import send_json, send_start
from makemoe.serve.shape import DONE, Completion, Symbol, event
from makemoe.serve.text import Character, Piece, Text

Log = Literal["none", "requests", "text"]
"""What is written about a request on standard error: nothing, its numbers, or its texts too."""

STREAM = [
    (b"content-type", b"text/event-stream; charset=utf-8"),
    (b"x-accel-buffering", b"no"),  # or nginx would wait for more
]


class Answer:
    """The answer to a request whose body has been read.

    Args:
        engine: samples the texts.
        model: name of the model.
        asked: the request.
        symbol: shows a token.
        log: what to write about it.
    """

    def __init__(self, engine: Engine, model: str, asked: Asked, symbol: Symbol, log: Log) -> None:
        self.engine, self.asked, self.log = engine, asked, log
        self.completion = Completion(model, asked, symbol)
        self.parts: list[list[str]] = [[] for _ in asked.wishes]
        self.began = time.monotonic()

    async def __call__(self, receive: Receive, send: Send) -> None:
        """Send it, unless the client hangs up.

        Raises:
            Refusal: if there is no place, or sampling fails before anything was sent.
        """
        try:
            texts = self.engine.submit(self.asked.wishes)
        except MakeMoEError as error:
            raise refusal_of(error) from error
        sending = asyncio.ensure_future(
            (self.stream if self.asked.stream else self.whole)(texts, send)
        )
        hung_up = asyncio.ensure_future(disconnected(receive))
        try:
            await asyncio.wait({sending, hung_up}, return_when=asyncio.FIRST_COMPLETED)
            if sending.done():
                sending.result()
        except MakeMoEError as error:
            raise refusal_of(error) from error
        finally:
            is_sent = sending.done()
            for task in (sending, hung_up):
                task.cancel()
            self.engine.forget(texts)
            failed = any(text.error is not None for text in texts)
            self.tell(texts, "failed" if failed else "done" if is_sent else "hung up")

    async def whole(self, texts: Sequence[Text], send: Send) -> None:
        """Send all texts at once, when all are complete."""
        pieces = [await self.read(index, text) for index, text in enumerate(texts)]
        await send_json(send, 200, self.completion.whole(texts, pieces))

    async def read(self, index: int, text: Text) -> Piece:
        """A text to its end, as one piece."""
        characters: list[Character] = []
        scores: list[tuple[str, Score | None]] = []
        finish = None
        while finish is None:
            piece = await text.next()
            self.parts[index].append(piece.text)
            characters += piece.characters
            scores += piece.scores
            finish = piece.finish
        return Piece("".join(self.parts[index]), characters, scores, finish)

    async def stream(self, texts: Sequence[Text], send: Send) -> None:
        """Send texts as they come, with those of several prompts interleaved.

        Sending waits while the client does not read; the engine does not wait for it.
        """
        await send_start(send, 200, STREAM)

        async def body(data: bytes, more: bool = True) -> None:
            await send({"type": "http.response.body", "body": data, "more_body": more})

        async def one(index: int, text: Text) -> None:
            finish = None
            while finish is None:
                piece = await text.next()
                if self.log == "text":
                    self.parts[index].append(piece.text)
                finish = piece.finish
                if piece.text or piece.characters or piece.scores or finish:
                    await body(self.completion.chunk(index, piece))

        try:
            await together([one(index, text) for index, text in enumerate(texts)])
        except MakeMoEError as error:
            await body(event(refusal_of(error).as_json()), more=False)
            return
        if self.asked.usage:
            await body(self.completion.counted(texts))
        await body(DONE, more=False)

    def tell(self, texts: Sequence[Text], how: str) -> None:
        """Write a line about it, if that is wanted."""
        if self.log == "none":
            return
        line: dict[str, Any] = {
            "texts": len(texts),
            **self.completion.usage(texts),
            "seconds": round(time.monotonic() - self.began, 3),
            "ended": how,
        }
        if self.log == "text":
            line["prompts"] = [wish.prompt for wish in self.asked.wishes]
            line["sampled"] = ["".join(parts) for parts in self.parts]
        print(f"makemoe: request {json.dumps(line)}", file=sys.stderr, flush=True)


async def together(work: Sequence[Awaitable[None]]) -> None:
    """Do several things at once; the first error ends all of them."""
    if len(work) == 1:
        await work[0]
        return
    tasks = [asyncio.ensure_future(one) for one in work]
    try:
        await asyncio.gather(*tasks)
    finally:
        for task in tasks:
            task.cancel()


async def disconnected(receive: Receive) -> None:
    """Return when the client has hung up."""
    message: Message = await receive()
    while message["type"] != "http.disconnect":
        message = await receive()
