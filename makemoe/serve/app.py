"""The application: which path does what."""

from collections.abc import Awaitable, Callable
from importlib.resources import files
from typing import Any

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route
from starlette.types import Receive, Scope, Send

from makemoe.colours import ink_on, palette, rgb
from makemoe.serve.answers import Answer, Log
from makemoe.serve.engine import Engine
from makemoe.serve.fields import asked
from makemoe.serve.refusals import Refusal
from makemoe.serve.sending import read_body, refuse

KINDS = {
    "html": "text/html; charset=utf-8",
    "css": "text/css; charset=utf-8",
    "js": "text/javascript; charset=utf-8",
    "svg": "image/svg+xml",
}
"""What the files of the page are, by the end of their names."""


class Served:
    """A model and what is told about it.

    Args:
        engine: samples from it.
        name: of the model.
        created: when it was saved, in seconds since 1970.
        log: what to write about requests.
    """

    def __init__(self, engine: Engine, name: str, created: int, log: Log = "none") -> None:
        self.engine, self.name, self.created, self.log = engine, name, created, log
        self.symbol = Symbols(engine.tokenizer.symbol)

    def as_json(self) -> dict[str, Any]:
        """As in the OpenAI API."""
        return {
            "id": self.name,
            "object": "model",
            "created": self.created,
            "owned_by": "makemoe",
        }

    def about(self) -> dict[str, Any]:
        """What the page needs to know."""
        net = self.engine.net
        counts = net.count_parameters()
        return {
            "model": self.name,
            "layers": len(net.blocks),
            "routed": list(net.routers()),
            "experts": net.num_experts,
            "top_k": net.top_k,
            "parameters": counts.total,
            "active": counts.active,
            "block_size": net.block_size,
            "colours": [hex_colour(colour) for colour in palette(net.num_experts)],
            "inks": [hex_colour(ink_on(colour)) for colour in palette(net.num_experts)],
            "max_tokens": self.engine.limits.max_tokens,
        }


class Symbols:
    """The text of a token, worked out once."""

    def __init__(self, symbol: Callable[[int], str]) -> None:
        self.symbol = symbol
        self.known: dict[int, str] = {}

    def __call__(self, token: int) -> str:
        """The text."""
        if token not in self.known:
            self.known[token] = self.symbol(token)
        return self.known[token]


def hex_colour(colour: int) -> str:
    """A colour of the terminal's cube, as CSS writes it."""
    return "#{:02x}{:02x}{:02x}".format(*rgb(colour))


class Completions:
    """`POST /v1/completions`."""

    def __init__(self, served: Served) -> None:
        self.served = served

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer it; raise Refusal if that cannot be."""
        served = self.served
        limits = served.engine.limits
        body = await read_body(dict(scope["headers"]), receive, limits.body)
        request = asked(body, limits, served.engine.net.block_size)
        if request.model not in (None, served.name):
            raise Refusal(404, f"there is no such model: this server has {served.name!r}", "model")
        answer = Answer(served.engine, served.name, request, served.symbol, served.log)
        await answer(receive, send)


def application(served: Served) -> Starlette:
    """The routes. Everything that is refused is raised as `Refusal`."""

    async def models(request: Request) -> Response:
        return JSONResponse({"object": "list", "data": [served.as_json()]})

    async def model(request: Request) -> Response:
        if request.path_params["name"] != served.name:
            raise Refusal(404, f"there is no such model: this server has {served.name!r}")
        return JSONResponse(served.as_json())

    async def health(request: Request) -> Response:
        engine = served.engine
        if engine.is_stopping:
            raise Refusal(503, "the server is being stopped")
        return JSONResponse(
            {"status": "ok", "running": len(engine.batch), "waiting": len(engine.waiting)}
        )

    async def about(request: Request) -> Response:
        return JSONResponse(served.about())

    return Starlette(
        routes=[
            Route("/v1/completions", Completions(served), methods=["POST"]),
            Route("/v1/models", models),
            Route("/v1/models/{name:path}", model),
            Route("/health", health),
            Route("/about", about),
            Route("/", page("index.html")),
            *(Route(f"/page/{name}", page(name)) for name in page_files()),
        ],
        exception_handlers=dict.fromkeys((Refusal, HTTPException, Exception), refused),
    )


class Refused(Response):
    """An answer in JSON that says why there is no other."""

    def __init__(self, refusal: Refusal) -> None:
        super().__init__(status_code=refusal.status)
        self.refusal = refusal

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send it."""
        await refuse(self.refusal, receive, send)


async def refused(request: Request, error: Exception) -> Response:
    """The answer to a request that ended in an error."""
    if isinstance(error, Refusal):
        return Refused(error)
    if isinstance(error, HTTPException):  # of Starlette
        known = {404: f"there is nothing at {request.url.path[:80]}", 405: "use another method"}
        what = known.get(error.status_code, error.detail)
        return Refused(Refusal(error.status_code, what, headers=dict(error.headers or {})))
    return Refused(Refusal(500, f"this is a bug in makemoe: {type(error).__name__}"))


def page_files() -> list[str]:
    """The names of the page's files."""
    return sorted(
        file.name
        for file in files("makemoe.serve").joinpath("page").iterdir()
        if file.name.rpartition(".")[2] in KINDS
    )


def page(name: str) -> Callable[[Request], Awaitable[Response]]:
    """Serves a file of the page."""
    content = files("makemoe.serve").joinpath("page", name).read_bytes()

    async def send(request: Request) -> Response:
        return Response(content, media_type=KINDS[name.rpartition(".")[2]])

    return send
