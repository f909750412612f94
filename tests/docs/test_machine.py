"""The page of `python -m zc_anyio` has every option and every part of the report."""

from __future__ import annotations

import dataclasses
import re
import sys

from tests.support.commands import ROOT, run
from zc_anyio._doctor.report import Report

PAGE = (ROOT / "docs" / "howto" / "machine.md").read_text(encoding="utf-8")


def test_the_page_has_every_option() -> None:
    done = run(sys.executable, "-m", "zc_anyio", "--help")
    options = set(re.findall(r"--[a-z]+", done.output)) - {"--help"}
    assert options
    assert options == set(re.findall(r"--[a-z]+", PAGE))


def test_the_page_has_every_part_of_the_report() -> None:
    parts = {field.name for field in dataclasses.fields(Report)}
    rows = re.findall(r"^\| (`.*?) \|", PAGE.partition("| in `--json`")[2], re.MULTILINE)
    assert parts == set(re.findall(r"`(\w+)`", " ".join(rows)))
