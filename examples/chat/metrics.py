"""The metrics of the chat, besides those of every server."""

from __future__ import annotations

from prometheus_client import CollectorRegistry, Counter, Gauge

__all__ = ["ChatMetrics"]


class ChatMetrics:
    """Counters and gauges of the chat, in a server's registry."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self.members = Gauge("chat_members", "Connections in rooms", registry=registry)
        self.rooms = Gauge("chat_rooms", "Rooms that are kept", registry=registry)
        self.messages = Counter("chat_messages", "Messages delivered", ["kind"], registry=registry)
        self.deliveries = Counter(
            "chat_deliveries", "Frames of messages queued for members", registry=registry
        )
        self.refused = Counter("chat_refused", "Messages not taken", registry=registry)
        self.dropped = Counter(
            "chat_dropped", "Connections ended by the server", ["code"], registry=registry
        )
        self.reset = Counter(
            "chat_reset", "Connections reset, as they did not take a close frame", registry=registry
        )
        self.waiting = Gauge("chat_waiting_bytes", "What members have not taken", registry=registry)
        self.most_waiting = Gauge(
            "chat_most_waiting_bytes", "What the slowest has not taken", registry=registry
        )
        self.shared = Gauge(
            "chat_shared", "1 if other servers are reached through Redis", registry=registry
        )
        self.backlog = Gauge(
            "chat_backlog", "Messages that are not in the shared log yet", registry=registry
        )
