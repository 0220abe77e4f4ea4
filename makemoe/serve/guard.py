"""Decides who may ask: checks every request's host, origin and token, and adds security headers.

A page of a stranger in the user's browser can send requests to this server. Its origin gives it
away, which browsers send along. By DNS rebinding, its host name may lead here, so that its origin
seems to be ours: then the host name gives it away.
"""

import hmac
import ipaddress
import os
import socket
import sys
import traceback
from collections.abc import Sequence

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from makemoe.errors import UsageError
from makemoe.serve.refusals import Refusal
from makemoe.serve.sending import refuse, send_json

POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src 'self'; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
"""The page gets nothing from another host, and runs no script but its own files."""

SECURITY = {
    "content-security-policy": POLICY,
    "cross-origin-opener-policy": "same-origin",
    "cross-origin-resource-policy": "same-origin",
    "referrer-policy": "no-referrer",
    "x-content-type-options": "nosniff",
    "cache-control": "no-store",
}

PREFLIGHT = {
    "access-control-allow-methods": "GET, POST",
    "access-control-allow-headers": "authorization, content-type",
    "access-control-max-age": "600",
}

OPEN = ("/", "/page/", "/health")
"""Paths that need no token: the page itself, which asks for it, and whether the server is alive."""


class Guard:
    """Wraps the application.

    Args:
        app: the application, which raises `Refusal`.
        hosts: names under which the server may be reached, beside those of this machine and
            addresses.
        origins: other origins whose pages may ask.
        token: what clients have to know; None: nothing.
    """

    def __init__(
        self,
        app: ASGIApp,
        hosts: Sequence[str] = (),
        origins: Sequence[str] = (),
        token: str | None = None,
    ) -> None:
        self.app, self.token = app, token
        own = ("localhost", socket.gethostname())
        self.hosts = {name.lower() for name in (*own, *hosts)}
        self.origins = {checked_origin(origin) for origin in origins}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request, or refuse it."""
        if scope["type"] != "http":
            return
        headers = dict(scope["headers"])
        origin = headers.get(b"origin", b"").decode("latin-1")
        more = dict(SECURITY)
        if origin in self.origins:
            more |= {"access-control-allow-origin": origin, "vary": "origin"}
            more |= {"cross-origin-resource-policy": "cross-origin"}
        added = [(name.encode(), value.encode()) for name, value in more.items()]
        has_begun = False

        async def guarded(message: Message) -> None:
            nonlocal has_begun
            if message["type"] == "http.response.start":
                has_begun = True
                message = {**message, "headers": [*message["headers"], *added]}
            await send(message)

        try:
            self.check(scope, headers, origin)
            if scope["method"] == "OPTIONS" and origin in self.origins:
                await send_json(guarded, 200, {}, PREFLIGHT)
                return
            self.check_token(scope["path"], headers)
            await self.app(scope, receive, guarded)
        except Refusal as refusal:
            await refuse(refusal, receive, guarded)
        except ConnectionError:
            return  # the client has hung up
        except Exception as error:
            tell_bug(error)
            if has_begun:
                raise
            bug = Refusal(500, f"this is a bug in makemoe: {type(error).__name__}")
            await refuse(bug, receive, guarded)

    def check(self, scope: Scope, headers: dict[bytes, bytes], origin: str) -> None:
        """Refuse a request that a stranger's page may have sent."""
        host = headers.get(b"host", b"").decode("latin-1").lower()
        name = host_name(host)
        if not is_address(name) and name not in self.hosts:
            raise Refusal(403, f"host {name[:80]!r} is not known here: name it with --allow_host")
        if (
            origin
            and origin not in self.origins
            and origin.lower() != f"{scope['scheme']}://{host}"
        ):
            raise Refusal(
                403, f"origin {origin[:80]!r} may not ask here: name it with --allow_origin"
            )

    def check_token(self, path: str, headers: dict[bytes, bytes]) -> None:
        """Refuse a request without the token."""
        if self.token is None or path in OPEN or path.startswith("/page/"):
            return
        kind, _, given = headers.get(b"authorization", b"").partition(b" ")
        # In constant time: how long it takes says nothing about the token.
        if not hmac.compare_digest(given.strip(), self.token.encode()) or kind.lower() != b"bearer":
            raise Refusal(
                401,
                "the token is missing or wrong: send it as Authorization: Bearer TOKEN",
                headers={"www-authenticate": "Bearer"},
            )


def checked_origin(origin: str) -> str:
    """An origin as browsers write it; UsageError if it is none."""
    scheme, slashes, host = origin.lower().partition("://")
    if scheme not in ("http", "https") or not slashes or not host or "/" in host:
        raise UsageError(f"--allow_origin {origin}: use an origin, such as https://example.com")
    return f"{scheme}://{host}"


def host_name(host: str) -> str:
    """The name in a Host header, without its port."""
    if host.startswith("["):
        return host[1:].partition("]")[0]
    return host.partition(":")[0]


def is_address(name: str) -> bool:
    """Whether a name is an IP address, to which no name server can lead anyone."""
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return False
    return True


def tell_bug(error: Exception) -> None:
    """Say on standard error that there is one: without its message, which may hold a text."""
    if os.environ.get("MAKEMOE_DEBUG", "0") not in ("", "0"):
        traceback.print_exception(error)
    place = traceback.extract_tb(error.__traceback__)[-1]
    where = f"{os.path.basename(place.filename)}:{place.lineno}"
    print(f"makemoe: this is a bug: {type(error).__name__} at {where}", file=sys.stderr, flush=True)
