"""A folder whose files may be seen, but nothing outside it."""

from __future__ import annotations

import mimetypes
import os
import stat
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from starlette.exceptions import HTTPException

__all__ = ["Entry", "Folder"]

LISTED_MOST = 1000
# Types that Python's table, or the system's, may lack.
TYPES = mimetypes.MimeTypes()
for kind, ending in (
    ("video/mp4", ".m4v"),
    ("video/webm", ".webm"),
    ("video/x-matroska", ".mkv"),
    ("video/ogg", ".ogv"),
    ("audio/ogg", ".opus"),
    ("text/vtt", ".vtt"),
):
    TYPES.add_type(kind, ending)


@dataclass(frozen=True, slots=True)
class Entry:
    """A file of the folder.

    :ivar path: its path from the folder, with ``/``.
    """

    path: str
    size: int
    content_type: str


def content_type(name: str) -> str:
    """Return the type by a file's ending; for a compressed file, not the type of its content."""
    kind, encoding = TYPES.guess_type(name)
    if kind is None or encoding is not None:
        return "application/octet-stream"
    return f"{kind}; charset=utf-8" if kind.startswith("text/") else kind


class Folder:
    """Opens and lists files below a folder.

    Symbolic links may lead to another place in the folder.  Hidden files are left out, also those
    that a link leads to.

    :raises OSError: the folder does not exist.
    """

    def __init__(self, path: Path) -> None:
        self._root = path.resolve(strict=True)

    def open(self, path: str) -> tuple[int, os.stat_result]:
        """Find a regular file; return a descriptor of its place, which the caller has to close.

        ``/proc/self/fd/`` and the descriptor is a path by which the same file is opened, whatever
        was renamed or linked meanwhile.  Blocks, so it is called in a worker thread.

        :raises HTTPException: 400, the path would leave the folder; 403, it does so by a symbolic
            link, or may not be read; 404, no such file.
        """
        parts = path.split("/")
        if ".." in parts or "\0" in path:
            raise HTTPException(400, "The path leaves the folder")
        if not all(parts) or _is_hidden(parts):
            raise HTTPException(404)
        try:
            # First opened as a path only: really opening a pipe or a device has effects.
            place = os.open(self._root.joinpath(*parts), os.O_PATH | os.O_CLOEXEC)
        except PermissionError:
            raise HTTPException(403) from None
        except OSError:
            raise HTTPException(404) from None
        try:
            same = Path(f"/proc/self/fd/{place}")
            found = same.readlink()
            if not found.is_relative_to(self._root):
                raise HTTPException(403)
            status = os.fstat(place)
            if not stat.S_ISREG(status.st_mode) or _is_hidden(found.relative_to(self._root).parts):
                raise HTTPException(404)
            if not os.access(same, os.R_OK):
                raise HTTPException(403)
        except BaseException:
            os.close(place)
            raise
        return place, status

    def list(self) -> list[Entry]:
        """Return the files, at most ``LISTED_MOST``, by path.

        Blocks, so it is called in a worker thread.

        :raises OSError: the folder cannot be read.
        """
        os.scandir(self._root).close()
        found: list[Entry] = []
        for directory, below, names in os.walk(self._root):
            below[:] = sorted(name for name in below if not name.startswith("."))
            for name in sorted(names):
                path = Path(directory, name)
                relative = str(path.relative_to(self._root))
                if name.startswith(".") or not path.is_file() or not _is_text(relative):
                    continue
                real = path.resolve()
                if real.is_relative_to(self._root) and not _is_hidden(
                    real.relative_to(self._root).parts
                ):
                    with suppress(FileNotFoundError):  # it was removed meanwhile
                        found.append(Entry(relative, real.stat().st_size, content_type(name)))
                if len(found) == LISTED_MOST:
                    return found
        return found


def _is_text(name: str) -> bool:
    """Whether a name can be put into a URL, which is UTF-8."""
    try:
        name.encode()
    except UnicodeEncodeError:
        return False
    return True


def _is_hidden(parts: Iterable[str]) -> bool:
    return any(part.startswith(".") for part in parts)
