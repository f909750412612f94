"""``python -m examples.quic FOLDER``: serve a folder over HTTP/3."""

from __future__ import annotations

import argparse
from pathlib import Path
from tempfile import TemporaryDirectory

import anyio
import trustme
from aioquic.h3.connection import H3_ALPN
from aioquic.quic.configuration import QuicConfiguration
from anyio.abc import SocketAttribute

import zc_anyio

from ..serving.command import BACKENDS, DRIVERS, port_number, run, stop_on_signal, whole
from ..stream.folder import Folder
from .files import Files
from .server import Limits, Server

# A peer sends requests only, so its window need not be large.
WINDOW = 64 << 10


def parse() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(prog="python -m examples.quic", description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--host", default="127.0.0.1", help="address to listen on (%(default)s)")
    parser.add_argument(
        "--port", type=port_number, default=4433, help="0 for a free one (%(default)s)"
    )
    parser.add_argument("--backend", choices=BACKENDS, default="asyncio", help="(%(default)s)")
    parser.add_argument("--driver", choices=DRIVERS, default="auto", help="(%(default)s)")
    parser.add_argument(
        "--connections", type=whole, default=100, metavar="N", help="at once (%(default)s)"
    )
    parser.add_argument(
        "--certificate", type=Path, metavar="PEM", help="without it, one is made (see --authority)"
    )
    parser.add_argument("--key", type=Path, metavar="PEM", help="of the certificate")
    parser.add_argument(
        "--authority",
        type=Path,
        metavar="PEM",
        help="where to write what clients need to trust a certificate that is made "
        "(in a temporary folder, for as long as this runs)",
    )
    parser.set_defaults(access_log=False)
    options = parser.parse_args()
    if not options.folder.is_dir():
        parser.error(f"{options.folder} is not a folder")
    return options


def configure(options: argparse.Namespace, temporary: Path) -> QuicConfiguration:
    """Load the certificate, or make one for this machine, and say where its authority is."""
    configuration = QuicConfiguration(
        alpn_protocols=H3_ALPN, is_client=False, max_data=WINDOW, max_stream_data=WINDOW
    )
    if options.certificate is not None:
        configuration.load_cert_chain(options.certificate, options.key)
        return configuration
    authority = trustme.CA()
    made = authority.issue_cert("localhost", "127.0.0.1", "::1")
    with made.private_key_pem.tempfile() as key, made.cert_chain_pems[0].tempfile() as chain:
        configuration.load_cert_chain(chain, key)
    where = options.authority or temporary / "authority.pem"
    authority.cert_pem.write_to_path(str(where))
    print(f"clients that load {where.resolve()} trust the certificate", flush=True)
    return configuration


async def main(options: argparse.Namespace) -> None:
    """Serve until a signal comes."""
    with TemporaryDirectory() as temporary:
        await serve(options, configure(options, Path(temporary)))


async def serve(options: argparse.Namespace, configuration: QuicConfiguration) -> None:
    """Serve with a certificate until a signal comes."""
    server = Server(
        configuration, Files(Folder(options.folder)), Limits(connections=options.connections)
    )
    async with (
        zc_anyio.open_ring(driver=options.driver, drain_timeout=1.0),
        await zc_anyio.create_udp_socket(local_host=options.host, local_port=options.port) as sock,
    ):
        host = f"[{options.host}]" if ":" in options.host else options.host
        port = sock.extra(SocketAttribute.local_port)
        async with stop_on_signal() as stop, anyio.create_task_group() as tasks:
            tasks.start_soon(server.serve, sock)
            print(f"serving {options.folder.resolve()} at https://{host}:{port}/", flush=True)
            await stop.wait()
            tasks.cancel_scope.cancel()
    print(server.figures, flush=True)


if __name__ == "__main__":
    run(main, parse())
