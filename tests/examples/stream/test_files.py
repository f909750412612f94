"""Files over HTTP: whole, in parts, under conditions; as nginx answers on the same folder."""

from __future__ import annotations

import email
import os
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from urllib.parse import quote

import pytest

from examples.stream.ranges import satisfiable
from tests.support.needs import need_command
from tests.support.served import COMBINATIONS, LIMIT, Answer, Served, ask, serve
from tests.support.waiting import until_blocking

NGINX = """
daemon off; master_process off; pid {root}/pid; error_log stderr crit;
events {{ worker_connections 100; }}
http {{
  access_log off; default_type application/octet-stream;
  types {{ video/mp4 mp4; video/webm webm; text/html html; "text/plain; charset=utf-8" txt; }}
  client_body_temp_path {root}/body; proxy_temp_path {root}/proxy; fastcgi_temp_path {root}/f;
  uwsgi_temp_path {root}/u; scgi_temp_path {root}/s;
  server {{
    listen 127.0.0.1:{port};
    location /files/ {{ alias {folder}/; disable_symlinks if_not_owner from={folder}; }}
  }}
}}
"""


@pytest.fixture(scope="module", params=COMBINATIONS)
def server(request: pytest.FixtureRequest, folder: Path) -> Iterator[Served]:
    with serve("examples.stream", str(folder), *request.param.split()) as served:
        yield served


@pytest.fixture(scope="module")
def one_server(folder: Path) -> Iterator[Served]:
    """For what is decided before anything is sent, whatever event loop and driver are used."""
    with serve("examples.stream", str(folder)) as served:
        yield served


@pytest.fixture(scope="module")
def nginx(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[int]:
    """The port of an nginx that serves the same folder."""
    command = need_command("nginx", "nginx")
    root = tmp_path_factory.mktemp("nginx")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port: int = free.getsockname()[1]
    configuration = root / "nginx.conf"
    configuration.write_text(NGINX.format(root=root, port=port, folder=folder))
    process = subprocess.Popen([command, "-p", root, "-e", "stderr", "-c", configuration])
    try:
        until = time.monotonic() + LIMIT
        while True:
            try:
                ask(port, "/")
                break
            except ConnectionError:
                assert process.poll() is None
                assert time.monotonic() < until
                time.sleep(0.02)
        yield port
    finally:
        process.terminate()
        process.wait(LIMIT)


# --- as nginx does ---

RANGES = [
    "bytes=0-0",
    "bytes=0-",
    "bytes=100-199",
    "bytes=-1",
    "bytes=-500",
    "bytes=-99999999999",
    "bytes=2999990-99999999",
    "bytes=3000000-",
    "bytes=3000001-",
    "bytes=-0",
    "bytes=99999999999999999999999999-",
    "bytes=5-2",
    "bytes=",
    "bytes=a-b",
    "bytes=1-2-3",
    "bytes=--1",
    "lines=1-2",
    "bytes",
    "bytes=0-9, 20-29 ,-10",
    "bytes=0-9,3000001-",
    "bytes=3000001-,4000000-",
    "bytes=0-2999999,0-2999999",
]
COMPARED = ["content-length", "content-range", "content-type", "last-modified"]


def parts(answer: Answer) -> list[tuple[str | None, str | None, object]]:
    """Return type, range and bytes of each part of ``multipart/byteranges``."""
    head = f"content-type: {answer.headers['content-type']}\r\n\r\n".encode()
    message = email.message_from_bytes(head + answer.body)
    assert message.is_multipart()
    # Python's parser drops the line break before a boundary, as it should.
    return [
        (part["content-type"], part["content-range"], part.get_payload(decode=True))
        for part in message.walk()
        if not part.is_multipart()
    ]


def same(ours: Answer, reference: Answer) -> None:
    """Assert that two answers say the same."""
    assert ours.status == reference.status
    if reference.headers.get("content-type", "").startswith("multipart/byteranges"):
        assert parts(ours) == parts(reference)
        assert int(ours.headers["content-length"]) == len(ours.body)
        return
    if ours.status >= 400:
        # The text is the server's own.
        assert ours.headers.get("content-range") == reference.headers.get("content-range")
        return
    for name in COMPARED:
        assert ours.headers.get(name) == reference.headers.get(name), name
    assert ours.body == reference.body


@pytest.mark.parametrize("asked", RANGES)
def test_ranges_are_answered_as_nginx_does(one_server: Served, nginx: int, asked: str) -> None:
    same(one_server.ask("/files/film.mp4", range=asked), ask(nginx, "/files/film.mp4", range=asked))


@pytest.mark.parametrize(
    ("name", "headers"),
    [
        ("small.webm", {}),
        ("empty.mp4", {}),
        ("empty.mp4", {"range": "bytes=0-"}),
        ("notes.txt", {}),
        ("within.webm", {}),
        (quote('below/Über <b> & "100%" #1?.webm'), {}),
        ("missing.mp4", {}),
        ("below/../film.mp4/", {}),
        ("../secret.txt", {}),
        ("small.webm", {"if_none_match": "*"}),
        ("small.webm", {"if_none_match": '"other", "another"'}),
        ("small.webm", {"if_match": '"other"'}),
        ("small.webm", {"if_match": "*"}),
        ("small.webm", {"if_unmodified_since": "Mon, 01 Jan 2001 00:00:00 GMT"}),
        ("small.webm", {"if_modified_since": "Mon, 01 Jan 2001 00:00:00 GMT"}),
        ("small.webm", {"if_modified_since": "nonsense"}),
        ("small.webm", {"range": "bytes=1-2", "if_range": '"other"'}),
        ("small.webm", {"range": "bytes=1-2", "if_range": "Mon, 01 Jan 2001 00:00:00 GMT"}),
    ],
)
@pytest.mark.parametrize("method", ["GET", "HEAD"])
def test_files_are_answered_as_nginx_does(
    one_server: Served, nginx: int, name: str, headers: dict[str, str], method: str
) -> None:
    # For HEAD nginx looks at ranges; RFC 9110 defines them only for GET.
    if method == "HEAD":
        headers = {name: value for name, value in headers.items() if name != "range"}
    ours = one_server.ask(f"/files/{name}", method=method, **headers)
    reference = ask(nginx, f"/files/{name}", method=method, **headers)
    if reference.status in (301, 404):
        assert ours.status in (400, 404)
    else:
        same(ours, reference)


@pytest.mark.parametrize("port_of", ["ours", "nginx"])
def test_what_a_server_says_of_a_file_makes_later_requests_conditional(
    one_server: Served, nginx: int, port_of: str
) -> None:
    port = one_server.port if port_of == "ours" else nginx
    target = "/files/film.mp4"
    first = ask(port, target, method="HEAD")
    etag, modified = first.headers["etag"], first.headers["last-modified"]
    assert (first.status, first.body) == (200, b"")
    for headers in (
        {"if_none_match": etag},
        {"if_none_match": f'"other", W/{etag}'},
        {"if_modified_since": modified},
    ):
        answer = ask(port, target, **headers)
        assert (answer.status, answer.body) == (304, b"")
        assert answer.headers["etag"] == etag
    for tag in (etag, modified):
        answer = ask(port, target, range="bytes=1-2", if_range=tag)
        assert (answer.status, len(answer.body)) == (206, 2)
    assert ask(port, target, if_match=etag).status == 200
    assert ask(port, target, range="bytes=1-2", if_range=f"W/{etag}").status == 200


def test_ranges_that_overlap_are_sent_once(one_server: Served, folder: Path) -> None:
    answer = one_server.ask("/files/film.mp4", range="bytes=5-14,0-9")
    assert (answer.status, answer.headers["content-range"]) == (206, "bytes 0-14/3000001")
    assert answer.body == (folder / "film.mp4").read_bytes()[:15]


def test_a_changed_file_has_another_etag(one_server: Served, folder: Path) -> None:
    path = folder / "changing.txt"
    path.write_text("one")
    before = one_server.ask("/files/changing.txt")
    path.write_text("two")
    after = one_server.ask(
        "/files/changing.txt", range="bytes=0-0", if_range=before.headers["etag"]
    )
    path.unlink()
    assert (after.status, after.body) == (200, b"two")
    assert after.headers["etag"] != before.headers["etag"]


# --- what is refused ---


@pytest.mark.parametrize(
    ("target", "status"),
    [
        ("/files/out.txt", 403),
        ("/files/out/secret.txt", 403),
        ("/files/../secret.txt", 400),
        ("/files/%2e%2e/secret.txt", 400),
        ("/files/below/..%2f..%2f..%2fsecret.txt", 400),
        ("/files//etc/passwd", 404),
        ("/files/.hidden", 404),
        ("/files/to_hidden.txt", 404),
        ("/files/pipe.mp4", 404),
        ("/files/below", 404),
        ("/files/", 404),
        ("/files/film.mp4%00.txt", 400),
        ("/files/%ff", 404),
        ("/files/" + "a" * 5000, 404),
        ("/assets/../__main__.py", 404),
        ("/nothing", 404),
    ],
)
def test_what_is_not_in_the_folder_is_refused(one_server: Served, target: str, status: int) -> None:
    answer = one_server.ask(target)
    assert answer.status == status
    assert b"outside" not in answer.body


def test_other_methods_are_refused(one_server: Served) -> None:
    answer = one_server.ask("/files/film.mp4", method="DELETE")
    assert answer.status == 405
    assert sorted(answer.headers["allow"].split(", ")) == ["GET", "HEAD"]


@pytest.mark.parametrize(
    ("header", "expected"),
    [
        ("bytes=0-9", "bytes=0-9"),
        ("Bytes=0-9", "bytes=0-9"),
        ("bytes=90-", "bytes=90-99"),
        ("bytes=-7, 100-, 3-4", "bytes=93-99,3-4"),
        (",".join(["bytes=0-0", *["0-0"] * 15]), "bytes=" + ",".join(["0-0"] * 16)),
        (",".join(["bytes=0-0", *["0-0"] * 16]), None),
        ("bytes=100-", "bytes=100-"),
        ("bytes=" + "9" * 5000 + "-", "bytes=100-"),
        ("bytes=\u0660-\u0661", "bytes=100-"),
    ],
)
def test_ranges_in_a_header(header: str, expected: str | None) -> None:
    assert satisfiable(header, 100) == expected


# --- on every event loop, over every driver ---


def test_curl_gets_the_bytes_of_the_file(server: Served, folder: Path, tmp_path: Path) -> None:
    curl = need_command("curl", "curl")
    whole = (folder / "film.mp4").read_bytes()
    for asked, expected in (("0-", whole), ("1000000-2999999", whole[1000000:3000000])):
        output = tmp_path / "got"
        url = f"{server.url}files/film.mp4"
        command = [curl, "-s", "-S", "--fail", "--range", asked, "-o", output, url]
        subprocess.run(command, check=True, timeout=LIMIT)
        assert output.read_bytes() == expected
    both = server.ask("/files/film.mp4", range="bytes=0-999999,2000000-2999999")
    assert [part[2] for part in parts(both)] == [whole[:1000000], whole[2000000:3000000]]


def test_one_connection_carries_many_requests(server: Served, folder: Path) -> None:
    small = (folder / "small.webm").read_bytes()
    request = "{} /files/small.webm HTTP/1.1\r\nHost: localhost\r\n{}\r\n"
    # All at once: the answers come in turn.
    answers = server.exchange(
        (
            request.format("GET", "")
            + request.format("HEAD", "")
            + request.format("GET", "Range: bytes=10-19\r\n")
            + request.format("GET", "Range: bytes=5000-\r\n")
            + request.format("GET", "Connection: close\r\n")
        ).encode()
    )
    heads = [b"HTTP/1.1 200", b"HTTP/1.1 200", b"HTTP/1.1 206", b"HTTP/1.1 416", b"HTTP/1.1 200"]
    at = 0
    for head in heads:
        at = answers.index(head, at) + 1
    assert answers.count(b"HTTP/1.1 ") == len(heads)
    assert answers.count(small) == 2
    assert answers.endswith(small)
    assert small[10:20] + b"HTTP/1.1 416" in answers


def test_the_ring_has_sent_it(server: Served) -> None:
    assert server.ask("/files/film.mp4").status == 200
    values = server.metrics()
    assert values["stream_file_bytes_total"] > 0
    assert values["zc_anyio_sent_bytes_total"] >= values["stream_file_bytes_total"]
    sent = values["zc_anyio_zero_copied_sends_total"] + values["zc_anyio_copied_sends_total"]
    assert sent > 0
    assert values["zc_anyio_failed_sends_total"] == 0
    assert values["zc_anyio_held_sends"] == values["zc_anyio_in_flight_sends"] == 0


# --- the list ---


def test_the_page_lists_what_may_be_seen(one_server: Served) -> None:
    page = one_server.ask("/").body.decode()
    assert page.count("<li>") == 7
    for name in ("film.mp4", "below/%C3%9Cber%20%3Cb%3E%20%26%20%22100%25%22%20%231%3F.webm"):
        assert f'<a href="/files/{name}" data-play>' in page
    for name in (".hidden", "to_hidden", "out.txt", "secret", "pipe"):
        assert name not in page


def test_a_folder_that_cannot_be_read_is_not_called_empty(tmp_path: Path) -> None:
    folder = tmp_path / "folder"
    folder.mkdir()
    with serve("examples.stream", str(folder)) as server:
        assert b"There are no files here yet." in server.ask("/").body
        folder.rmdir()
        until_blocking(lambda: b"The folder cannot be read: No such" in server.ask("/").body)


def test_a_file_that_is_cut_short_is_told_in_one_line(tmp_path: Path) -> None:
    path = tmp_path / "film.mp4"
    path.write_bytes(bytes(64 << 20))
    with serve("examples.stream", str(tmp_path)) as server:
        with server.connect(receive_buffer=4096) as sock:
            sock.sendall(b"GET /files/film.mp4 HTTP/1.1\r\nHost: localhost\r\n\r\n")
            sock.recv(1000)
            os.truncate(path, 1000)
            with suppress(ConnectionResetError):
                while sock.recv(1 << 16):
                    pass
        assert server.stop() == f"ERROR zc_anyio.asgi: {path} was truncated while it was sent\n"
