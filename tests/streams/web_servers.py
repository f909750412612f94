"""Web servers for clients under test: a real nginx, and a small one over this library."""

from __future__ import annotations

import grp
import hashlib
import os
import pwd
import socket
import ssl
import subprocess
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from pathlib import Path

import anyio
import h11
import trustme
from anyio.abc import ByteStream, SocketAttribute
from anyio.streams.stapled import MultiListener
from anyio.streams.tls import TLSListener

import zc_anyio
from tests.support.needs import need_command
from tests.support.peers import listener

PIECE = 256 << 10

# What any nginx of a test needs, to write below a folder only; the servers are between the halves.
BEGIN = """
user {user} {group};
daemon off;
worker_processes 1;
pid {folder}/pid;
events {{ worker_connections 64; }}
http {{
    access_log off;
    client_body_temp_path {folder}/body;
    proxy_temp_path {folder}/proxy;
    fastcgi_temp_path {folder}/fastcgi;
    uwsgi_temp_path {folder}/uwsgi;
    scgi_temp_path {folder}/scgi;
"""
SERVERS = """
    server {{
        listen 127.0.0.1:{plain};
        listen 127.0.0.1:{secure} ssl;
        ssl_certificate {folder}/certificate.pem;
        ssl_certificate_key {folder}/certificate.pem;
        location /files/ {{
            alias {folder}/files/;
            client_max_body_size 0;
            dav_methods PUT;
        }}
        location /refused/ {{ client_max_body_size 1k; dav_methods PUT; }}
    }}
"""


@dataclass(frozen=True)
class Nginx:
    """A running nginx, which takes files by PUT and gives them back by GET."""

    urls: dict[str, str]
    files: Path


@contextmanager
def running(folder: Path, servers: str, *sockets: socket.socket) -> Iterator[None]:
    """Run nginx with these servers, writing below a folder only, for the length of a scope.

    :param sockets: where the servers listen.  It inherits them, as for an upgrade: connections may
        come before it accepts them.
    """
    command = need_command("nginx", "nginx")
    user = pwd.getpwuid(os.geteuid()).pw_name
    group = grp.getgrgid(os.getegid()).gr_name
    configuration = folder / "nginx.conf"
    begin = BEGIN.format(folder=folder, user=user, group=group)
    configuration.write_text(f"{begin}{servers}}}\n")
    given = [sock.fileno() for sock in sockets]
    with (folder / "errors").open("wb") as errors:
        process = subprocess.Popen(
            [command, "-p", str(folder), "-e", "stderr", "-c", str(configuration)],
            env={**os.environ, "NGINX": "".join(f"{number};" for number in given)},
            pass_fds=given,
            stdin=subprocess.DEVNULL,
            stderr=errors,
        )
    try:
        yield
    finally:
        process.terminate()
        process.wait(20)


@contextmanager
def nginx(authority: trustme.CA, folder: Path) -> Iterator[Nginx]:
    """Run nginx on loopback, plain and with TLS, for the length of a scope."""
    (folder / "files").mkdir()
    authority.issue_cert("localhost").private_key_and_cert_chain_pem.write_to_path(
        str(folder / "certificate.pem")
    )
    with listener() as plain, listener() as secure:
        ports = plain.getsockname()[1], secure.getsockname()[1]
        part = SERVERS.format(folder=folder, plain=ports[0], secure=ports[1])
        urls = {
            "http": f"http://localhost:{ports[0]}",
            "https": f"https://localhost:{ports[1]}",
        }
        with running(folder, part, plain, secure):
            yield Nginx(urls, folder / "files")


@asynccontextmanager
async def own_server(
    contents: bytes, tls: ssl.SSLContext | None = None, *, path: Path | None = None
) -> AsyncIterator[str]:
    """Serve with streams of the ambient ring; yields the URL.

    A PUT is answered with the SHA-256 of its body, a GET with ``contents``.

    :param path: serve on a UNIX socket there.
    """

    async def serve(stream: ByteStream) -> None:
        async with stream:
            await serve_connection(stream, contents)

    async with anyio.create_task_group() as tasks:
        if path is None:
            made = await zc_anyio.create_tcp_listener(local_host="127.0.0.1")
            port = made.extra(SocketAttribute.local_port)
        else:
            made = MultiListener([await zc_anyio.create_unix_listener(path)])
            port = 80
        async with made:
            if tls is None:
                tasks.start_soon(made.serve, serve)
            else:
                secure = TLSListener(made, tls, standard_compatible=False)
                tasks.start_soon(secure.serve, serve)
            yield f"{'https' if tls else 'http'}://localhost:{port}"
            tasks.cancel_scope.cancel()


async def serve_connection(stream: ByteStream, contents: bytes) -> None:
    """Answer requests until the client closes the connection."""
    protocol = h11.Connection(h11.SERVER)
    while True:
        digest, method = hashlib.sha256(), b""
        while True:
            event = protocol.next_event()
            if event is h11.NEED_DATA:
                try:
                    protocol.receive_data(await stream.receive())
                except anyio.EndOfStream:
                    protocol.receive_data(b"")
            elif isinstance(event, h11.Request):
                method = event.method
            elif isinstance(event, h11.Data):
                digest.update(event.data)
            elif isinstance(event, h11.EndOfMessage):
                break
            else:
                return
        answer = digest.hexdigest().encode() if method == b"PUT" else contents
        length = [("Content-Length", str(len(answer)))]
        await stream.send(protocol.send(h11.Response(status_code=200, headers=length)) or b"")
        for start in range(0, len(answer), PIECE):
            piece = answer[start : start + PIECE]
            await stream.send(protocol.send(h11.Data(data=piece)) or b"")
        protocol.send(h11.EndOfMessage())
        protocol.start_next_cycle()
