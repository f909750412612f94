"""Build of the extension module ``zc_anyio._native._zc`` (cffi API mode, stable ABI).

``zc.h`` is written once: the text between its ``/* cdef begin */`` and ``/* cdef end */`` lines is
what cffi, and so Python, sees.  The C files next to this one are compiled with strict warnings;
the wrapper that cffi generates is compiled apart from them, because it does not pass those.

liburing is linked statically, so a built wheel runs on machines that do not have it.

``ZC_SANITIZE=1`` in the environment builds with AddressSanitizer and
UndefinedBehaviorSanitizer, and with ``assert`` enabled.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path
from typing import Any, NoReturn

from cffi import FFI
from setuptools import Extension
from setuptools.command.build_ext import build_ext

MODULE = "zc_anyio._native._zc"
LIBURING_MINIMUM = "2.3"

# setuptools wants the paths of sources relative to setup.py, whose directory is the current one.
NATIVE = Path("_native")
HERE = Path(__file__).resolve().parent

STRICT = ["-std=gnu11", "-O2", "-Wall", "-Wextra", "-Werror", "-fvisibility=hidden"]
WRAPPER = ["-std=gnu11", "-O2", "-w", "-fvisibility=hidden"]
SANITIZERS = ["-fsanitize=address,undefined", "-fno-sanitize-recover=undefined"]
SANITIZE = [*SANITIZERS, "-fno-omit-frame-pointer", "-g", "-O1", "-UNDEBUG"]

# The symbols of liburing.a stay inside the extension module.
LINK = ["-Wl,--exclude-libs,ALL"]

# Free-threaded builds of CPython 3.13 and 3.14 have no stable ABI.
STABLE_ABI = not sysconfig.get_config_var("Py_GIL_DISABLED")


def stop(reason: str, packages: str) -> NoReturn:
    """End the build with one sentence that says what to install."""
    raise SystemExit(f"zc_anyio cannot be built: {reason}; install it with: apt install {packages}")


def cdef() -> str:
    """Return the declarations of ``zc.h`` that Python sees, as cffi reads them."""
    header = (HERE / "zc.h").read_text(encoding="utf-8")
    found = re.findall(
        r"^/\* cdef begin \*/$(.*?)^/\* cdef end \*/$", header, re.DOTALL | re.MULTILINE
    )
    if not found:
        raise SystemExit("_native/zc.h has no /* cdef begin */ ... /* cdef end */ lines")
    # The compiler computes the value, so a constant may be any integer expression.
    constant = re.compile(r"^#define[ \t]+(\w+)[ \t]+\S.*$", re.MULTILINE)
    return constant.sub(r"#define \1 ...", "".join(found))


def write_wrapper(path: Path) -> None:
    """Write the C file that makes ``zc.h`` a Python module."""
    ffi = FFI()
    ffi.cdef(cdef())
    ffi.set_source(MODULE, '#include "zc.h"\n')
    path.parent.mkdir(parents=True, exist_ok=True)
    ffi.emit_c_code(str(path))


def pkg_config(*arguments: str) -> str | None:
    """Return what pkg-config says about liburing, or None when it knows no such liburing."""
    command = os.environ.get("PKG_CONFIG", "pkg-config")
    if shutil.which(command) is None:
        stop(f"the command {command} is missing", "pkg-config")
    answer = subprocess.run(
        [command, *arguments, "liburing"], capture_output=True, text=True, check=False
    )
    return answer.stdout.strip() if answer.returncode == 0 else None


def find_liburing() -> tuple[list[str], str]:
    """Return the compiler flags for liburing's headers and the path of ``liburing.a``."""
    if pkg_config("--atleast-version", LIBURING_MINIMUM) is None:
        stop(f"liburing {LIBURING_MINIMUM} or newer is missing", "liburing-dev")
    libdir = pkg_config("--variable=libdir")
    archive = Path(libdir or "", "liburing.a")
    if not archive.is_file():
        stop("the static library liburing.a is missing", "liburing-dev")
    return (pkg_config("--cflags") or "").split(), str(archive)


class BuildExt(build_ext):
    """Compiles the extension's own sources strictly, and the wrapper of cffi beside them."""

    def finalize_options(self) -> None:
        super().finalize_options()
        # A build with sanitizers cannot be told from an ordinary one by time stamps.
        self.force = True

    def build_extension(self, ext: Extension) -> None:
        # setuptools gives this object its compiler only while it runs, and does not type it.
        compiler: Any = self.compiler
        if shutil.which(compiler.compiler_so[0]) is None:
            stop(f"the C compiler {compiler.compiler_so[0]} is missing", "gcc libc6-dev")
        if not Path(sysconfig.get_path("include"), "Python.h").is_file():
            version = f"{sys.version_info.major}.{sys.version_info.minor}"
            stop(f"the header Python.h of Python {version} is missing", f"python{version}-dev")
        cflags, archive = find_liburing()
        sanitize = os.environ.get("ZC_SANITIZE") == "1"

        wrapper = Path(self.build_temp) / "zc_wrapper.c"
        write_wrapper(wrapper)
        objects = compiler.compile(
            [str(wrapper)],
            include_dirs=ext.include_dirs,
            extra_postargs=[*cflags, *WRAPPER, *(SANITIZE if sanitize else [])],
        )

        ext.extra_compile_args = [*cflags, *STRICT, *(SANITIZE if sanitize else [])]
        ext.extra_link_args = [*LINK, *(SANITIZERS if sanitize else [])]
        # An archive serves only the objects that precede it on the linker's command line.
        ext.extra_objects = [*objects, archive]
        super().build_extension(ext)


def setup_arguments() -> dict[str, Any]:
    """Return the arguments of ``setuptools.setup`` that pyproject.toml cannot express."""
    if sys.platform != "linux":
        return {}
    sources = sorted(str(NATIVE / path.relative_to(HERE)) for path in HERE.rglob("*.c"))
    headers = sorted(str(NATIVE / path.relative_to(HERE)) for path in HERE.rglob("*.h"))
    extension = Extension(
        MODULE,
        sources,
        include_dirs=[str(NATIVE)],
        # Source distributions include these as well as the sources.
        depends=[*headers, str(NATIVE / "build.py")],
        py_limited_api=STABLE_ABI,
    )
    arguments: dict[str, Any] = {"ext_modules": [extension], "cmdclass": {"build_ext": BuildExt}}
    if STABLE_ABI:
        arguments["options"] = {"bdist_wheel": {"py_limited_api": "cp311"}}
    return arguments
