"""The check of the site's links finds broken ones."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from tests.support.commands import ROOT, run

PAGE = '<h1 id="top">One</h1><a href="{}">there</a><a href="https://example.org/none">away</a>'


@pytest.mark.parametrize(
    ("link", "leads"),
    [
        ("two/page.html#part", True),
        ("#top", True),
        ("two/page.html#none", False),
        ("#none", False),
        ("none.html", False),
    ],
)
def test_a_link_within_the_site(link: str, leads: bool, tmp_path: Path) -> None:
    (tmp_path / "two").mkdir()
    (tmp_path / "two" / "page.html").write_text('<p id="part">Two</p>')
    (tmp_path / "index.html").write_text(PAGE.format(link))
    done = run(sys.executable, str(ROOT / "scripts" / "check_links.py"), str(tmp_path))
    assert done.status == (0 if leads else 1), done.errors
    assert (f"index.html: {link}" in done.output.splitlines()) != leads


def test_a_site_without_links_is_a_failure(tmp_path: Path) -> None:
    done = run(sys.executable, str(ROOT / "scripts" / "check_links.py"), str(tmp_path))
    assert done.status == 1
