"""The last minutes of the live picture, so that a page that is opened late shows a past."""

from __future__ import annotations

import time
from collections import deque

import anyio
from prometheus_client import CollectorRegistry
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

__all__ = ["History"]

EVERY_SECONDS = 1.0
SAMPLES = 300


class History:
    """Samples of the frames delivered a second, and of the bytes of frames in use.

    :param registry: where the live picture counts.
    """

    def __init__(self, registry: CollectorRegistry) -> None:
        self._registry = registry
        self._samples: deque[tuple[float, float, float]] = deque(maxlen=SAMPLES)

    async def run(self) -> None:
        """Take samples until cancelled."""
        before, then = 0.0, anyio.current_time()
        while True:
            await anyio.sleep(EVERY_SECONDS)
            delivered, held = self._read()
            now = anyio.current_time()
            self._samples.append((time.time(), (delivered - before) / (now - then), held))
            before, then = delivered, now

    def _read(self) -> tuple[float, float]:
        values = {one.name: one.value for each in self._registry.collect() for one in each.samples}
        held = values.get("stream_pool_held_bytes", 0.0)
        return values["stream_frames_delivered_total"], held

    async def answer(self, request: Request) -> Response:
        """Answer ``/history?after=TIME``: samples that were taken later than that."""
        try:
            after = float(request.query_params.get("after", 0))
        except ValueError:
            after = 0.0
        return JSONResponse(
            {
                "now": time.time(),
                "seconds": SAMPLES * EVERY_SECONDS,
                "samples": [sample for sample in self._samples if sample[0] > after],
            },
            headers={"cache-control": "no-store"},
        )
