"""A folder to serve."""

from __future__ import annotations

import os
import random
from pathlib import Path

import pytest

SIZE = 3_000_001


@pytest.fixture(scope="session")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Files of all kinds, and things that must not be served."""
    root = tmp_path_factory.mktemp("stream")
    folder = root / "folder"
    (folder / "below").mkdir(parents=True)
    noise = random.Random(1)
    (folder / "film.mp4").write_bytes(noise.randbytes(SIZE))
    (folder / "small.webm").write_bytes(noise.randbytes(1000))
    (folder / "empty.mp4").write_bytes(b"")
    (folder / "notes.txt").write_text("some text\n")
    (folder / "page.html").write_text("<script>alert(1)</script>")
    (folder / "below" / 'Über <b> & "100%" #1?.webm').write_bytes(b"a strange name")
    (folder / ".hidden").write_text("nobody's business")
    (root / "secret.txt").write_text("outside")
    (folder / "out.txt").symlink_to(root / "secret.txt")
    (folder / "out").symlink_to(root)
    (folder / "to_hidden.txt").symlink_to(".hidden")
    (folder / "within.webm").symlink_to("small.webm")
    os.mkfifo(folder / "pipe.mp4")
    return folder
