"""Who may ask, and what a browser is told of the answers."""

import re
import time
from collections.abc import Iterator
from importlib.resources import files

import pytest
from serving import Live, live, small

from makemoe.errors import UsageError
from makemoe.serve.guard import checked_origin, host_name

TOKEN = "a-long-token"


@pytest.fixture(scope="module")
def tiny() -> Iterator[Live]:
    with live(small(), hosts=["makemoe.lan"], origins=["https://friend.example"]) as server:
        yield server


@pytest.mark.parametrize(
    ("host", "status"),
    [
        ("127.0.0.1:{port}", 200),
        ("localhost:{port}", 200),
        ("LOCALHOST", 200),
        ("[::1]:{port}", 200),
        ("192.168.1.7", 200),
        ("makemoe.lan:99", 200),
        ("evil.example", 403),
        ("evil.example:{port}", 403),
        ("localhost.evil.example", 403),
        ("127.0.0.1.evil.example", 403),
        ("[::1].evil.example", 200),  # what browsers never send
        ("", 403),
    ],
)
def test_a_host_name_that_may_lead_here_by_rebinding_is_refused(
    tiny: Live, host: str, status: int
) -> None:
    reply = tiny.ask("GET", "/v1/models", headers={"Host": host.format(port=tiny.port)})
    assert reply.status == status
    if status == 403:
        assert "name it with --allow_host" in reply.error


@pytest.mark.parametrize("method", ["GET", "POST", "OPTIONS"])
@pytest.mark.parametrize(
    ("origin", "is_allowed"),
    [
        ("http://127.0.0.1:{port}", True),
        ("https://friend.example", True),
        ("https://127.0.0.1:{port}", False),
        ("http://127.0.0.1:1", False),
        ("http://localhost:{port}", False),
        ("http://friend.example", False),
        ("https://friend.example.evil.example", False),
        ("http://evil.example", False),
        ("null", False),
    ],
)
def test_a_page_of_another_origin_may_not_ask(
    tiny: Live, method: str, origin: str, is_allowed: bool
) -> None:
    path = "/v1/completions" if method == "POST" else "/v1/models"
    body = {"max_tokens": 1} if method == "POST" else None
    origin = origin.format(port=tiny.port)
    reply = tiny.ask(method, path, body, {"Origin": origin})
    assert (reply.status == 403) is not is_allowed
    is_friend = origin == "https://friend.example"
    assert reply.headers.get("access-control-allow-origin") == (origin if is_friend else None)
    if is_friend and method == "OPTIONS":
        assert "POST" in reply.headers["access-control-allow-methods"]
        assert "authorization" in reply.headers["access-control-allow-headers"]


def test_refused_requests_are_not_sampled(tiny: Live) -> None:
    before = tiny.engine.drawn
    for headers in ({"Origin": "http://evil.example"}, {"Host": "evil.example"}):
        assert tiny.ask("POST", "/v1/completions", {}, headers).status == 403
    assert tiny.engine.drawn == before


def test_the_token_is_needed_where_texts_are_sampled() -> None:
    with live(small(), token=TOKEN) as server:
        for given in (None, "", TOKEN, "Bearer", "Bearer x", f"Basic {TOKEN}", f"Bearer {TOKEN}x"):
            headers = {} if given is None else {"Authorization": given}
            for path in ("/v1/models", "/about", "/v1/completions"):
                method = "POST" if path == "/v1/completions" else "GET"
                reply = server.ask(method, path, headers=headers)
                assert reply.status == 401, given
                assert "Authorization: Bearer TOKEN" in reply.error
                assert reply.headers["www-authenticate"] == "Bearer"
        for path in ("/", "/health", "/page/page.css"):
            assert server.ask("GET", path).status == 200
        for kind in ("Bearer", "bearer"):
            headers = {"Authorization": f"{kind} {TOKEN}"}
            assert server.ask("GET", "/about", headers=headers).status == 200
            reply = server.ask("POST", "/v1/completions", {"max_tokens": 3}, headers)
            assert reply.status == 200


def test_every_answer_forbids_what_the_page_does_not_need(tiny: Live) -> None:
    for path in ("/", "/page/page.js", "/about", "/nothing"):
        headers = tiny.ask("GET", path).headers
        policy = dict(part.split(" ", 1) for part in headers["content-security-policy"].split("; "))
        assert policy["default-src"] == "'none'"
        assert {policy[f"{kind}-src"] for kind in ("script", "style", "connect", "img")} == {
            "'self'"
        }
        assert policy["frame-ancestors"] == "'none'"
        assert headers["x-content-type-options"] == "nosniff"
        assert headers["referrer-policy"] == "no-referrer"
        assert "server" not in headers


def test_the_page_takes_no_file_from_another_host(tiny: Live) -> None:
    for file in files("makemoe.serve").joinpath("page").iterdir():
        text = file.read_text(encoding="utf-8").replace("http://www.w3.org/2000/svg", "")
        assert not re.search(r"(https?:)?//[a-z0-9-]+\.[a-z]", text), file.name
        assert "@import" not in text
        reply = tiny.ask("GET", f"/page/{file.name}")
        assert (reply.status, reply.body) == (200, file.read_bytes())
        # No policy stops an inline script or style from being written, only from working.
        assert not re.search(r"<script>|<style|\son\w+=|\sstyle=", text), file.name


def test_pages_have_their_types(tiny: Live) -> None:
    types = {"/": "html", "/page/page.css": "css", "/page/page.js": "javascript"}
    for path, kind in types.items():
        assert tiny.ask("GET", path).headers["content-type"] == f"text/{kind}; charset=utf-8"


# -- large bodies


def test_a_body_that_says_it_is_large_is_refused_unread(tiny: Live) -> None:
    begin = time.monotonic()
    reply = tiny.ask("POST", "/v1/completions", None, {"Content-Length": str(100 << 20)})
    assert reply.status == 413
    assert f"larger than {tiny.engine.limits.body:,} bytes" in reply.error
    assert reply.headers["connection"] == "close"
    assert time.monotonic() - begin < 5


@pytest.mark.parametrize("origin", ["https://example.com/", "example.com", "ftp://a", "*", ""])
def test_what_is_no_origin_is_refused(origin: str) -> None:
    with pytest.raises(UsageError, match="--allow_origin"):
        checked_origin(origin)


def test_hosts_are_read_without_their_port() -> None:
    names = {
        "a.b:80": "a.b",
        "a": "a",
        "[::1]:8": "::1",
        "[::1]": "::1",
        "": "",
        "1.2.3.4:5": "1.2.3.4",
    }
    assert {host: host_name(host) for host in names} == names
