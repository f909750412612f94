"""The examples on the pages run as they are and print what the page says; links are not broken."""

from __future__ import annotations

import re
import runpy
from pathlib import Path

import pytest

from tests.examples.pages import (
    ROOT,
    Example,
    commands,
    examples,
    leads_somewhere,
    links,
    programs,
)

PAGES = [
    "README.md",
    *(str(path.relative_to(ROOT)) for path in sorted((ROOT / "docs").rglob("*.md"))),
]
EXAMPLES = [
    pytest.param(example, backend, id=f"{page}-{number}-{backend}")
    for page in PAGES
    for number, example in enumerate(examples(page), 1)
    for backend in example.backends
]


@pytest.mark.parametrize(("example", "backend"), EXAMPLES)
def test_an_example_runs(
    example: Example, backend: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    program = tmp_path / "example.py"
    program.write_text(example.on(backend), encoding="utf-8")
    runpy.run_path(str(program), run_name="__main__")
    printed = capsys.readouterr()
    assert not printed.err
    if example.output is None:
        assert "2621440 bytes arrived as they were sent" in printed.out
    else:
        assert printed.out == example.output


def test_every_program_is_an_example() -> None:
    assert {page: programs(page) for page in PAGES} == {page: len(examples(page)) for page in PAGES}


@pytest.mark.parametrize(
    ("page", "link"), [(page, link) for page in PAGES for link in sorted(links(page))]
)
def test_every_link_leads_somewhere(page: str, link: str) -> None:
    assert leads_somewhere(page, link)


@pytest.mark.parametrize("page", [*PAGES, "CONTRIBUTING.md", ".github/pull_request_template.md"])
def test_every_command_is_a_target_of_the_makefile(page: str) -> None:
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    targets = set(re.findall(r"^([a-z-]+):", makefile, re.MULTILINE))
    assert commands(page) <= targets
    if page == "README.md":
        assert {"demo", "test"} <= commands(page)
