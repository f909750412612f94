"""Child processes with fewer rights: what they are refused, the library has to live with."""

from __future__ import annotations

import subprocess
import sys
import textwrap
from pathlib import Path

import zc_anyio

# Put before a script; each line is a restriction that the script may choose by calling it.
CONFINE = '''
import ctypes, os, resource, struct, sys

def drop_privileges():
    """Become nobody: no CAP_IPC_LOCK, and an own account of locked memory."""
    os.setgroups([])
    os.setgid(65534)
    os.setuid(65534)

def lockable(size):
    resource.setrlimit(resource.RLIMIT_MEMLOCK, (size, size))

def forbid(call, number):
    """Have a seccomp filter answer one system call with an errno."""
    libc = ctypes.CDLL(None, use_errno=True)
    load, equal, give, allow = 0x20, 0x15, 0x06, 0x7fff0000
    program = struct.pack("HBBI" * 4, load, 0, 0, 0, equal, 0, 1, call,
                          give, 0, 0, 0x00050000 | number, give, 0, 0, allow)
    text = ctypes.create_string_buffer(program)
    header = ctypes.create_string_buffer(struct.pack("HxxxxxxP", 4, ctypes.addressof(text)))
    PR_SET_NO_NEW_PRIVS, PR_SET_SECCOMP, SECCOMP_MODE_FILTER = 38, 22, 2
    assert libc.prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) == 0
    assert libc.prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, header, 0, 0) == 0, ctypes.get_errno()
'''
IO_URING_SETUP = 425  # the same number on every architecture


def run_confined(script: str, *arguments: str) -> str:
    """Run a script in a process of its own that can import what this one can; return its output."""
    paths = [str(Path(zc_anyio.__file__).parents[1]), *sys.path]
    # Modules are imported before privileges are dropped: their directories may be root's alone.
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
