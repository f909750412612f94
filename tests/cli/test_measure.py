"""Measuring: both policies really send to the named peer, and the result says how that went."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from tests.support.commands import cli
from tests.support.needs import missing, why_not
from tests.support.peers import MORE_THAN_FITS, SMALL_BUFFER, listener
from tests.support.waiting import LIMIT
from zc_anyio._doctor import measure as _measure
from zc_anyio.testing import reset

WAYS = [(64 << 10, "never"), (64 << 10, "always"), (1 << 20, "never"), (1 << 20, "always")]


class Sink:
    """Takes one connection and discards what comes, in a thread."""

    def __init__(self, server: socket.socket, *, most: int | None = None) -> None:
        server.settimeout(LIMIT)
        self._server = server
        self._most = most
        self.received = 0
        self.port: int = server.getsockname()[1]
        self._thread = threading.Thread(target=self._take)

    def _take(self) -> None:
        try:
            sock, _ = self._server.accept()
        except OSError:  # nobody came
            return
        sock.settimeout(LIMIT)
        while self._most is None or self.received < self._most:
            if not (chunk := sock.recv(1 << 20)):
                break
            self.received += len(chunk)
        reset(sock)

    def __enter__(self) -> Sink:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.close()
        self._thread.join(LIMIT + 1)
        assert not self._thread.is_alive()


@contextmanager
def sink(family: int = socket.AF_INET, *, most: int | None = None) -> Iterator[Sink]:
    with listener(family=family) as server, Sink(server, most=most) as taking:
        yield taking


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost", "[::1]"])
def test_measuring_counts_what_the_peer_got(host: str) -> None:
    family = socket.AF_INET6 if host == "[::1]" else socket.AF_INET
    try:
        made = sink(family)
        taking = made.__enter__()
    except OSError:
        missing("there is no IPv6 over loopback")
    try:
        done = cli("--json", "--measure", f"{host}:{taking.port}", "--seconds", "1")
    finally:
        made.__exit__(None, None, None)
    assert done.errors == ""
    measurement = done.json["measurement"]
    assert measurement["port"] == taking.port
    assert measurement["driver"] == done.json["capabilities"]["driver"]
    results = measurement["results"]
    assert [(result["buffer_size"], result["zero_copy"]) for result in results] == WAYS
    for result in results:
        assert result["bytes"] == result["sends"] * result["buffer_size"] > 0
        # Each round has its share of the second; together they take all of it.
        assert result["seconds"] >= 0.24
        assert result["bytes_per_second"] == pytest.approx(result["bytes"] / result["seconds"])
        assert result["cpu_seconds"] > 0
        assert result["cpu_seconds_per_gigabyte"] == pytest.approx(
            result["cpu_seconds"] / result["bytes"] * 1e9
        )
        # Over loopback, the kernel's report is the same either way.
        assert (result["zero_copied"], result["copied"]) == (0, result["sends"])
    # The first round of all is not counted.
    assert taking.received > sum(result["bytes"] for result in results)


def test_the_measurement_for_people() -> None:
    with sink() as taking:
        done = cli("--measure", f"127.0.0.1:{taking.port}", "--seconds", "1")
    assert done.errors == ""
    assert done.status == (0 if "Zero copy works here" in done.text else 1)
    assert f"Copying against zero copy to 127.0.0.1 port {taking.port}, by" in done.text
    for size, way in WAYS:
        assert f"{size >> 10 if size < 1 << 20 else size >> 20}" in done.text
        assert way in done.text
    assert "64 KiB: zero copy sends" in done.text
    assert "1 MiB: zero copy sends" in done.text
    assert "Nothing was zero-copied" in done.text


def test_zero_copy_is_asked_for_in_its_rounds_only(monkeypatch: pytest.MonkeyPatch) -> None:
    """Over loopback only completions differ: a zero-copy request has two."""
    if why_not("io_uring") is not None:
        missing("io_uring cannot run")
    import anyio

    completions: dict[str, list[tuple[int, int]]] = {"never": [], "always": []}
    made = _measure._round

    async def counted(ring: Any, stream: Any, data: bytes, policy: Any, seconds: float) -> Any:
        before = ring.statistics()
        result = await made(ring, stream, data, policy, seconds)
        after = ring.statistics()
        completions[policy].append(
            (after.requests - before.requests, after.completions - before.completions)
        )
        return result

    monkeypatch.setattr(_measure, "_round", counted)
    with sink() as taking:
        anyio.run(lambda: _measure.measure("127.0.0.1", taking.port, seconds=0.2))
    assert len(completions["always"]) == 2 * _measure.ROUNDS
    assert all(seen == requests for requests, seen in completions["never"])
    assert all(seen == 2 * requests for requests, seen in completions["always"])


def test_a_peer_that_is_not_there() -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        port = unused.getsockname()[1]
        done = cli("--json", "--measure", f"127.0.0.1:{port}", "--seconds", "1")
    assert done.status == 2
    assert done.errors.startswith(f"zc_anyio: 127.0.0.1 port {port} cannot be connected to: ")
    assert "refused" in done.errors or "111" in done.errors
    assert "Traceback" not in done.errors
    # The report itself is printed all the same.
    assert done.json["measurement"] is None
    assert done.json["capabilities"]["driver"]


def test_a_host_that_is_not_there() -> None:
    done = cli("--json", "--measure", "nobody.invalid:9", "--seconds", "1")
    assert done.status == 2
    assert done.errors.startswith("zc_anyio: nobody.invalid port 9 ")
    assert "Traceback" not in done.errors


def test_a_peer_that_resets() -> None:
    with sink(most=4 << 20) as taking:
        done = cli("--json", "--measure", f"127.0.0.1:{taking.port}", "--seconds", "30")
    assert done.status == 2
    assert done.errors.startswith(f"zc_anyio: 127.0.0.1 port {taking.port} broke the connection: ")
    assert "Traceback" not in done.errors


@pytest.mark.anyio
async def test_a_peer_that_reads_nothing(
    anyio_backend: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_measure, "STALLED_SECONDS", 0.5)
    # More than the sockets can take, so that it waits for the peer.
    monkeypatch.setattr(_measure, "WINDOW", MORE_THAN_FITS)
    with listener(receive_buffer=SMALL_BUFFER) as server:
        port = server.getsockname()[1]
        with pytest.raises(_measure.MeasurementFailed, match="did not take what was sent"):
            await _measure.measure("127.0.0.1", port, seconds=60)
