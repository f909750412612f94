"""What a long run reports for wrong bytes, and for a process that grows."""

from __future__ import annotations

from collections import Counter
from typing import Any

import pytest

from tests.soak.frames import DATA, END, HEADER, Checker, WrongBytesError, frame, header
from tests.soak.samples import Sample, growth

FRAMES = [frame(1, 0, 1000), frame(2, 0, 70_000), frame(1, 1, 0), frame(1, 2, 5)]


def checked(data: bytes, step: int = 1 << 20) -> Checker:
    checker = Checker()
    for start in range(0, len(data), step):
        checker.feed(data[start : start + step])
    return checker


@pytest.mark.parametrize("step", [1, 7, HEADER.size, 4096, 1 << 20])
def test_what_was_sent_is_right_in_any_pieces(step: int) -> None:
    checker = checked(b"".join(FRAMES) + header(END, number=4), step)
    assert (checker.frames, checker.ended, checker.is_whole) == (4, True, True)


def test_frames_that_were_taken_back_may_be_missing() -> None:
    assert checked(FRAMES[0] + FRAMES[3]).frames == 2


def test_a_frame_that_is_cut_is_not_whole() -> None:
    assert not checked(FRAMES[1][:-1]).is_whole
    assert not checked(FRAMES[1][:3]).is_whole


@pytest.mark.parametrize(
    ("what", "data"),
    [
        ("changed", FRAMES[0][:-1] + b"\0" + FRAMES[1]),
        ("hole", FRAMES[1][:50_000] + FRAMES[1][50_001:] + FRAMES[0]),
        ("order", FRAMES[3] + FRAMES[0]),
        ("twice", FRAMES[0] + FRAMES[0]),
        ("no frame", bytes(HEADER.size)),
        ("missing at the end", FRAMES[0] + header(END, number=2)),
        ("behind the end", header(END) + b"x"),
        ("too long", header(DATA, size=1 << 30)),
    ],
)
def test_what_is_wrong_is_found(what: str, data: bytes) -> None:
    with pytest.raises(WrongBytesError):
        checked(data)


QUIET: dict[str, Any] = {
    "memory": 50 << 20,
    "maps": 300,
    "descriptors": 25,
    "objects": 30_000,
    "own": 400,
    "contexts": 8,
    "sockets": 8,
    "allocations": 50,
    "receivers": 0,
    "types": Counter(),
}


def samples(**more: int) -> list[Sample]:
    """Nine samples, in which something grows by so much from each to the next."""
    return [
        Sample(**{k: v + n * more.get(k, 0) if k != "types" else v for k, v in QUIET.items()})
        for n in range(9)
    ]


def test_a_value_that_fluctuates_has_not_grown() -> None:
    quiet = samples()
    quiet[1] = Sample(**{**QUIET, "memory": 60 << 20, "descriptors": 40})
    quiet[7] = Sample(**{**QUIET, "memory": 60 << 20, "descriptors": 40})
    assert growth(quiet) == []


@pytest.mark.parametrize(
    ("name", "step"),
    [("memory", 1 << 20), ("maps", 4), ("objects", 500), ("own", 9), ("allocations", 9)]
    + [(name, 1) for name in ("descriptors", "contexts", "sockets", "receivers")],
)
def test_what_grows_is_found(name: str, step: int) -> None:
    found = growth(samples(**{name: step}))
    assert found
    assert found[0].startswith(f"{name} grew")


@pytest.mark.parametrize(
    ("count", "mebibytes", "grown"), [(6, 3, 0), (6, 6, 1), (30, 2, 0), (30, 3, 1)]
)
def test_a_short_run_cannot_tell_a_little_memory_from_a_leak(
    count: int, mebibytes: int, grown: int
) -> None:
    more = Sample(**{**QUIET, "memory": QUIET["memory"] + (mebibytes << 20)})
    half = count // 2
    assert len(growth([Sample(**QUIET)] * half + [more] * half)) == grown
