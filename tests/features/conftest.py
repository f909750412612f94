"""A file to send."""

from __future__ import annotations

import random
from pathlib import Path

import pytest

# No multiple of a page, nor of the pieces that a file is sent in.
SIZE = 9_000_001


@pytest.fixture(scope="session")
def content() -> bytes:
    return random.Random(1).randbytes(SIZE)


@pytest.fixture(scope="session")
def path(tmp_path_factory: pytest.TempPathFactory, content: bytes) -> Path:
    made = tmp_path_factory.mktemp("files") / "file"
    made.write_bytes(content)
    return made


@pytest.fixture
def cut(tmp_path: Path, content: bytes) -> Path:
    """A file that a test may truncate."""
    made = tmp_path / "cut"
    made.write_bytes(content)
    return made
