"""Times `makemoe serve` with many clients at once, and watches its memory.

The server is a process of its own. The clients are in this one: they share the processors with it,
as on a machine where both run. Every text is compared with the one that `makemoe.load` samples.
"""

import asyncio
import itertools
import json
import subprocess
import tempfile
import time
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import aclosing, asynccontextmanager, contextmanager
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple

import makemoe
from benchmarks.measure import FLOAT32, Bench, resident_mb
from benchmarks.report import Goal, Result
from benchmarks.startup import MAKEMOE, SMALL, train_one_step

CONFIG = Path(__file__).parents[1] / "configs" / "laptop.yaml"
CLIENTS = 64
TOKENS = 200
"""Of each text."""

TURNS = 4
"""How often all clients are served at once; between, a share of the texts is sampled alone."""

PROBES = 100
"""How often the time to the first character is measured, while all other clients go on."""

REQUESTS = 10_000
"""While memory is watched; it is first read after a tenth of them."""

PROMPTS = ("THORNE:", "What", "The reeve,\n", "To", "MERRIN:\nGood ")


class Load(NamedTuple):
    """How much is asked for."""

    clients: int
    tokens: int
    probes: int
    requests: int


FULL = Load(CLIENTS, TOKENS, PROBES, REQUESTS)
QUICK = Load(3, 5, 2, 10)


def serving(bench: Bench) -> list[Result]:
    """64 clients of `makemoe serve` at once, against one text after another; first characters."""
    load = bench.choose(FULL, QUICK)
    with tempfile.TemporaryDirectory() as name:
        bench.say("serving: one step of training, for a checkpoint")
        train_one_step(Path(name), bench.choose([], SMALL), CONFIG)
        path = next(Path(name).rglob("last.ckpt"))
        with served(path) as server:
            return measured(bench, load, makemoe.load(path, "cpu"), server)


class Address(NamedTuple):
    """Where a server is: its port, and the id of its process."""

    port: int
    pid: int


@contextmanager
def served(checkpoint: Path) -> Iterator[Address]:
    """A server of a checkpoint, on a free port, while the block runs."""
    command = [*MAKEMOE, "serve", "--ckpt_path", str(checkpoint), "--port", "0", "--device", "cpu"]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:
        try:
            assert process.stderr is not None
            said = next((line for line in process.stderr if "serving at" in line), "")
            if not said:
                raise RuntimeError("makemoe serve has ended")
            yield Address(int(said.partition(";")[0].rpartition(":")[2]), process.pid)
        finally:
            process.terminate()


def measured(bench: Bench, load: Load, model: makemoe.Model, server: Address) -> list[Result]:
    """All lines."""
    wishes = [
        {"prompt": prompt, "seed": seed, "max_tokens": load.tokens}
        for prompt, seed in zip(itertools.cycle(PROMPTS), range(load.clients), strict=False)
    ]
    bench.say(f"serving: {load.clients} clients at once / one text after another")
    asyncio.run(at_once(server, wishes))  # warm
    rounds: list[Round] = []
    alone: list[str] = []
    alone_s = 0.0
    # In turns, so that both have the same share of a machine's better and worse moments.
    for turn in range(TURNS):
        rounds.append(asyncio.run(at_once(server, wishes)))
        begin = time.perf_counter()
        for wish in wishes[len(wishes) * turn // TURNS : len(wishes) * (turn + 1) // TURNS]:
            prompt, seed = str(wish["prompt"]), int(str(wish["seed"]))
            alone.append(model.sample(prompt, max_new_tokens=load.tokens, seed=seed))
        alone_s += time.perf_counter() - begin
    same = sum(
        text == expected.removeprefix(str(wish["prompt"]))
        for text, expected, wish in zip(rounds[0].texts, alone, wishes, strict=True)
    )
    bench.say(f"serving: first characters beside {load.clients - 1} others")
    first = asyncio.run(first_characters(server, load))
    bench.say(f"serving: {load.requests:,} requests")
    before, after = asyncio.run(memory(server, load))
    tokens = load.clients * load.tokens
    step_ms = 1000 * first.step_s
    waits_ms = sorted(1000 * wait for wait in first.waits_s)
    return [
        Result(
            f"serving {load.clients} clients at once",
            FLOAT32,
            tokens / median(one.seconds for one in rounds),
            "the same texts one after another, in Python",
            tokens / alone_s,
            "tokens/s",
            Goal(">=", 10),
            note=f"{same} of {len(alone)} texts are the same",
        ),
        *(
            Result(
                f"first character beside {load.clients - 1} others, {which} of {len(waits_ms)}",
                FLOAT32,
                wait_ms,
                "a step of the batch",
                step_ms,
                goal=Goal("<=", 3),
                longer=True,
            )
            for which, wait_ms in (("median", median(waits_ms)), ("worst", waits_ms[-1]))
        ),
        Result(
            f"memory of the server after {load.requests:,} requests",
            ours=after,
            against=f"after {load.requests // 10:,}",
            theirs=before,
            unit="MB",
            goal=Goal("<=", 105, "%"),
            judged=None if not before or after is None else 100 * after / before,
            longer=True,
        ),
    ]


# -- clients


class Client:
    """A connection, on which one request after another is sent."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader, self.writer = reader, writer

    async def complete(self, wish: dict[str, Any]) -> AsyncIterator[str]:
        """The pieces of a text as they come."""
        body = json.dumps({**wish, "stream": True}).encode()
        head = f"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nContent-Length: {len(body)}"
        self.writer.write(f"{head}\r\n\r\n".encode() + body)
        status = await self.reader.readline()
        if b" 200 " not in status:
            raise RuntimeError(f"makemoe serve answers {status.decode().strip()}")
        async for line in self.reader:
            if line.startswith(b"data: {"):
                yield json.loads(line[6:])["choices"][0]["text"]
            elif line == b"0\r\n":  # the last chunk
                await self.reader.readline()
                return


@asynccontextmanager
async def connected(server: Address) -> AsyncIterator[Client]:
    """A client, while the block runs."""
    reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
    try:
        yield Client(reader, writer)
    finally:
        writer.close()


class Round(NamedTuple):
    """What clients at once got, and how long it took."""

    texts: list[str]
    seconds: float


async def at_once(server: Address, wishes: Sequence[dict[str, Any]]) -> Round:
    """A client per text, all of them at once."""

    async def one(wish: dict[str, Any]) -> str:
        async with connected(server) as client:
            return "".join([piece async for piece in client.complete(wish)])

    begin = time.perf_counter()
    texts = await asyncio.gather(*map(one, wishes))
    return Round(list(texts), time.perf_counter() - begin)


class First(NamedTuple):
    """Seconds to first characters, and of a step meanwhile."""

    waits_s: list[float]
    step_s: float


async def first_characters(server: Address, load: Load) -> First:
    """Measure how soon a text begins while all other clients get theirs."""
    counts = [0] * (load.clients - 1)

    async def another(number: int) -> None:
        async with connected(server) as client:
            while True:
                async for piece in client.complete({"max_tokens": 1000, "seed": number}):
                    counts[number] += len(piece)

    others = [asyncio.create_task(another(number)) for number in range(load.clients - 1)]
    waits_s = []
    try:
        while not all(counts):
            await asyncio.sleep(0.01)
        begin, before = time.perf_counter(), sum(counts)
        async with connected(server) as client:
            for number in range(load.probes):
                asked = time.perf_counter()
                wish = {"prompt": PROMPTS[0], "max_tokens": 3, "seed": number}
                async with aclosing(client.complete(wish)) as pieces:
                    await anext(aiter(pieces))
                    waits_s.append(time.perf_counter() - asked)
                    async for _ in pieces:
                        pass
                await asyncio.sleep(0.013)  # at another moment of a step
        steps = (sum(counts) - before) / len(counts)
        return First(waits_s, (time.perf_counter() - begin) / max(1, steps))
    finally:
        for task in others:
            task.cancel()
        await asyncio.gather(*others, return_exceptions=True)


async def memory(server: Address, load: Load) -> tuple[float | None, float | None]:
    """MB of the server after a tenth of the requests, and after all."""
    numbers = iter(range(load.requests))

    async def one(until: int) -> None:
        async with connected(server) as client:
            for number in numbers:
                wish = {"prompt": PROMPTS[number % len(PROMPTS)], "max_tokens": 1 + number % 5}
                async for _ in client.complete({**wish, "seed": number}):
                    pass
                if number >= until:
                    return

    async def all_until(until: int) -> float | None:
        await asyncio.gather(*(one(until) for _ in range(load.clients)))
        return resident_mb("VmRSS", server.pid)

    return await all_until(load.requests // 10), await all_until(load.requests)
