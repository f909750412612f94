"""Running programs as a user does: real child processes, which end with the test."""

from __future__ import annotations

import functools
import json
import os
import resource
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.support.needs import missing, need_command

ROOT = Path(__file__).resolve().parents[2]
LIMIT_SECONDS = 45


@dataclass(frozen=True)
class Finished:
    """What a child process left: its exit status, and what it wrote."""

    status: int
    output: str
    errors: str

    @property
    def text(self) -> str:
        """The output without the line breaks and columns that a table has put into it."""
        return " ".join(self.output.split())

    @property
    def json(self) -> Any:
        return json.loads(self.output)


def run(*command: str, under: Sequence[str] = (), **variables: str) -> Finished:
    """Run a command to its end, in the root of the project.

    :param under: a command that becomes this one, after it has restricted itself.
    """
    done = subprocess.run(
        [*under, *command],
        cwd=ROOT,
        env={**os.environ, **variables},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=LIMIT_SECONDS,
        check=False,
    )
    return Finished(done.returncode, done.stdout, done.stderr)


def cli(*arguments: str, under: Sequence[str] = (), **variables: str) -> Finished:
    """Run ``python -m zc_anyio``; what it leaves open is an error."""
    return run(
        *(sys.executable, "-W", "error::ResourceWarning", "-m", "zc_anyio", *arguments),
        under=under,
        **variables,
    )


# --- restrictions, to be given as `under` ---


def forbidden(name: str, calls: str = "all") -> list[str]:
    """System calls of io_uring fail with an errno."""
    if (reason := _why_no_seccomp()) is not None:
        missing(f"no seccomp filter can be installed: {reason}")
    return [sys.executable, "-m", "tests.support.seccomp", name, calls]


def memlock(limit: int, *, cap_ipc_lock: bool = False) -> list[str]:
    """Set RLIMIT_MEMLOCK, and drop CAP_IPC_LOCK unless the process should keep it."""
    _, hard = resource.getrlimit(resource.RLIMIT_MEMLOCK)
    if hard != resource.RLIM_INFINITY and hard < limit:
        missing(f"RLIMIT_MEMLOCK cannot be raised to {limit}")
    command = [need_command("prlimit", "util-linux"), f"--memlock={limit}:{limit}"]
    if cap_ipc_lock:
        if os.geteuid() != 0:
            missing("keeping CAP_IPC_LOCK needs root")
    elif os.geteuid() == 0:
        setpriv = need_command("setpriv", "util-linux")
        # At exec root gets the capabilities in the bounding set.
        command = [setpriv, "--bounding-set", "-ipc_lock", *command]
    if (refused := run(*command, "true")).status != 0:
        missing(f"{' '.join(command)} does not work here: {refused.errors.strip()}")
    return command


@functools.cache
def _why_no_seccomp() -> str | None:
    tried = run(sys.executable, "-m", "tests.support.seccomp", "EPERM", "all", "true")
    return None if tried.status == 0 else tried.errors.strip().rpartition("\n")[2]
