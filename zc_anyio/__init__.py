"""Zero-copy network sends over io_uring for anyio; a scope says how long a buffer is in use."""

from ._base.errors import DriverUnavailable
from ._base.reports import GroupStatistics, Notification, RingStatistics, SendFailure
from ._connecting.connect import connect_tcp, connect_unix
from ._connecting.listen import create_tcp_listener, create_unix_listener
from ._connecting.udp import create_connected_udp_socket, create_udp_socket
from ._connecting.wrap import as_trio_stream, wrap_listener, wrap_stream
from ._ring.capabilities import Capabilities
from ._ring.contexts import Generation
from ._ring.opening import Driver, current_ring, open_ring
from ._ring.ring import Ring, ZeroCopy
from ._sending.buffers import Buffer, Data
from ._sending.groups import SendGroup, send_group
from ._sending.pools import BufferPool, open_buffer_pool
from .datagrams import ZeroCopyConnectedUDPSocket, ZeroCopyUDPSocket
from .listeners import ZeroCopySocketListener
from .streams import ZeroCopySocketStream, ZeroCopyUNIXSocketStream

__all__ = [
    "Buffer",
    "BufferPool",
    "Capabilities",
    "Data",
    "Driver",
    "DriverUnavailable",
    "Generation",
    "GroupStatistics",
    "Notification",
    "Ring",
    "RingStatistics",
    "SendFailure",
    "SendGroup",
    "ZeroCopy",
    "ZeroCopyConnectedUDPSocket",
    "ZeroCopySocketListener",
    "ZeroCopySocketStream",
    "ZeroCopyUDPSocket",
    "ZeroCopyUNIXSocketStream",
    "as_trio_stream",
    "connect_tcp",
    "connect_unix",
    "create_connected_udp_socket",
    "create_tcp_listener",
    "create_udp_socket",
    "create_unix_listener",
    "current_ring",
    "open_buffer_pool",
    "open_ring",
    "send_group",
    "wrap_listener",
    "wrap_stream",
]
