"""What a client is told when it does not get what it asked for: a status, and an error in JSON."""

from typing import Any

from makemoe.errors import DataError, MakeMoEError, NotFiniteError
from makemoe.serve.limits import BatchError, BusyError, StoppingError, TooLateError

KINDS = {
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    500: "server_error",
    503: "overloaded_error",
}
"""The `type` of an error; of any other status, `invalid_request_error`."""

RETRY_S = 1
"""Seconds after which a client may try again."""


class Refusal(Exception):
    """A request that is not answered.

    Args:
        status: of the answer.
        message: why, and how to fix it.
        param: the field of the request that is wrong.
        headers: more headers of the answer.
    """

    def __init__(
        self,
        status: int,
        message: str,
        param: str | None = None,
        headers: dict[str, str] | None = None,
    ) -> None:
        super().__init__(message)
        self.status, self.message, self.param = status, message, param
        self.headers = headers or {}

    def as_json(self) -> dict[str, Any]:
        """In the shape of the OpenAI API."""
        kind = KINDS.get(self.status, "invalid_request_error")
        return {"error": {"message": self.message, "type": kind, "param": self.param, "code": None}}


STATUS: dict[type[MakeMoEError], int] = {
    DataError: 400,
    BusyError: 503,
    TooLateError: 503,
    StoppingError: 503,
    BatchError: 500,
    NotFiniteError: 500,
}


def refusal_of(error: MakeMoEError) -> Refusal:
    """The refusal that an error of the engine means."""
    status = next(STATUS[kind] for kind in type(error).__mro__ if kind in STATUS)
    param = "prompt" if isinstance(error, DataError) else None
    again = {"retry-after": str(RETRY_S)} if status == 503 else {}
    return Refusal(status, str(error), param, again)
