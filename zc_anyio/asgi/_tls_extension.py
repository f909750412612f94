"""ASGI's extension ``tls``: what an application is told of a connection's session."""

from __future__ import annotations

import ssl
from typing import Any

from anyio.streams.tls import TLSAttribute, TLSStream

__all__ = ["tls_extension"]

TLS_VERSIONS = {"TLSv1.2": 0x0303, "TLSv1.3": 0x0304}


def tls_extension(stream: TLSStream, certificate: str | None) -> dict[str, Any]:
    """Return the extension of a connection.

    :param certificate: the server's, in PEM.
    """
    connection = stream.extra(TLSAttribute.ssl_object)
    name = connection.cipher()
    suites = {suite["name"]: suite["id"] & 0xFFFF for suite in connection.context.get_ciphers()}
    client = stream.extra(TLSAttribute.peer_certificate_binary)
    subject = connection.getpeercert() or {}
    return {
        "server_cert": certificate,
        "client_cert_chain": [] if client is None else [ssl.DER_cert_to_PEM_cert(client)],
        "client_cert_name": _distinguished_name(subject.get("subject", ())),
        "client_cert_error": None,
        "tls_version": TLS_VERSIONS.get(connection.version() or ""),
        "cipher_suite": suites.get(name[0]) if name is not None else None,
    }


def _distinguished_name(subject: Any) -> str | None:
    """Return a subject as RFC 4514 writes it."""
    parts = [f"{key}={value}" for names in reversed(subject) for key, value in names]
    return ",".join(parts) or None
