"""Follows the links within a built site (``check_links.py <folder>``), but not those out of it."""

from __future__ import annotations

import sys
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit


class Page(HTMLParser):
    """The links of a page, and the anchors in it."""

    def __init__(self, file: Path) -> None:
        super().__init__()
        self.links: set[str] = set()
        self.anchors: set[str] = set()
        self.feed(file.read_text(encoding="utf-8"))

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        for name, value in attrs:
            if value and name in ("href", "src") and tag != "base":
                self.links.add(value)
            elif value and (name == "id" or (tag == "a" and name == "name")):
                self.anchors.add(value)


def broken(folder: Path) -> tuple[int, list[str]]:
    """Return how many links within the site there are, and those that lead nowhere."""
    pages = {file: Page(file) for file in sorted(folder.resolve().rglob("*.html"))}
    found, count = [], 0
    for file, page in pages.items():
        for link in sorted(page.links):
            parts = urlsplit(link)
            if parts.scheme or parts.netloc:
                continue
            count += 1
            target = (file.parent / unquote(parts.path)).resolve() if parts.path else file
            anchor = unquote(parts.fragment)
            known = pages[target].anchors if target in pages else set()
            if not target.is_file() or (anchor and anchor not in known):
                found.append(f"{file.relative_to(folder.resolve())}: {link}")
    return count, found


def main() -> None:
    """Print the broken links; fail if there are any."""
    count, found = broken(Path(sys.argv[1]))
    print(*found, f"{count} links within the site, {len(found)} broken", sep="\n")
    sys.exit(1 if found or not count else 0)


if __name__ == "__main__":
    main()
