"""The README's example runs as it stands, and its links lead somewhere."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
README = (ROOT / "README.md").read_text(encoding="utf-8")
BACKENDS = {
    "asyncio": "anyio.run(main)",
    "uvloop": 'anyio.run(main, backend_options={"use_uvloop": True})',
    "trio": 'anyio.run(main, backend="trio")',
}


def example() -> str:
    [found] = re.findall(
        r"^<!-- example -->\n```python\n(.*?)^```$", README, re.DOTALL | re.MULTILINE
    )
    return found


@pytest.mark.parametrize("backend", BACKENDS)
def test_the_example_runs(tmp_path: Path, backend: str) -> None:
    assert example().endswith("\nanyio.run(main)\n")
    program = tmp_path / "example.py"
    program.write_text(
        example().replace("\nanyio.run(main)\n", f"\n{BACKENDS[backend]}\n"), encoding="utf-8"
    )
    done = subprocess.run(
        # The working directory is the root, from where the package can be imported in any case.
        [sys.executable, "-W", "error", "-c", f"import runpy; runpy.run_path({str(program)!r})"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=50,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert not done.stderr
    assert "2621440 bytes arrived as they were sent" in done.stdout


@pytest.mark.parametrize("link", sorted(set(re.findall(r"\]\((?!https?:)([^)#]+)", README))))
def test_every_link_leads_to_a_file(link: str) -> None:
    assert (ROOT / link).exists()


def test_every_command_is_a_target_of_the_makefile() -> None:
    targets = re.findall(
        r"^([a-z-]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE
    )
    commands = set(re.findall(r"`?\bmake ([a-z-]+)`|^make ([a-z-]+) ", README, re.MULTILINE))
    named = {one or other for one, other in commands}
    assert {"demo", "test"} <= named
    assert named <= set(targets)
