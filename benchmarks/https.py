"""CPU time of a server that sends a file over HTTPS: the kernel encrypts, or OpenSSL does.

``python -m benchmarks.https --mib 1024``: the same server in a process of its own for each, and a
client of Python's ``ssl`` here, which compares the SHA-256.  The kernel needs its module ``tls``.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import resource
import socket
import ssl
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import anyio
import trustme
from anyio.abc import SocketAttribute

import zc_anyio
from zc_anyio.tls import KernelTLSAttribute, wrap_tls

# What this process hands to OpenSSL at a time, where the kernel does not encrypt.
PIECE = 256 << 10
HEAD = b"HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: %d\r\n\r\n"


async def send(stream: Any, path: Path) -> None:
    """Answer one request with the file."""
    await stream.receive()
    await stream.send(HEAD % (await anyio.Path(path).stat()).st_size)
    if stream.extra(KernelTLSAttribute.kernel_sends):
        async with zc_anyio.send_group() as group:
            await group.send_file(stream, path)
    else:
        async with await anyio.open_file(path, "rb") as file:
            while piece := await file.read(PIECE):
                await stream.send(piece)


async def run_server(kernel: Any, folder: Path) -> None:
    """Serve the file once; print the port, and then the CPU time since the handshake."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(folder / "chain.pem")
    async with zc_anyio.open_ring() as ring:
        listener: Any = await zc_anyio.create_tcp_listener(local_host="127.0.0.1")
        print(listener.extra(SocketAttribute.local_port), flush=True)
        async with listener:
            plain = await listener.listeners[0].accept()
            stream = await wrap_tls(plain, context, server_side=True, kernel=kernel)
            before = resource.getrusage(resource.RUSAGE_SELF)
            async with stream:
                await send(stream, folder / "file")
        after = resource.getrusage(resource.RUSAGE_SELF)
        used = after.ru_utime - before.ru_utime, after.ru_stime - before.ru_stime
        print(*used, ring.statistics().kernel_tls, flush=True)


def download(port: int, folder: Path) -> tuple[str, str, float]:
    """Return the SHA-256 of the body, the cipher, and how many seconds it took."""
    context = ssl.create_default_context(cafile=str(folder / "root.pem"))
    digest, began = hashlib.sha256(), time.perf_counter()
    with (
        socket.create_connection(("127.0.0.1", port)) as sock,
        context.wrap_socket(sock, server_hostname="localhost") as session,
        session.makefile("rb") as file,
    ):
        session.sendall(b"GET / HTTP/1.1\r\n\r\n")
        while file.readline().strip():
            pass
        while piece := file.read(PIECE):
            digest.update(piece)
        cipher = session.cipher()
        session.unwrap()
    return digest.hexdigest(), cipher[0] if cipher else "", time.perf_counter() - began


def streams_of_kernel() -> int:
    """Return how many connections the kernel has encrypted in software (``TlsTxSw``)."""
    path = Path("/proc/net/tls_stat")
    return int(path.read_text().split("TlsTxSw", 1)[1].split()[0]) if path.exists() else 0


def measure(kernel: str, folder: Path, wanted: str) -> None:
    """Run a server, download from it, and print the figures."""
    before = streams_of_kernel()
    with subprocess.Popen(
        [sys.executable, "-m", "benchmarks.https", "--serve", kernel, str(folder)],
        stdout=subprocess.PIPE,
        text=True,
    ) as server:
        assert server.stdout is not None
        digest, cipher, seconds = download(int(server.stdout.readline()), folder)
        user, system, sends = server.stdout.readline().split()
    right = "the same" if digest == wanted else "DIFFERENT"
    print(
        f"{kernel:8} {cipher}  SHA-256 {right}  user {float(user):.2f} s"
        f"  system {float(system):.2f} s  took {seconds:.1f} s"
        f"  TlsTxSw +{streams_of_kernel() - before}  kernel_tls {sends}",
        flush=True,
    )
    if digest != wanted:
        raise SystemExit(1)


def main() -> None:
    """Make a file of random bytes, and send it both ways."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--mib", type=int, default=256, help="size of the file")
    parser.add_argument("--runs", type=int, default=1)
    parser.add_argument("--serve", choices=["require", "never"], help=argparse.SUPPRESS)
    parser.add_argument("folder", nargs="?", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.serve:
        anyio.run(run_server, options.serve, options.folder)
        return
    authority = trustme.CA()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        authority.cert_pem.write_to_path(str(folder / "root.pem"))
        certificate = authority.issue_cert("localhost")
        certificate.private_key_and_cert_chain_pem.write_to_path(str(folder / "chain.pem"))
        digest = hashlib.sha256()
        with (folder / "file").open("wb") as file:
            for _ in range(options.mib):
                piece = os.urandom(1 << 20)
                file.write(piece)
                digest.update(piece)
        print(f"Linux {os.uname().release}, {ssl.OPENSSL_VERSION}, {options.mib} MiB", flush=True)
        for _ in range(options.runs):
            for kernel in "require", "never":
                measure(kernel, folder, digest.hexdigest())


if __name__ == "__main__":
    main()
