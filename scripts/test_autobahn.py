"""Run the cases of the Autobahn test suite of WebSockets against ``python -m zc_anyio.asgi``.

The suite is a client that breaks the protocol in some five hundred ways.  It runs on Python 2.7,
whose packages are kept in a folder of their own here.  Most of the time goes into compressing, at
both ends, a thousand messages a case.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import socket
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
APP = "tests.asgi.served_app:echo"
# Not strict: what came right before a violation need not be answered.
PASSED = {"OK", "NON-STRICT", "INFORMATIONAL"}


# What a part of the suite is: the protocol, messages that are compressed, and by which parameters.
PROTOCOL = ("1.*", "2.*", "3.*", "4.*", "5.*", "6.*", "7.*", "9.*", "10.*")
PARTS = (
    ("uvloop", ("12.*",)),
    ("uvloop", ("13.*",)),
    *[(backend, PROTOCOL) for backend in ("asyncio", "uvloop", "trio")],
)


def main() -> int:
    """Run what the command line asks for; return the exit status."""
    parser = argparse.ArgumentParser(prog="test_autobahn.py", description=__doc__)
    parser.add_argument("python2", help="a Python 2.7 with pip")
    parser.add_argument("folder", type=Path, help="for the suite and its reports")
    parser.add_argument(
        "--backend",
        action="append",
        choices=("asyncio", "uvloop", "trio"),
        help="run everything on this event loop; repeatable (the protocol on each, compression on "
        "uvloop)",
    )
    parser.add_argument("--case", action="append", help="'12.1.*', for example; repeatable (all)")
    arguments = parser.parse_args()
    folder = arguments.folder.resolve()
    # Where Python 2.7 looks for what was installed with --user.
    environment = {**os.environ, "PYTHONUSERBASE": str(folder / "python")}
    if not (folder / "python" / "bin" / "wstest").exists():
        _install(arguments.python2, environment)
    chosen = PARTS
    if arguments.backend or arguments.case:
        cases = tuple(arguments.case or ["*"])
        chosen = tuple((backend, cases) for backend in arguments.backend or ["uvloop"])
    run = partial(_run, folder, environment)
    with ThreadPoolExecutor(os.cpu_count()) as threads:
        failed = list(threads.map(run, range(len(chosen)), *zip(*chosen, strict=True)))
    return 1 if sum(failed) else 0


def _run(
    folder: Path, environment: dict[str, str], number: int, backend: str, cases: Sequence[str]
) -> int:
    """Run a part of the suite, tell how it went, and return how many cases failed."""
    reports = folder / f"reports-{number}"
    shutil.rmtree(reports, ignore_errors=True)
    reports.mkdir()
    specification, log = reports / "specification.json", reports / "server.log"
    with _serving(backend, log) as url:
        content = {
            "outdir": str(reports),
            "servers": [{"agent": backend, "url": url}],
            "cases": cases,
            "exclude-cases": [],
            "exclude-agent-cases": {},
        }
        specification.write_text(json.dumps(content))
        subprocess.run(
            [folder / "python/bin/wstest", "--mode", "fuzzingclient", "--spec", specification],
            env=environment,
            check=True,
            stdout=subprocess.DEVNULL,
        )
    return _tell(backend, reports) + _complaints(log)


def _install(python2: str, environment: dict[str, str]) -> None:
    print("test-autobahn: installing the suite", flush=True)
    subprocess.run(
        [
            *(python2, "-W", "ignore", "-m", "pip", "--disable-pip-version-check", "--quiet"),
            *("install", "--user", "--no-warn-script-location", "autobahntestsuite"),
        ],
        env=environment,
        check=True,
    )


@contextmanager
def _serving(backend: str, log: Path) -> Iterator[str]:
    """Serve the application that echoes, on a socket that takes connections from the start."""
    command = [sys.executable, "-m", "zc_anyio.asgi", APP, "--backend", backend, "--fd"]
    with socket.create_server(("127.0.0.1", 0)) as sock, log.open("w") as stderr:
        fd, port = sock.fileno(), sock.getsockname()[1]
        with subprocess.Popen(
            [*command, str(fd)], cwd=ROOT, stderr=stderr, pass_fds=[fd]
        ) as server:
            sock.close()
            try:
                yield f"ws://127.0.0.1:{port}"
            finally:
                server.terminate()


def _tell(backend: str, reports: Path) -> int:
    """Print how the cases went, and return how many failed."""
    cases = json.loads((reports / "index.json").read_text())[backend]
    failed = 0
    for name, case in sorted(cases.items(), key=lambda item: _number(item[0])):
        if not {case["behavior"], case["behaviorClose"]} <= PASSED:
            failed += 1
            print(f"  {name}: {case['behavior']}, closed {case['behaviorClose']}")
    counts = Counter(case["behavior"] for case in cases.values())
    told = ", ".join(f"{count} {behaviour}" for behaviour, count in counts.most_common())
    print(f"test-autobahn: {len(cases)} cases on {backend}: {told}; reports in {reports}")
    return failed or not cases


def _complaints(log: Path) -> int:
    """Print what the server logged but should not have, and return how many lines that is."""
    lines = [line for line in log.read_text().splitlines() if not line.startswith("INFO:")]
    for line in lines:
        print(f"  logged: {line}")
    return len(lines)


def _number(name: str) -> list[int]:
    return [int(part) for part in name.split(".")]


if __name__ == "__main__":
    sys.exit(main())
