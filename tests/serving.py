"""Small models, ways to read what an engine samples, and a server in a thread."""

import asyncio
import http.client
import json
import socket
import threading
import time
from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple, TypeVar

import torch

import makemoe
from makemoe.data.tokenizer import ByteTokenizer, CharTokenizer, Tokenizer
from makemoe.model.transformer import MoETransformer
from makemoe.serve import server as serving
from makemoe.serve.answers import Log
from makemoe.serve.app import Served, application
from makemoe.serve.engine import Engine
from makemoe.serve.guard import Guard
from makemoe.serve.limits import Limits
from makemoe.serve.text import Character, Text, Wish

T = TypeVar("T")
BLOCK_SIZE = 12
LETTERS = "abcdefghij\n"


def small(tokenizer: Tokenizer | None = None, **changes: Any) -> makemoe.Model:
    """A model with large weights, so that neither routing nor sampling is near uniform."""
    tokenizer = tokenizer or CharTokenizer(LETTERS)
    torch.manual_seed(0)
    sizes = {"block_size": BLOCK_SIZE, "n_layer": 3, "n_head": 2, "n_embd": 16, "num_experts": 4}
    net = MoETransformer(tokenizer.vocab_size, **sizes | {"dense_layers": [1]} | changes)
    for p in net.parameters():
        torch.nn.init.normal_(p, std=0.3)
    return makemoe.Model(net, tokenizer)


def of_bytes(**changes: Any) -> makemoe.Model:
    """A model of bytes, with the end of a text."""
    return small(ByteTokenizer(end_of_text=True), **changes)


class Got(NamedTuple):
    """A text to its end."""

    text: str
    finish: str | None
    characters: list[Character]


async def whole(text: Text) -> Got:
    """Read a text to its end."""
    parts, characters, finish = [], [], None
    while finish is None:
        piece = await text.next()
        parts.append(piece.text)
        characters += piece.characters
        finish = piece.finish
    return Got("".join(parts), finish, characters)


def alone(model: makemoe.Model, wish: Wish) -> str:
    """The text that `makemoe.load(...).sample` gives."""
    text = model.sample(
        wish.prompt,
        max_new_tokens=wish.max_tokens,
        temperature=wish.temperature,
        sample_top_k=wish.top_k,
        sample_top_p=wish.top_p,
        stop=wish.stop,
        seed=wish.seed,
    )
    return text if wish.echo else text.removeprefix(wish.prompt)


def with_engine(
    model: makemoe.Model, use: Callable[[Engine], Awaitable[T]], limits: Limits | None = None
) -> T:
    """What `use` returns, which is called beside a running engine."""

    async def both() -> T:
        engine = Engine(model.net, model.tokenizer, limits or Limits())
        running = asyncio.create_task(engine.run())
        try:
            return await use(engine)
        finally:
            running.cancel()

    return asyncio.run(asyncio.wait_for(both(), 60))


def sampled(
    model: makemoe.Model, wishes: Sequence[Wish], rows: int = 64, pause_s: float = 0.0
) -> list[Got]:
    """The texts of wishes that come one after another, while earlier ones are sampled."""

    async def use(engine: Engine) -> list[Got]:
        async def one(number: int, wish: Wish) -> Got:
            await asyncio.sleep(pause_s * number)
            return await whole(*engine.submit([wish]))

        return list(await asyncio.gather(*(one(n, wish) for n, wish in enumerate(wishes))))

    return with_engine(model, use, Limits(rows=rows))


class Reply(NamedTuple):
    status: int
    headers: dict[str, str]
    body: bytes

    @property
    def json(self) -> Any:
        assert self.headers["content-type"] == "application/json"
        return json.loads(self.body)

    @property
    def error(self) -> str:
        """The message of an error; its shape is that of the OpenAI API."""
        assert self.status >= 400
        assert self.json.keys() == {"error"}
        assert self.json["error"].keys() == {"message", "type", "param", "code"}
        return str(self.json["error"]["message"])


class Live(NamedTuple):
    """A server in a thread of this process."""

    server: serving.Server
    engine: Engine
    port: int

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def ask(
        self, method: str, path: str, body: Any = None, headers: dict[str, str] | None = None
    ) -> Reply:
        """Send a request; what is no bytes is sent as JSON."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=30)
        if body is not None and not isinstance(body, bytes):
            body = json.dumps(body).encode()
        try:
            connection.request(method, path, body, headers or {})
            answer = connection.getresponse()
            names = {name.lower(): value for name, value in answer.getheaders()}
            return Reply(answer.status, names, answer.read())
        finally:
            connection.close()

    def post(self, **fields: Any) -> Reply:
        """Ask for completions."""
        return self.ask("POST", "/v1/completions", fields)

    def is_idle(self) -> bool:
        """Whether nothing is left of any request."""
        engine, state = self.engine, self.server.server_state
        left = (engine.running, engine.waiting, engine.deadlines, state.connections, state.tasks)
        return not any(left) and all(stream.has_ended for stream in engine.batch.streams)

    def wait_idle(self) -> None:
        """Wait until that is so."""
        wait(self.is_idle)


def wait(is_so: Callable[[], bool], seconds: float = 20.0) -> None:
    """Wait until something is so."""
    end = time.monotonic() + seconds
    while not is_so():
        assert time.monotonic() < end
        time.sleep(0.005)


@contextmanager
def live(
    model: makemoe.Model,
    limits: Limits | None = None,
    *,
    log: Log = "none",
    hosts: Sequence[str] = (),
    origins: Sequence[str] = (),
    token: str | None = None,
    buffer: int | None = None,
) -> Iterator[Live]:
    """Serve a model on a free port while the block runs; `buffer`: bytes the system keeps."""
    with serving.listening("127.0.0.1", 0) as listener:
        if buffer is not None:  # connections inherit it
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, buffer)
        engine = Engine(model.net, model.tokenizer, limits or Limits())
        served = Served(engine, "tiny", 1_700_000_000, log)
        server = serving.new_server(Guard(application(served), hosts, origins, token), engine)
        thread = threading.Thread(target=lambda: asyncio.run(serving.serve(server, listener)))
        thread.start()
        try:
            wait(lambda: server.started)
            yield Live(server, engine, listener.getsockname()[1])
        finally:
            server.should_exit = True
            thread.join(30)
            assert not thread.is_alive()
