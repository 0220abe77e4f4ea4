"""A text that grows: from a request's tokens to the pieces that its reader takes."""

import asyncio
from collections import deque
from collections.abc import Sequence
from typing import Generic, NamedTuple, TypeVar

from makemoe.data.tokenizer import Tokenizer
from makemoe.errors import MakeMoEError
from makemoe.sampling import Choice, Growing, InOrder, Sample
from makemoe.serve.batch import Score, Stream, TokenRead
from makemoe.serve.drawing import Drawing

Told = TypeVar("Told")
"""What is told of a token."""

FLUSH_S = 0.05
"""Seconds between two pieces: a reader of many texts has little time for each."""


class Wish(NamedTuple):
    """A text that somebody wants.

    Attributes:
        prompt: its beginning; empty: the model begins.
        max_tokens: how many tokens to add.
        temperature: see `Drawing`.
        top_k: see `Drawing`.
        top_p: see `Drawing`.
        seed: of its random numbers.
        stop: the text ends before any of these.
        echo: whether the text begins with the prompt.
        experts: whether to tell what the model did with each token.
        logprobs: with each token, tell how likely it was, and so many others; None: do not.
    """

    prompt: str = ""
    max_tokens: int = 16
    temperature: float = 1.0
    top_k: int | None = None
    top_p: float | None = None
    seed: int = 1337
    stop: tuple[str, ...] = ()
    echo: bool = False
    experts: bool = False
    logprobs: int | None = None


class Character(NamedTuple):
    """A token of a text, as it is shown: usually a character.

    Attributes:
        text: what it completes; empty if it ends inside its first character.
        layers: the experts of each layer; None for a dense one; empty for the part of a prompt that
            lies before the context and is never read, all of which is given as one token.
        following: the most likely next tokens, and their probabilities at temperature 1.
    """

    text: str
    layers: list[Choice | None]
    following: list[tuple[int, float]]


class Piece(NamedTuple):
    """What has come since the piece before.

    Attributes:
        text: more of the text.
        characters: the tokens of this text, if the wish was for their experts.
        scores: the tokens of this text with their scores, if the wish was for these; those of a
            prompt that the model does not read have none.
        finish: None: more will come; `length`: it has all its tokens; `stop`: it has ended before a
            stop text, or before the end-of-text token.
    """

    text: str
    characters: list[Character]
    scores: list[tuple[str, Score | None]]
    finish: str | None


class Text:
    """A wish and what has been sampled of it. All of it lives in the thread of the event loop.

    Args:
        wish: what is wanted.
        ids: those of its prompt.
        tokenizer: of the model.
        block_size: of the model.

    Attributes:
        stream: its tokens in the batch.
        prompt_tokens: how many tokens the prompt has.
        tokens: how many were added.
        finish: see `Piece`; the reason why the text grows no more.
        is_complete: whether it has ended, and all is there that is told about it.
        error: why there will be no more of it.
    """

    def __init__(self, wish: Wish, ids: list[int], tokenizer: Tokenizer, block_size: int) -> None:
        self.wish, self.end_of_text = wish, tokenizer.end_of_text
        sample = Sample(wish.prompt != "", ids, wish.seed)
        drawing = Drawing(wish.seed, wish.temperature, wish.top_k, wish.top_p)
        context, is_scored = ids[-block_size:], wish.logprobs is not None
        is_echoed = wish.echo and sample.is_shown
        self.stream = Stream(
            *(context, wish.max_tokens, drawing, wish.experts),
            *(wish.logprobs, is_echoed and is_scored),
        )
        self.growing = Growing(sample, tokenizer.decoder(), wish.max_tokens)
        self.read_of, self.score_of = Shown[TokenRead](), Shown[Score | None]()
        self.told: list[Shown[TokenRead] | Shown[Score | None]] = []
        self.told += [self.read_of] * wish.experts + [self.score_of] * is_scored
        if is_echoed and self.told:
            # Token by token as far as the model reads: a long prompt would take long.
            unread = [ids[:-block_size]] if len(ids) > block_size else []
            beginnings = self.growing.prompt_in_parts([*unread, *([id] for id in context)])
            for told in self.told:
                told.texts += beginnings
            if unread:
                self.read_of.tell([TokenRead([], [])])
                self.score_of.tell([None])
        else:
            beginnings = [self.growing.prompt()]
            self.read_of.hidden = len(context)
        self.release = Released()
        self.writer = InOrder(["".join(beginnings) * wish.echo], wish.stop, self.release)
        self.prompt_tokens = len(ids) if sample.is_shown else 0
        self.tokens = 0
        self.finish: str | None = None
        self.is_complete = False
        self.error: MakeMoEError | None = None
        self.news = asyncio.Event()
        self.due = 0.0

    def read(self, tokens: Sequence[TokenRead]) -> None:
        """What the model did with the next tokens, the last of which comes after the text's end."""
        self.read_of.tell(tokens)
        self.is_complete = self.finish is not None

    def score(self, scores: Sequence[Score]) -> None:
        """How likely the next tokens are."""
        self.score_of.tell(scores)

    def add(self, token: int) -> None:
        """Add a drawn token."""
        self.tokens += 1
        if token == self.end_of_text:
            rest = self.growing.end()
            if rest:
                self.show(rest)
            self.writer.finish(0, rest)
            self.end("stop")
            return
        text = self.growing.add(token)
        self.show(text)
        if self.writer.add(0, text):
            self.end("stop")
        elif not self.growing.to_come:
            self.writer.close()
            self.end("length")

    def show(self, text: str) -> None:
        """The text that the next token completes."""
        for told in self.told:
            told.texts.append(text)

    def end(self, finish: str) -> None:
        """Let it grow no more."""
        self.finish, self.is_complete = finish, not self.wish.experts
        self.stream.end()

    def fail(self, error: MakeMoEError) -> None:
        """End it with an error, which its reader gets."""
        self.error, self.stream.is_gone = error, True
        self.news.set()

    def notify(self, now: float) -> None:
        """Wake the reader, if it is time.

        Args:
            now: seconds of a clock that never goes back.
        """
        if now >= self.due or self.is_complete:
            self.due = now + FLUSH_S
            self.news.set()

    async def next(self) -> Piece:
        """Wait for the next piece; raise the error that has ended the text."""
        await self.news.wait()
        self.news.clear()
        if self.error is not None:
            raise self.error
        text = self.release.take()
        is_over = self.is_complete
        read = self.read_of.take(len(text), is_over)
        characters = [Character(part, *told) for part, told in read]
        scores = self.score_of.take(len(text), is_over)
        return Piece(text, characters, scores, self.finish if is_over else None)


class Released:
    """Takes the text that no stop text can cut any more."""

    def __init__(self) -> None:
        self.parts: list[str] = []

    def begin_text(self) -> None:
        """There is only one text."""

    def write(self, text: str) -> None:
        """Get more of it."""
        self.parts.append(text)

    def take(self) -> str:
        """What has come since this was last called."""
        text = "".join(self.parts)
        self.parts.clear()
        return text


class Shown(Generic[Told]):
    """Matches the tokens of a text with what is told of them, in order.

    Attributes:
        texts: the text that each token completes.
        hidden: of so many tokens, what is told is left out: those of a prompt that is not shown.
    """

    def __init__(self) -> None:
        self.texts: deque[str] = deque()
        self.hidden = 0
        self._told: deque[Told] = deque()
        self._released = 0

    def tell(self, told: Sequence[Told]) -> None:
        """What is told of the next tokens."""
        hidden = min(self.hidden, len(told))
        self.hidden -= hidden
        self._told += told[hidden:]

    def take(self, released: int, is_over: bool) -> list[tuple[str, Told]]:
        """The tokens whose text is passed on; at the end, also one that a stop text cuts.

        Args:
            released: how many more characters of the text are passed on.
            is_over: whether these are the last.
        """
        self._released += released
        taken = []
        while self.texts and self._told:
            text = self.texts[0]
            if len(text) > self._released:
                if not is_over or not self._released:
                    break
                text = text[: self._released]
            self.texts.popleft()
            self._released -= len(text)
            taken.append((text, self._told.popleft()))
        return taken
