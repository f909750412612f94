"""Explicitly reserved huge pages, which some peers send from."""

from __future__ import annotations

from pathlib import Path

__all__ = ["why_no_huge_pages"]

# For a pool of the largest buffers that are measured.
HUGE_PAGES_LEAST = 48
FREE = Path("/sys/kernel/mm/hugepages/hugepages-2048kB/free_hugepages")


def why_no_huge_pages(_options: dict[str, str]) -> str | None:
    """Return why huge pages cannot be used, or ``None``."""
    free = int(FREE.read_text()) if FREE.exists() else 0
    if free >= HUGE_PAGES_LEAST:
        return None
    return f"{HUGE_PAGES_LEAST} huge pages are needed, {free} are free (sysctl vm.nr_hugepages)"
