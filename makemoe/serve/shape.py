"""Answers in the shape of the OpenAI API: text completions, whole or in chunks."""

import json
import secrets
import time
from collections.abc import Callable, Sequence
from itertools import accumulate
from typing import Any

from makemoe.serve.batch import Score
from makemoe.serve.fields import Asked
from makemoe.serve.text import Character, Piece, Text

Symbol = Callable[[int], str]
"""The text of one token."""

DONE = b"data: [DONE]\n\n"
DIGITS = 5
"""Of a probability, or of its logarithm."""


class Completion:
    """The answer to a request.

    Args:
        model: name of the model.
        asked: the request.
        symbol: shows a token that may come next.
    """

    def __init__(self, model: str, asked: Asked, symbol: Symbol) -> None:
        self.asked, self.symbol = asked, symbol
        self.offsets = [0] * len(asked.wishes)
        self.head: dict[str, Any] = {
            "id": f"cmpl-{secrets.token_hex(12)}",
            "object": "text_completion",
            "created": int(time.time()),
            "model": model,
            "seed": asked.seed,
        }

    def whole(self, texts: Sequence[Text], pieces: Sequence[Piece]) -> dict[str, Any]:
        """All of it, with one piece per text."""
        choices = [self.choice(index, piece) for index, piece in enumerate(pieces)]
        return {**self.head, "choices": choices, "usage": self.usage(texts)}

    def chunk(self, index: int, piece: Piece) -> bytes:
        """A piece of a text."""
        return event({**self.head, "choices": [self.choice(index, piece)]})

    def counted(self, texts: Sequence[Text]) -> bytes:
        """The chunk with the numbers of tokens."""
        return event({**self.head, "choices": [], "usage": self.usage(texts)})

    def usage(self, texts: Sequence[Text]) -> dict[str, int]:
        """The numbers of tokens; a prompt counts once, however many texts it has."""
        prompt = sum(text.prompt_tokens for text in texts[:: self.asked.n])
        new = sum(text.tokens for text in texts)
        return {"prompt_tokens": prompt, "completion_tokens": new, "total_tokens": prompt + new}

    def choice(self, index: int, piece: Piece) -> dict[str, Any]:
        """A text, or a piece of it."""
        wish = self.asked.wishes[index]
        choice: dict[str, Any] = {
            "index": index,
            "text": piece.text,
            "logprobs": None if wish.logprobs is None else self.log_probs(index, piece),
            "finish_reason": piece.finish,
        }
        if wish.experts:
            choice["experts"] = list(map(self.character, piece.characters))
        return choice

    def log_probs(self, index: int, piece: Piece) -> dict[str, list[Any]]:
        """How likely the tokens of a piece were; their places are in the text so far."""
        texts = [text for text, _ in piece.scores]
        places = list(accumulate(map(len, texts), initial=self.offsets[index]))
        self.offsets[index] = places.pop()
        return {
            "tokens": texts,
            "token_logprobs": [
                None if score is None or score.log_prob is None else round(score.log_prob, DIGITS)
                for _, score in piece.scores
            ],
            "top_logprobs": [self.likeliest(score) for _, score in piece.scores],
            "text_offset": places,
        }

    def likeliest(self, score: Score | None) -> dict[str, float] | None:
        """The most likely tokens in the place of one, and itself."""
        if score is None or score.log_prob is None:
            return None
        pairs = [*score.likeliest, (score.token, score.log_prob)]
        return {self.symbol(token): round(log_prob, DIGITS) for token, log_prob in pairs}

    def character(self, character: Character) -> dict[str, Any]:
        """What the model did with a token."""
        return {
            "text": character.text,
            "layers": [None if layer is None else layer.as_json() for layer in character.layers],
            "following": [
                {"text": self.symbol(token), "probability": round(probability, DIGITS)}
                for token, probability in character.following
            ],
        }


def event(data: dict[str, Any]) -> bytes:
    """A server-sent event."""
    return b"data: " + json.dumps(data).encode() + b"\n\n"
