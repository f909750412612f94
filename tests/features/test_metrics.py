"""A ring's counters as Prometheus reads them."""

from __future__ import annotations

import dataclasses
import threading
from typing import Any

import pytest
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.parser import text_string_to_metric_families

import zc_anyio
from tests.support.peers import receive_exactly, tcp_pair
from zc_anyio.metrics import COUNTERS, GAUGES, RingCollector

pytestmark = [pytest.mark.anyio, pytest.mark.timeout(60)]


def samples(registry: CollectorRegistry) -> dict[str, float]:
    """Return what Prometheus would store."""
    text = generate_latest(registry).decode()
    families = text_string_to_metric_families(text)
    return {sample.name: sample.value for family in families for sample in family.samples}


def registry_of(ring: zc_anyio.Ring) -> CollectorRegistry:
    registry = CollectorRegistry()
    registry.register(RingCollector(ring))
    return registry


async def test_each_statistic_is_a_metric(driver: Any) -> None:
    with tcp_pair() as (client, peer):
        async with zc_anyio.open_ring(driver=driver, zero_copy="always") as ring:
            registry = registry_of(ring)
            async with zc_anyio.send_group() as group:
                await group.send(client, bytes(100_000))
                await group.send(client, b"x")
                group.flush()
                receive_exactly(peer, 100_001)
                await group.send(client, b"waits")
                found = samples(registry)
                statistics = dataclasses.asdict(ring.statistics())
            receive_exactly(peer, 5)
    assert statistics.pop("driver") == driver
    assert statistics["sends"] == 3
    expected = {f"zc_anyio_{name}_total": statistics.pop(of) for name, of, _ in COUNTERS}
    expected |= {f"zc_anyio_{name}": statistics.pop(of) for name, of, _ in GAUGES}
    assert not statistics, "a statistic that is no metric"
    assert found == expected | {"zc_anyio_ring_info": 1}


async def test_the_driver_is_a_label(driver: Any) -> None:
    async with zc_anyio.open_ring(driver=driver) as ring:
        # Such a registry collects when it is told of a collector, to know its names.
        registry = CollectorRegistry(auto_describe=True)
        registry.register(RingCollector(ring))
        with pytest.raises(ValueError, match="Duplicated"):
            registry.register(RingCollector(ring))
        text = generate_latest(registry).decode()
    assert f'zc_anyio_ring_info{{driver="{driver}"}} 1.0' in text


async def test_of_a_ring_that_has_ended_the_last_values_stay(driver: Any) -> None:
    with tcp_pair() as (client, peer):
        async with zc_anyio.open_ring(driver=driver) as ring:
            registry = registry_of(ring)
            async with zc_anyio.send_group() as group:
                await group.send(client, b"hello")
            receive_exactly(peer, 5)
    found = samples(registry)
    assert found["zc_anyio_sent_bytes_total"] == 5
    assert found["zc_anyio_held_sends"] == 0


async def test_another_thread_may_not_collect(driver: Any) -> None:
    raised: list[Exception] = []

    def collect() -> None:
        try:
            generate_latest(registry)
        except RuntimeError as exc:
            raised.append(exc)

    async with zc_anyio.open_ring(driver=driver) as ring:
        registry = registry_of(ring)
        thread = threading.Thread(target=collect)
        thread.start()
        thread.join()
    assert "another thread" in str(raised)
