"""Write the latest results into the pages of results, with plots beside them.

A scenario that was measured replaces its earlier results; the others stay.
"""

from __future__ import annotations

import argparse
import shutil
import sys
from pathlib import Path

from benchmarks.report.page import rewrite
from benchmarks.report.plots import draw
from benchmarks.report.results import Results

ROOT = Path(__file__).resolve().parents[2]


def main() -> None:
    """Read the command line and write."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.report", description=__doc__)
    parser.add_argument("--results", type=Path, default=ROOT / "benchmarks" / "results")
    parser.add_argument(
        "--page",
        type=Path,
        default=ROOT / "docs" / "performance.md",
        help="the first page; other pages, plots and kept results are in the folder of its name",
    )
    arguments = parser.parse_args()
    folder = arguments.page.with_suffix("")
    kept = folder / "results"
    kept.mkdir(parents=True, exist_ok=True)
    measured = sorted(arguments.results.glob("*.jsonl"))
    for file in measured:
        shutil.copy(file, kept)
    results = Results.read(kept)
    if not results.scenarios:
        sys.exit(f"there are no results in {arguments.results}: measure first (make bench)")
    draw(results, folder)
    for page in (arguments.page, folder / "details.md", folder / "web.md"):
        page.write_text(rewrite(page.read_text(), results))
    names = ", ".join(file.stem for file in measured) or "nothing; the pages are written anew"
    print(f"written: {arguments.page} and {folder}; measured anew: {names}")


if __name__ == "__main__":
    main()
