"""Where and when something was measured."""

from __future__ import annotations

import os
import platform
import time
from importlib.metadata import version
from pathlib import Path

__all__ = ["environment"]


def environment(core: int, rounds: int, seconds: float | None) -> dict[str, str]:
    """Return what a reader of results needs to know about the machine, by name."""
    info = dict(
        line.split(":", 1) for line in Path("/proc/cpuinfo").read_text().splitlines() if ":" in line
    )
    model = next((value for name, value in info.items() if name.strip() == "model name"), "")
    pages = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    virtual = ", virtual" if "hypervisor" in Path("/proc/cpuinfo").read_text() else ""
    return {
        "date": time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime()),
        "kernel": f"{platform.system()} {platform.release()}",
        "machine": f"{model.strip() or platform.machine()}{virtual}, {os.cpu_count()} cores, "
        f"{round(pages / (1 << 30))} GiB",
        "pinned to": f"core {core}",
        "rounds": f"{rounds} of {seconds} s" if seconds else f"{rounds} that are too small to tell",
        "others running": f"load {os.getloadavg()[0]:.2f} when it began",
        "Python": platform.python_version(),
        **{name: version(name) for name in ("zc_anyio", "anyio", "trio", "uvloop")},
    }
