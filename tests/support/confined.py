"""Child processes with fewer rights, with which the library has to work."""

from __future__ import annotations

import subprocess
import sys
import textwrap
from pathlib import Path

import zc_anyio

# Put before a script; each line is a restriction that the script may choose by calling it.
CONFINE = '''
import os, resource, sys

def drop_privileges():
    """Become nobody: no CAP_IPC_LOCK, and an own account of locked memory."""
    os.setgroups([])
    os.setgid(65534)
    os.setuid(65534)

def lockable(size):
    resource.setrlimit(resource.RLIMIT_MEMLOCK, (size, size))
'''


def run_confined(script: str, *arguments: str) -> str:
    """Run a script in a process of its own that can import what this one can; return its output."""
    paths = [str(Path(zc_anyio.__file__).parents[1]), *sys.path]
    # Modules are imported before privileges are dropped: only root may read their directories.
    script = (
        f"import sys; sys.path[:0] = {paths!r}\n"
        "import anyio, socket, threading, hashlib, zc_anyio\n"
        "import anyio._backends._asyncio, encodings.idna, encodings.ascii, encodings.latin_1\n"
        + CONFINE
        + textwrap.dedent(script)
    )
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", script, *arguments],
        capture_output=True,
        text=True,
        timeout=140,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout
