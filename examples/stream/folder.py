"""A folder whose files may be seen, and nothing outside of it."""

from __future__ import annotations

import mimetypes
import os
import stat
from dataclasses import dataclass
from pathlib import Path

from examples.web import HTTPError

__all__ = ["Entry", "Folder"]

LISTED_MOST = 1000
# What Python's table, or the system's, may not have.
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

    :ivar path: from the folder, with ``/``.
    """

    path: str
    size: int
    content_type: str


def content_type(name: str) -> str:
    """Return the type by a file's ending; of a compressed file, nothing about what is in it."""
    kind, encoding = TYPES.guess_type(name)
    if kind is None or encoding is not None:
        return "application/octet-stream"
    return f"{kind}; charset=utf-8" if kind.startswith("text/") else kind


class Folder:
    """Opens and lists files below a folder.

    Symbolic links may lead to another place in the folder.  Hidden files are not seen.

    :raises OSError: there is no such folder.
    """

    def __init__(self, path: Path) -> None:
        self._root = path.resolve(strict=True)

    def open(self, path: str) -> tuple[int, os.stat_result]:
        """Open a regular file and return its descriptor, which is the caller's to close.

        Blocks, so it is called in a worker thread.

        :raises HTTPError: 400, the path would leave the folder; 403, it does so by a symbolic link,
            or may not be read; 404, no such file.
        """
        parts = path.split("/")
        if ".." in parts:
            raise HTTPError(400, "The path leaves the folder")
        if not all(parts) or any(part.startswith(".") for part in parts):
            raise HTTPError(404)
        try:
            # Opened as a mere path first: opening a pipe or a device would do something to it.
            place = os.open(self._root.joinpath(*parts), os.O_PATH | os.O_CLOEXEC)
        except PermissionError:
            raise HTTPError(403) from None
        except OSError:
            raise HTTPError(404) from None
        try:
            # Where it has really led, whatever has been renamed or linked meanwhile.
            same = Path(f"/proc/self/fd/{place}")
            if not same.readlink().is_relative_to(self._root):
                raise HTTPError(403)
            status = os.fstat(place)
            if not stat.S_ISREG(status.st_mode):
                raise HTTPError(404)
            return os.open(same, os.O_RDONLY | os.O_CLOEXEC), status
        except PermissionError:
            raise HTTPError(403) from None
        finally:
            os.close(place)

    def list(self) -> list[Entry]:
        """Return the files, at most ``LISTED_MOST``, by path.

        Blocks, so it is called in a worker thread.
        """
        found: list[Entry] = []
        for directory, below, names in os.walk(self._root):
            below[:] = sorted(name for name in below if not name.startswith("."))
            for name in sorted(names):
                path = Path(directory, name)
                relative = str(path.relative_to(self._root))
                if name.startswith(".") or not path.is_file() or not _is_text(relative):
                    continue
                if path.resolve().is_relative_to(self._root):
                    found.append(Entry(relative, path.stat().st_size, content_type(name)))
                if len(found) == LISTED_MOST:
                    return found
        return found


def _is_text(name: str) -> bool:
    """Whether a name can stand in a URL, which is UTF-8."""
    try:
        name.encode()
    except UnicodeEncodeError:
        return False
    return True
