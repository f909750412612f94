"""What is a request and what is not: tables of heads, whole and byte by byte."""

from __future__ import annotations

import pytest

from tests.asgi.applications import Application
from tests.asgi.rig import CLOSE, GET, serving, status
from tests.support.backends import one_backend
from zc_anyio.asgi import Limits
from zc_anyio.asgi._http1 import Refusal, Request, RequestParser

pytestmark = pytest.mark.anyio

HOST = b"Host: a\r\n"
POST = b"POST /echo HTTP/1.1\r\n" + HOST
CHUNKED = POST + b"Transfer-Encoding: chunked\r\n\r\n"

# Those that servers and proxies have read differently, and what could hide a second request.
SMUGGLING = {
    "length and encoding": POST
    + b"Content-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
    "encoding and length": POST
    + b"Transfer-Encoding: chunked\r\nContent-Length: 5\r\n\r\n0\r\n\r\n",
    "length twice": POST + b"Content-Length: 0\r\nContent-Length: 0\r\n\r\n",
    "lengths differ": POST + b"Content-Length: 0\r\nContent-Length: 5\r\n\r\nabcde",
    "list of lengths": POST + b"Content-Length: 0, 0\r\n\r\n",
    "length with sign": POST + b"Content-Length: +0\r\n\r\n",
    "negative length": POST + b"Content-Length: -1\r\n\r\n",
    "hexadecimal length": POST + b"Content-Length: 0x0\r\n\r\n",
    "length with space": POST + b"Content-Length: 0 0\r\n\r\n",
    "empty length": POST + b"Content-Length:\r\n\r\n",
    "huge length": POST + b"Content-Length: 99999999999999999999\r\n\r\n",
    "encoding twice": CHUNKED[:-2] + b"Transfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
    "encoding before another": POST + b"Transfer-Encoding: chunked, gzip\r\n\r\n0\r\n\r\n",
    "encoding with tab": POST + b"Transfer-Encoding: \x0bchunked\r\n\r\n0\r\n\r\n",
    "encoding in 1.0": b"POST / HTTP/1.0\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
    "space before colon": POST + b"Content-Length : 0\r\n\r\n",
    "folded": POST + b"A: b\r\n c\r\n\r\n",
    "folded first": b"GET / HTTP/1.1\r\n Host: a\r\n\r\n",
    "bare LF in line": b"GET / HTTP/1.1\nHost: a\r\n\r\n",
    "bare LF in header": b"GET / HTTP/1.1\r\nHost: a\nB: c\r\n\r\n",
    "bare LF at end": b"GET / HTTP/1.1\r\nHost: a\r\n\n",
    "bare CR": b"GET / HTTP/1.1\r\nHost: a\rB: c\r\n\r\n",
    "no Host": b"GET / HTTP/1.1\r\n\r\n",
    "two Hosts": b"GET / HTTP/1.1\r\n" + HOST + b"Host: b\r\n\r\n",
    "NUL in value": GET % (b"/", b"A: b\0c\r\n"),
    "control in value": GET % (b"/", b"A: b\x01c\r\n"),
    "NUL in name": GET % (b"/", b"A\0: b\r\n"),
    "no colon": GET % (b"/", b"abc\r\n"),
    "no name": GET % (b"/", b": b\r\n"),
    "space in target": b"GET /a b HTTP/1.1\r\n" + HOST + b"\r\n",
    "control in target": b"GET /\x01 HTTP/1.1\r\n" + HOST + b"\r\n",
    "fragment": GET % (b"/a#b", b""),
    "encoded NUL": GET % (b"/a%00b", b""),
    "relative target": GET % (b"a", b""),
    "star of a GET": GET % (b"*", b""),
    "unknown method": b"BREW / HTTP/1.1\r\n" + HOST + b"\r\n",
    "lower case method": b"get / HTTP/1.1\r\n" + HOST + b"\r\n",
    "version 1.2": b"GET / HTTP/1.2\r\n" + HOST + b"\r\n",
    "version in lower case": b"GET / http/1.1\r\n" + HOST + b"\r\n",
    "preface of HTTP/2": b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
    "nonsense": b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
}
OTHERS = {
    "another encoding": (POST + b"Transfer-Encoding: gzip, chunked\r\n\r\n", 501),
    "identity": (POST + b"Transfer-Encoding: identity\r\n\r\n", 501),
    "proxy": (b"CONNECT a:80 HTTP/1.1\r\nHost: a:80\r\n\r\n", 501),
    "version 2": (b"GET / HTTP/2.0\r\n" + HOST + b"\r\n", 505),
    "version 0.9": (b"GET /\r\n\r\n", 505),
    "large header": (GET % (b"/", b"A: " + b"a" * 2000 + b"\r\n"), 431),
    "many headers": (GET % (b"/", b"A: b\r\n" * 300), 431),
    "long target": (GET % (b"/" + b"a" * 2000, b""), 431),
    "endless target": (b"GET /" + b"a" * 200_000, 431),
    "large body": (POST + b"Content-Length: 1001\r\n\r\n", 413),
    "WebSocket with a body": (
        GET % (b"/", b"Upgrade: websocket\r\nConnection: upgrade\r\nContent-Length: 1\r\n") + b"a",
        400,
    ),
}
# After a head that is right; by then the application has the beginning of the body.
BODIES = {
    "bare LF behind size": b"1\nx\r\n0\r\n\r\n",
    "bare LF behind chunk": b"1\r\nx\n0\r\n\r\n",
    "bare LF behind extension": b"1;a\nx\r\n0\r\n\r\n",
    "size with prefix": b"0x1\r\nx\r\n0\r\n\r\n",
    "negative size": b"-1\r\nx\r\n0\r\n\r\n",
    "size with space": b"1 \r\nx\r\n0\r\n\r\n",
    "huge size": b"fffffffffffffffff\r\nx",
    "chunk too long": b"1\r\nxy\r\n0\r\n\r\n",
    "endless extension": b"1;" + b"a" * 200_000,
    "endless trailers": b"0\r\n" + b"A: bcdef\r\n" * 20_000,
    "length in trailers": b"0\r\nContent-Length: 5\r\n\r\n",
}


def parse(data: bytes, step: int) -> tuple[list[object], bytes]:
    """Parse in pieces; heads as tuples, the parts of a body joined."""
    parser = RequestParser(head_bytes=1000, body_bytes=1000)
    for start in range(0, len(data), step):
        parser.feed(data[start : start + step])
    found: list[object] = []
    for event in parser.events:
        if isinstance(event, bytes) and found and isinstance(found[-1], bytes):
            found[-1] += event
        elif isinstance(event, Request):
            found.append((event.method, event.target, event.length, event.websocket))
        else:
            found.append(event.status if isinstance(event, Refusal) else event)
    return found, parser.rest


@pytest.mark.parametrize("name", SMUGGLING)
def test_what_could_be_read_in_two_ways_is_refused(name: str) -> None:
    for step in (1, 7, 1 << 20):
        assert parse(SMUGGLING[name] + GET % (b"/hidden", b""), step)[0] == [400], step


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        (GET % (b"/a?b=c", b""), [("GET", b"/a?b=c", 0, False)]),
        (b"\r\n\r\n" + GET % (b"/", b""), [("GET", b"/", 0, False)]),
        (GET % (b"http://x/a?b", b""), [("GET", b"/a?b", 0, False)]),
        (GET % (b"HTTP://x?b", b""), [("GET", b"/?b", 0, False)]),
        (GET % (b"http://x", b""), [("GET", b"/", 0, False)]),
        (b"OPTIONS * HTTP/1.1\r\n" + HOST + b"\r\n", [("OPTIONS", b"*", 0, False)]),
        (b"GET / HTTP/1.0\r\n\r\n", [("GET", b"/", 0, False)]),
        (POST + b"Content-Length: 3\r\n\r\nabc", [("POST", b"/echo", 3, False), b"abc", None]),
        (
            CHUNKED + b"1;a=b\r\na\r\n2\r\nbc\r\n0\r\nA: b\r\n\r\n",
            [("POST", b"/echo", None, False), b"abc", None],
        ),
        (
            GET % (b"/1", b"") + GET % (b"/2", b""),
            [("GET", b"/1", 0, False), ("GET", b"/2", 0, False)],
        ),
    ],
)
def test_right_requests_are_accepted(data: bytes, expected: list[object]) -> None:
    for step in (1, 7, 1 << 20):
        assert parse(data, step)[0] == expected, step


def test_another_protocol_is_declined_and_its_body_is_no_request() -> None:
    upgrade = b"Upgrade: h2c\r\nConnection: upgrade\r\n"
    hidden = GET % (b"/hidden", b"")
    first = POST + upgrade + b"Content-Length: %d\r\n\r\n" % len(hidden) + hidden
    expected = [("POST", b"/echo", len(hidden), False), hidden, None, ("GET", b"/", 0, False)]
    for step in (1, 7, 1 << 20):
        assert parse(first + GET % (b"/", b""), step)[0] == expected
    assert len(parse(GET % (b"/", upgrade) * 1000, 1 << 20)[0]) == 1000


def test_what_follows_a_websocket_is_not_parsed() -> None:
    data = GET % (b"/", b"Upgrade: websocket\r\nConnection: Upgrade\r\n")
    assert parse(data + b"rest", 1 << 20) == ([("GET", b"/", 0, True)], b"rest")


@one_backend
@pytest.mark.parametrize("name", SMUGGLING)
async def test_refused_on_the_wire_and_the_connection_ends(name: str) -> None:
    async with serving(Application()) as rig:
        answer = await rig.ask(SMUGGLING[name] + GET % (b"/hello", b""))
        assert status(answer) == 400
        assert answer.count(b"HTTP/1.1 ") == 1
        assert b"\r\nconnection: close\r\n" in answer


@one_backend
@pytest.mark.parametrize("name", OTHERS)
async def test_what_is_not_served_says_so(name: str) -> None:
    data, expected = OTHERS[name]
    async with serving(Application(), limits=Limits(head_bytes=1000, body_bytes=1000)) as rig:
        answer = await rig.ask(data + GET % (b"/hello", b""))
        assert (status(answer), answer.count(b"HTTP/1.1 ")) == (expected, 1)
        # The server still works.
        assert status(await rig.get("/hello")) == 200


@one_backend
@pytest.mark.parametrize("name", BODIES)
async def test_a_malformed_body_ends_the_connection(
    name: str, caplog: pytest.LogCaptureFixture
) -> None:
    async with serving(Application(), limits=Limits(head_bytes=1000)) as rig:
        answer = await rig.ask(CHUNKED + BODIES[name] + GET % (b"/hello", b""))
        assert answer.count(b"HTTP/1.1 ") == 1
        # An application that does not look at it may answer.
        answer = await rig.ask(
            CHUNKED.replace(b"/echo", b"/lazy") + BODIES[name] + GET % (b"/hello", b"")
        )
        assert answer.count(b"HTTP/1.1 ") == 1
    assert "Exception" not in caplog.text


@one_backend
async def test_a_body_larger_than_allowed_is_refused_in_the_middle() -> None:
    async def strict(scope: object, receive: object, send: object) -> None:
        message = await receive()  # type: ignore[operator]
        while message["type"] == "http.request":
            message = await receive()  # type: ignore[operator]
        raise ConnectionError("the application sees no whole body")

    app = Application(echo=strict)  # type: ignore[arg-type]
    async with serving(app, limits=Limits(body_bytes=1000)) as rig:
        answer = await rig.ask(
            CHUNKED + b"3e8\r\n" + b"a" * 1000 + b"\r\n" + b"1\r\na\r\n0\r\n\r\n"
        )
        assert status(answer) == 413


@one_backend
async def test_a_request_may_come_in_any_pieces() -> None:
    data = CHUNKED + b"3\r\nabc\r\n0\r\n\r\n" + GET % (b"/hello", CLOSE)
    async with serving(Application()) as rig:
        answer = await rig.ask(*[data[at : at + 1] for at in range(len(data))])
        assert answer.count(b"HTTP/1.1 200") == 2
        assert answer.endswith(b"\r\n\r\nhello")
