"""Certificates of an authority that only the tests know."""

from __future__ import annotations

import ssl
from dataclasses import dataclass
from pathlib import Path

import trustme


@dataclass(frozen=True)
class Certificates:
    """A server's certificate on disk, and who trusts it.

    :ivar options: of the servers in ``examples``.
    :ivar authority: the file for clients that take one.
    :ivar context: of clients in Python.
    """

    options: list[str]
    authority: Path
    context: ssl.SSLContext


def certificates(folder: Path) -> Certificates:
    """Issue a certificate for loopback, and write it to a folder."""
    authority = trustme.CA()
    issued = authority.issue_cert("localhost", "127.0.0.1")
    cert, key, trusted = (folder / name for name in ("cert.pem", "key.pem", "ca.pem"))
    issued.cert_chain_pems[0].write_to_path(str(cert))
    issued.private_key_pem.write_to_path(str(key))
    authority.cert_pem.write_to_path(str(trusted))
    context = ssl.create_default_context(cafile=str(trusted))
    return Certificates([f"--tls-cert={cert}", f"--tls-key={key}"], trusted, context)
