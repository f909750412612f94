"""Ctrl-C while a ring lets go of maps of files: the program gets it, and the ring goes on."""

from __future__ import annotations

import signal
from pathlib import Path
from typing import Any

import pytest
import trio

import zc_anyio
from tests.support.peers import receive_exactly, tcp_pair
from tests.support.waiting import LIMIT
from zc_anyio._files import maps


def test_ctrl_c_is_not_raised_where_maps_are_dropped(
    driver: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(maps, "KEPT_SECONDS", 0.04)
    take, pressed = maps.KeptMaps._take_unused, False

    def press(self: maps.KeptMaps, since: float) -> list[maps.FileMap]:
        nonlocal pressed
        if not pressed:
            pressed = True
            signal.raise_signal(signal.SIGINT)
        return take(self, since)

    monkeypatch.setattr(maps.KeptMaps, "_take_unused", press)
    path = tmp_path / "file"
    path.write_bytes(b"f" * 100_000)

    async def main() -> None:
        with tcp_pair() as (client, peer):
            async with zc_anyio.open_ring(driver=driver):
                async with zc_anyio.send_group() as group:
                    await group.send_file(client, path)
                    group.flush()
                    receive_exactly(peer, 100_000)
                with pytest.raises(KeyboardInterrupt):
                    await trio.sleep(LIMIT)
                async with zc_anyio.send_group() as group:
                    await group.send(client, b"goes on")
                assert receive_exactly(peer, 7) == b"goes on"

    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        trio.run(main)
    finally:
        signal.signal(signal.SIGINT, before)
    assert pressed
