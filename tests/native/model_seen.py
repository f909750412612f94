"""The model's part that can be seen from outside: statistics, and what is to be told."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence

from tests.native.model_state import (
    FAILED,
    IDLE,
    RELEASED,
    RESULT,
    WINDOW,
    Ctx,
    Event,
    Req,
    Send,
    Sock,
)

COUNTED = ["sends", "bytes_sent", "zero_copied", "copied", "staged", "failed"]
COUNTED += ["generations_released"]


class Seen:
    def __init__(
        self, memory: Sequence[int], address: int, max_requests: int, slabs: int, base: int
    ) -> None:
        self.memory, self.address, self.max_requests = memory, address, max_requests
        # Staging memory is `slabs` slabs of `memory`, from `base` on.
        self.slabs, self.base = slabs, base
        # Offsets of registered memory, by index.
        self.regions: list[range] = []
        self.contexts: list[Ctx] = []
        self.sockets: list[Sock] = []
        self.requests: list[Req] = []
        self.totals: Counter[str] = Counter()
        self.denied = self.waiting_bytes = self.waiting_sends = 0
        self.budget = -1
        # What may be told now; failures and results are kept as their sends.
        self.failures: list[Send] = []
        self.results: list[Send] = []
        self.windows: set[Ctx] = set()
        self.idles: set[Sock] = set()
        # Sockets that are idle, but not to be told of yet.
        self.lingering: set[Sock] = set()
        self.now = self.linger = 0  # ticks
        self.cancels: set[Req] = set()
        self.broken: set[Sock] = set()

    @property
    def live_sends(self) -> Iterator[Send]:
        return (send for s in self.sockets for send in s.accepted if not send.retired)

    def stats(self) -> dict[str, int]:
        live = list(self.live_sends)
        flying = sum(send.count for send in live if send.flying)
        queued = sum(send.count for send in live if send.owed and not send.flying)
        counted = [*COUNTED, "requests", "refused", "completions", "strays"]
        return {key: self.totals[key] for key in counted} | {
            "queued": queued,
            "in_flight": flying,
            "held": sum(send.count for send in live) - queued - flying,
            "generations_open": sum(not gen.released for c in self.contexts for gen in c.gens),
            "contexts": len(self.contexts),
            "sockets": len(self.sockets),
        }

    def ctx_stats(self, ctx: Ctx) -> dict[str, int]:
        return {key: ctx.totals[key] for key in COUNTED} | {
            "unreleased_sends": sum(send.count for send in ctx.unreleased),
            "unreleased_bytes": ctx.unreleased_bytes,
            "generations_open": sum(not gen.released for gen in ctx.gens),
        }

    def told(self, event: Event) -> None:
        """Takes an event that the C tells; fails if it is not due."""
        kind, a, b, c = event
        if kind == FAILED:
            # Those of one socket fail in the order of its queue, so the oldest is the one meant.
            due = [s for s in self.failures if (s.gen.ctx.id, s.sock.id, s.error) == (a, b, c)]
            assert due, f"no such failure is due: {event}"
            self.failures.remove(due[0])
        elif kind == RESULT:
            due = [s for s in self.results if (s.gen.ctx.id, s.ticket, s.error) == (a, b, c)]
            assert len(due) == 1, f"no such result is due: {event}"
            self.results.remove(due[0])
        elif kind == RELEASED:
            (ctx,) = [ctx for ctx in self.contexts if ctx.id == a]
            gens = [gen for gen in ctx.gens if gen.number == b]
            assert len(gens) == 1, f"released twice, or never made: {event}"
            assert gens[0].flushed, f"released while open: {event}"
            assert all(send.settled for send in gens[0].sends), f"released too early: {event}"
            untold = [s for s in self.failures + self.results if s.gen is gens[0]]
            assert not untold, "released before its failures and results were told"
            ctx.gens.remove(gens[0])
        elif kind == WINDOW:
            (ctx,) = [ctx for ctx in self.windows if ctx.id == a]
            self.windows.remove(ctx)
        else:
            assert kind == IDLE
            (sock,) = [sock for sock in self.idles if sock.id == a]
            self.idles.remove(sock)

    def untold(self) -> int:
        gens = sum(gen.released for ctx in self.contexts for gen in ctx.gens)
        return sum(map(len, (self.failures, self.results, self.windows, self.idles)), gens)
