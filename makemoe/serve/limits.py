"""How much a client may ask for, and what it is told if it asks for more."""

from dataclasses import dataclass

from makemoe.errors import MakeMoEError
from makemoe.sizes import check_sizes


@dataclass(frozen=True)
class Limits:
    """What the server takes.

    Args:
        rows: texts that are sampled together.
        waiting: texts that wait for a row; more are refused.
        max_tokens: tokens that a request may add to each text.
        prompt: characters of a prompt.
        seconds: time from a request's arrival to its last byte.
        texts: texts of one request.
        told: tokens that all texts of a request may be asked for with `experts` or `logprobs`, if
            they are sent at once: until such an answer is written, all other texts stand still.
        stops: stop texts of one request.
        stop: characters of each of them.

    Raises:
        UsageError: for one that is not positive.
    """

    rows: int = 64
    waiting: int = 256
    max_tokens: int = 4096
    prompt: int = 32_768
    seconds: int = 300
    texts: int = 64
    told: int = 8_192
    stops: int = 16
    stop: int = 256

    def __post_init__(self) -> None:
        """Check them."""
        check_sizes(vars(self))

    @property
    def body(self) -> int:
        """Bytes of a request: in JSON, a character may take 12, as two escapes."""
        return (1 << 16) + 12 * (self.prompt + self.stops * self.stop)


class BusyError(MakeMoEError):
    """There is no place for another text now; later there may be."""


class TooLateError(MakeMoEError):
    """The time of a request was over before its text was complete."""


class StoppingError(MakeMoEError):
    """The server is being stopped."""


class BatchError(MakeMoEError):
    """A step of the batch failed; all texts in it are lost."""
