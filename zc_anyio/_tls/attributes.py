"""What TLS streams say of the kernel's part, and what they tell of a session."""

from __future__ import annotations

import ssl
from collections.abc import Callable, Mapping
from typing import Any

from anyio import TypedAttributeSet, typed_attribute
from anyio.streams.tls import TLSAttribute

__all__ = ["KernelTLSAttribute", "session_attributes"]


class KernelTLSAttribute(TypedAttributeSet):
    """Attributes of TLS streams: which directions of the connection the kernel handles."""

    #: whether the kernel encrypts what is sent, so that send groups take the stream
    kernel_sends: bool = typed_attribute()
    #: whether the kernel decrypts what is received
    kernel_receives: bool = typed_attribute()
    #: why the kernel does not encrypt what is sent; ``None`` if it does
    why_not_kernel: str | None = typed_attribute()


def session_attributes(
    tls: ssl.SSLSocket, *, standard_compatible: bool
) -> Mapping[Any, Callable[[], Any]]:
    """Return anyio's attributes of a TLS session over a socket."""
    return {
        TLSAttribute.alpn_protocol: tls.selected_alpn_protocol,
        TLSAttribute.channel_binding_tls_unique: tls.get_channel_binding,
        TLSAttribute.cipher: tls.cipher,
        TLSAttribute.peer_certificate: lambda: tls.getpeercert(binary_form=False),
        TLSAttribute.peer_certificate_binary: lambda: tls.getpeercert(binary_form=True),
        TLSAttribute.server_side: lambda: tls.server_side,
        TLSAttribute.shared_ciphers: lambda: tls.shared_ciphers() if tls.server_side else None,
        TLSAttribute.standard_compatible: lambda: standard_compatible,
        TLSAttribute.ssl_object: lambda: tls,
        TLSAttribute.tls_version: tls.version,
    }
