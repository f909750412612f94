"""What is written for people: its examples, and its links."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
BACKENDS = {
    "asyncio": "anyio.run(main)",
    "uvloop": 'anyio.run(main, backend_options={"use_uvloop": True})',
    "trio": 'anyio.run(main, backend="trio")',
}


@dataclass(frozen=True)
class Example:
    """A program on a page, and what the page says that it prints."""

    program: str
    output: str | None

    def on(self, backend: str) -> str:
        """Return the program for an event loop; those that are for trio alone stay as they are."""
        return self.program.replace("\nanyio.run(main)\n", f"\n{BACKENDS[backend]}\n")

    @property
    def backends(self) -> list[str]:
        """The event loops that it can run on."""
        return list(BACKENDS) if self.program.endswith("\nanyio.run(main)\n") else ["trio"]


def examples(page: str) -> list[Example]:
    """Return the marked examples of a page, each with the text block after it, if any."""
    found = re.findall(
        r"^<!-- example -->\n```python\n(.*?)^```\n(?:\n```text\n(.*?)^```$)?",
        (ROOT / page).read_text(encoding="utf-8"),
        re.DOTALL | re.MULTILINE,
    )
    return [Example(program, output or None) for program, output in found]


def programs(page: str) -> int:
    """Return how many blocks of Python a page has, marked or not."""
    return (ROOT / page).read_text(encoding="utf-8").count("```python\n")


def commands(page: str) -> set[str]:
    """Return the targets of ``make`` that a page names, in code spans and at the start of lines."""
    text = (ROOT / page).read_text(encoding="utf-8")
    given = re.findall(r"(?:`|^)make ([^`\n#]+)", text, re.MULTILINE)
    without_values = [re.sub(r"[A-Z_]+=(\"[^\"]*\"|\S*)", "", one) for one in given]
    return {name for one in without_values for name in one.split()}


def links(page: str) -> set[str]:
    """Return the links of a page that lead to files here, or to headings."""
    return set(re.findall(r"\]\((?!https?:)([^)]+)\)", (ROOT / page).read_text(encoding="utf-8")))


def leads_somewhere(page: str, link: str) -> bool:
    """Whether a link's file exists, and has the heading."""
    name, _, heading = link.partition("#")
    file = (ROOT / page).parent / name if name else ROOT / page
    return file.exists() and (not heading or heading in headings(file))


def headings(file: Path) -> set[str]:
    """Return the anchors that a page's headings have when it is shown."""
    titles = re.findall(r"^#+ (.*)$", file.read_text(encoding="utf-8"), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}
