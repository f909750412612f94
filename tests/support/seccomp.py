"""Forbidding io_uring to a program by a seccomp filter, the way containers do.

``python -m tests.support.seccomp ERRNO CALLS PROGRAM ...`` installs the filter and then becomes
the program.  CALLS is ``all``, or some of ``setup,enter,register``.
"""

from __future__ import annotations

import ctypes
import errno
import os
import struct
import sys
from collections.abc import Iterable

# The same on every architecture that Python runs on, but for Alpha.
CALLS = {"setup": 425, "enter": 426, "register": 427}

# linux/prctl.h, linux/seccomp.h
PR_SET_SECCOMP = 22
PR_SET_NO_NEW_PRIVS = 38
SECCOMP_MODE_FILTER = 2
RET_ERRNO, RET_ALLOW = 0x00050000, 0x7FFF0000
# linux/bpf_common.h: load a word, jump if equal, return.
LOAD, JUMP_IF_EQUAL, RETURN = 0x20, 0x15, 0x06


class Program(ctypes.Structure):
    _fields_ = (("length", ctypes.c_ushort), ("code", ctypes.c_void_p))


def forbid(number: int, calls: Iterable[int] = CALLS.values()) -> None:
    """Make system calls fail with an errno, for ever, in this process and its children."""
    calls = list(calls)
    code = [struct.pack("HBBI", LOAD, 0, 0, 0)]  # the number of the call comes first in its data
    for at, call in enumerate(calls):
        code.append(struct.pack("HBBI", JUMP_IF_EQUAL, len(calls) - at, 0, call))
    code.append(struct.pack("HBBI", RETURN, 0, 0, RET_ALLOW))
    code.append(struct.pack("HBBI", RETURN, 0, 0, RET_ERRNO | number))
    memory = ctypes.create_string_buffer(b"".join(code))
    program = Program(len(code), ctypes.addressof(memory))
    prctl(PR_SET_NO_NEW_PRIVS, 1, 0)
    prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, ctypes.addressof(program))


def prctl(option: int, first: int, second: int) -> None:
    """Call prctl(2)."""
    words = [ctypes.c_ulong(word) for word in (first, second, 0, 0)]
    if ctypes.CDLL(None, use_errno=True).prctl(option, *words) != 0:
        number = ctypes.get_errno()
        raise OSError(number, f"prctl({option}): {os.strerror(number)}")


if __name__ == "__main__":
    _, name, chosen, *program = sys.argv
    names = CALLS if chosen == "all" else chosen.split(",")
    forbid(getattr(errno, name), [CALLS[call] for call in names])
    os.execvp(program[0], program)
