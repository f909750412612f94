"""TLS in this process, over any stream: anyio's, which also says why it is not the kernel's."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from anyio.streams.tls import TLSStream

from .attributes import KernelTLSAttribute

__all__ = ["InMemoryTLSStream"]


class InMemoryTLSStream(TLSStream):
    """anyio's TLS stream, with :class:`KernelTLSAttribute`."""

    why_not_kernel: str = "the kernel was not asked"

    @property
    def extra_attributes(self) -> Mapping[Any, Callable[[], Any]]:
        """See :class:`anyio.TypedAttributeProvider`."""
        return {
            **super().extra_attributes,
            KernelTLSAttribute.kernel_sends: lambda: False,
            KernelTLSAttribute.kernel_receives: lambda: False,
            KernelTLSAttribute.why_not_kernel: lambda: self.why_not_kernel,
        }
