"""Write what was measured last into a page, with plots beside it."""

from __future__ import annotations

import argparse
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
    parser.add_argument("--page", type=Path, default=ROOT / "docs" / "performance.md")
    arguments = parser.parse_args()
    file = arguments.results / "results.json"
    if not file.exists():
        sys.exit(f"there are no results in {file}: measure first (make bench)")
    results = Results.read(file)
    arguments.page.write_text(rewrite(arguments.page.read_text(), results))
    plots = arguments.page.with_suffix("")
    draw(results, plots)
    (plots / "results.json").write_bytes(file.read_bytes())
    print(f"written: {arguments.page}, and plots and results.json in {plots}")


if __name__ == "__main__":
    main()
