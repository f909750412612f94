"""Results are kept in files that can be reviewed, and the pages agree with these files."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from benchmarks.measure.rounds import Result, Round
from benchmarks.report.page import rewrite
from benchmarks.report.results import CaseResults, Results
from tests.support.commands import ROOT

KEPT = ROOT / "docs" / "performance" / "results"
ENVIRONMENT = {"date": "2026-11-23 12:16 UTC", "kernel": "Linux 6.18"}


def measured() -> Results:
    """Make results of each kind: with and without memory and notes, failed, skipped."""
    rounds = [
        Round(10, 640, 0.125, 0.1, (4096, 1024), {"copied": 1, "staged": 9}),
        Round(10, 640, 0.25, 0.2, (8192, 2048), {"copied": 2, "staged": 8}),
    ]
    plain = [Round(20, 1280, 0.5, 0.25)]
    peers = [
        Result("one", rounds),
        Result("two", plain),
        Result("three", failure="Miscount: 1 byte"),
        Result("four", skipped="there is none here"),
    ]
    case = CaseResults("64 B", 64, 3, "lab", {peer.peer: peer for peer in peers})
    return Results({"stream": ENVIRONMENT}, {"stream": {"64 B": case}})


def test_what_was_written_is_read(tmp_path: Path) -> None:
    results = measured()
    results.write(tmp_path, "stream")
    assert Results.read(tmp_path) == results
    assert [file.name for file in tmp_path.iterdir()] == ["stream.jsonl"]


def test_measuring_a_peer_again_changes_one_line(tmp_path: Path) -> None:
    results = measured()
    results.write(tmp_path, "stream")
    before = (tmp_path / "stream.jsonl").read_text().splitlines()
    one = results.scenarios["stream"]["64 B"].peers["one"]
    one.rounds[1] = replace(one.rounds[1], seconds=0.375)
    results.write(tmp_path, "stream")
    after = (tmp_path / "stream.jsonl").read_text().splitlines()
    assert len(after) == len(before) == 6
    assert [a == b for a, b in zip(after, before, strict=True)].count(False) == 1


@pytest.mark.parametrize("page", ["performance.md", "performance/details.md", "performance/web.md"])
def test_the_pages_say_what_was_kept(page: str) -> None:
    results = Results.read(KEPT)
    assert len(results.scenarios) > 5
    text = (ROOT / "docs" / page).read_text(encoding="utf-8")
    assert rewrite(text, results) == text
