"""Run a command in the lab: ``python -m benchmarks.lab COMMAND ARGUMENT ...``."""

from __future__ import annotations

import os
import sys

from benchmarks.lab.network import LabUnavailable, enter_lab

if __name__ == "__main__":
    if len(sys.argv) < 2:
        sys.exit("usage: python -m benchmarks.lab COMMAND [ARGUMENT ...]")
    try:
        enter_lab()
    except LabUnavailable as exc:
        sys.exit(f"the lab cannot be made: {exc}")
    os.execvp(sys.argv[1], sys.argv[1:])
