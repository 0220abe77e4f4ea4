"""The engine: gives texts places in the batch, and passes on what is sampled.

Everything here happens in the event loop, except `Batch.step`, which a thread computes. Between two
steps nothing is computed, so that neither needs a lock. A text costs nobody anything while its
reader is slow: it goes on to its end, whose length is limited, and frees its row.
"""

import asyncio
import sys
import time
from collections import deque
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

from makemoe.data.tokenizer import Tokenizer
from makemoe.errors import DataError, MakeMoEError, NotFiniteError
from makemoe.model.transformer import MoETransformer
from makemoe.serve.batch import Batch, Step, Stream
from makemoe.serve.limits import BatchError, BusyError, Limits, StoppingError, TooLateError
from makemoe.serve.text import Text, Wish

TALK_S = 0.002
"""How long, at most, the event loop gets between two steps to take and send what has come."""


class Engine:
    """Samples texts together, as they come.

    Args:
        net: in evaluation mode and in float32.
        tokenizer: the model's.
        limits: of what it takes.

    Attributes:
        steps: number of steps so far.
        drawn: number of tokens so far.
    """

    def __init__(self, net: MoETransformer, tokenizer: Tokenizer, limits: Limits) -> None:
        self.net, self.tokenizer, self.limits = net, tokenizer, limits
        self.batch = Batch(net, limits.rows)
        self.waiting: deque[Text] = deque()
        self.running: dict[Stream, Text] = {}
        self.deadlines: dict[Text, float] = {}
        self.work = asyncio.Event()
        self.is_stopping = False
        self.steps = self.drawn = 0

    def submit(self, wishes: Sequence[Wish]) -> list[Text]:
        """Take up the texts of a request, all or none.

        Raises:
            DataError: for a prompt with characters that the tokenizer does not know.
            BusyError: if there is no place for them.
        """
        if self.is_stopping:
            raise StoppingError("the server is being stopped")
        free = self.batch.size - len(self.batch)
        if len(self.waiting) + len(wishes) > self.limits.waiting + free:
            raise BusyError(f"{len(self.waiting)} texts are waiting already: try again later")
        ids = {prompt: self.ids_of(prompt) for prompt in {wish.prompt for wish in wishes}}
        size = self.net.block_size
        texts = [Text(wish, ids[wish.prompt], self.tokenizer, size) for wish in wishes]
        deadline = time.monotonic() + self.limits.seconds
        for text in texts:
            self.deadlines[text] = deadline
        self.waiting += texts
        self.work.set()
        return texts

    def ids_of(self, prompt: str) -> list[int]:
        """The tokens of a prompt; DataError if there are none."""
        ids = self.tokenizer.prompt(prompt)
        if not ids:
            kind = type(self.tokenizer).__name__
            raise DataError(f"{kind} makes no token of the prompt: use another")
        return ids

    def forget(self, texts: Sequence[Text]) -> None:
        """Nobody reads these texts any more."""
        for text in texts:
            text.stream.is_gone = True
            self.deadlines.pop(text, None)
        self.work.set()

    async def run(self) -> None:
        """Sample until this is cancelled."""
        with ThreadPoolExecutor(1, "sampling") as pool:
            while True:
                self.admit()
                if not self.running:
                    self.work.clear()
                    await self.work.wait()
                    continue
                try:
                    step = await asyncio.get_running_loop().run_in_executor(pool, self.batch.step)
                except Exception as error:
                    self.recover(error)
                    continue
                self.pass_on(step)
                await self.talk()

    async def talk(self) -> None:
        """Let readers take what they were told of: the next step would compete with them."""
        end = time.monotonic() + TALK_S
        for _ in range(3):
            await asyncio.sleep(0)
            if time.monotonic() > end:
                return

    def admit(self) -> None:
        """Fail what is too late, and give free rows to those that wait, in their order."""
        now = time.monotonic()
        for text in [text for text, deadline in self.deadlines.items() if deadline < now]:
            self.fail(text, TooLateError(f"not complete after {self.limits.seconds} seconds"))
        for stream in [stream for stream in self.running if stream.is_gone]:
            del self.running[stream]
        self.waiting = deque(text for text in self.waiting if not text.stream.is_gone)
        self.batch.leave()
        while self.waiting and len(self.batch) < self.batch.size:
            text = self.waiting.popleft()
            self.running[text.stream] = text
            self.batch.join(text.stream)

    def pass_on(self, step: Step) -> None:
        """Give texts what a step did, and wake their readers."""
        self.steps, self.drawn = self.steps + 1, self.drawn + len(step.drawn)
        now = time.monotonic()
        changed: dict[Text, None] = {}
        for stream, tokens in step.read:
            if (text := self.running.get(stream)) is not None:
                text.read(tokens)
                changed[text] = None
        for stream, scores in step.scored:
            if (text := self.running.get(stream)) is not None:
                text.score(scores)
        for stream, token in step.drawn:
            if (text := self.running.get(stream)) is not None:
                text.add(token)
                changed[text] = None
        for stream in step.failed:
            if (text := self.running.get(stream)) is not None:
                why = "the model's logits are not finite (NaN or infinite)"
                self.fail(text, NotFiniteError(why))
        for text in changed:
            text.notify(now)
            if text.is_complete:
                self.running.pop(text.stream, None)
                self.deadlines.pop(text, None)

    def fail(self, text: Text, error: MakeMoEError) -> None:
        """End a text with an error."""
        text.fail(error)
        self.running.pop(text.stream, None)
        self.deadlines.pop(text, None)

    def recover(self, error: Exception) -> None:
        """After a step that failed: end its texts, and begin a new batch."""
        # Not the message, which may hold a part of a text.
        print(f"makemoe: a step failed: {type(error).__name__}", file=sys.stderr, flush=True)
        for text in list(self.running.values()):
            self.fail(text, BatchError(f"sampling failed: {type(error).__name__}"))
        self.batch = Batch(self.net, self.limits.rows)

    def stop(self) -> None:
        """End all texts, and take no more."""
        self.is_stopping = True
        for text in [*self.running.values(), *self.waiting]:
            self.fail(text, StoppingError("the server is being stopped"))
        self.waiting.clear()
        self.work.set()
