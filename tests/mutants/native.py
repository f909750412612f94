"""Changes the native part in small ways, one at a time, and checks whether the tests notice.

Run in a copy of the project (`make mutants` makes one), which it leaves with the last change built.
Each change is compiled and linked; the native tests run, the quick ones first, then the model, and
at last the kept inputs of the fuzz target.  A change that passes all of them has survived.  What
was tried is kept in a file, so that a sweep can be continued.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import random
import re
import signal
import subprocess
import sys
import sysconfig
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType

ACCOUNTING = Path("_native/accounting")
# Pattern, replacement.  Each place that a pattern matches is a change of its own.
OPERATORS = [
    (r" == ", " != "),
    (r" != ", " == "),
    (r" < ", " <= "),
    (r" <= ", " < "),
    (r" > ", " >= "),
    (r" >= ", " > "),
    (r" && ", " || "),
    (r" \|\| ", " && "),
    (r" \+ ", " - "),
    (r" - ", " + "),
    (r" \+= ", " -= "),
    (r" -= ", " += "),
    (r"\+\+", "--"),
    (r"(?<!-)--(?!>)", "++"),
    (r"\btrue\b", "false"),
    (r"\bfalse\b", "true"),
    (r"\b0\b", "1"),
    (r"\b1\b", "2"),
    (r"\bif \((?!!)", "if (!"),
    (r"!(?=[a-z])", ""),
    (r" \? ", " ? 0 && "),
]
# Statements that are dropped: a call or an assignment.
STATEMENT = re.compile(r"^\s+[a-z*][\w\[\]>.*-]*(\(.*\)| [-+|]?= .*|\+\+|--);$")
QUICK_SECONDS, LONG_SECONDS = 60, 300
PYTEST = ["-m", "pytest", "-q", "-x", "-n", "0", "-p", "no:cacheprovider"]
TESTS = "tests/native"
MODEL = "tests/native/test_accounting.py"


@dataclass(frozen=True)
class Change:
    file: str
    line: int
    column: int
    before: str
    after: str

    def __str__(self) -> str:
        return f"{self.file}:{self.line}: {self.before.strip()}  ->  {self.after.strip()}"


def changes(path: Path) -> Iterator[Change]:
    """Yield each small change of a file."""
    in_comment = False
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
        code = line.split("/*")[0]
        commented, in_comment = in_comment, (in_comment or "/*" in line) and "*/" not in line
        if commented or not code.strip() or code.startswith("#") or not code.startswith(" "):
            continue
        for pattern, to in OPERATORS:
            for found in re.finditer(pattern, code):
                after = code[: found.start()] + to + code[found.end() :]
                if pattern.startswith(r"\bif"):
                    # The whole condition, where it is on one line.
                    negated = re.sub(r"\bif \((.*)\)( \{)?$", r"if (!(\1))\2", code)
                    if negated == code:
                        continue
                    after = negated
                yield Change(str(path), number, found.start(), code, after)
        if STATEMENT.match(code):
            yield Change(str(path), number, 0, code, re.match(r"\s*", code)[0] + ";")  # type: ignore[index]


class Build:
    """The extension module, from objects of which one is compiled anew for each change."""

    def __init__(self) -> None:
        self.folder = Path("build/mutants")
        self.folder.mkdir(parents=True, exist_ok=True)
        self.settings = self._load()
        cflags, self.archive = self.settings.find_liburing()
        headers = {f"-I{path.parent}" for path in Path("_native").rglob("*.h")}
        self.flags = ["-fPIC", *cflags, *sorted(headers), f"-I{sysconfig.get_path('include')}"]
        wrapper = self.folder / "wrapper.c"
        self.settings.write_wrapper(wrapper)
        self.objects = {"": self._compile(wrapper, self.settings.WRAPPER)}
        for path in sorted(Path("_native").rglob("*.c")):
            self.objects[str(path)] = self._compile(path, self.settings.STRICT)
        *folder, name = self.settings.MODULE.split(".")
        (self.module,) = Path(*folder).glob(f"{name}.*so")

    @staticmethod
    def _load() -> ModuleType:
        spec = importlib.util.spec_from_file_location("native_build", "_native/build.py")
        assert spec is not None
        assert spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        return module

    def _compile(self, path: Path, flags: list[str]) -> Path:
        target = self.folder / (path.stem + ".o")
        # An extension for the stable ABI, as setuptools makes it.
        limited = ["-DPy_LIMITED_API=0x030b0000"] if path.stem == "wrapper" else []
        command = ["gcc", *flags, *limited, *self.flags, "-c", str(path), "-o", str(target)]
        subprocess.run(command, check=True, stderr=subprocess.PIPE)
        return target

    def link(self) -> None:
        objects = [str(path) for path in self.objects.values()]
        link = ["gcc", "-shared", *objects, self.archive, *self.settings.LINK]
        subprocess.run([*link, "-o", str(self.module)], check=True)

    def compile_changed(self, file: str) -> bool:
        """Whether the compiler takes it without a warning."""
        try:
            self._compile(Path(file), self.settings.STRICT)
        except subprocess.CalledProcessError:
            return False
        self.link()
        return True


def passes(*arguments: str, seconds: float, examples: str) -> bool:
    """Whether the tests pass, in time."""
    try:
        run = subprocess.run(
            [sys.executable, *PYTEST, *arguments],
            env=os.environ | {"ZC_TEST_EXAMPLES": examples},
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            timeout=seconds,
            check=False,
        )
    except subprocess.TimeoutExpired:
        return False
    return run.returncode == 0


def passes_fuzzing() -> bool:
    """Whether the fuzz target, built anew, takes the inputs that are kept."""
    folder = Path("build/fuzz")
    corpus = folder / "corpus"
    if not corpus.exists():
        corpus.mkdir(parents=True)
        subprocess.run(["tar", "-C", str(corpus), "-xf", "tests/fuzz/corpus.tar.xz"], check=True)
    subprocess.run(["scripts/build_fuzz_target", str(folder)], check=True)
    command = [str(folder / "accounting"), "-runs=0", f"-artifact_prefix={folder}/", str(corpus)]
    run = subprocess.run(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, check=False)
    return run.returncode == 0


def judge(build: Build, change: Change) -> str:
    """Build with a change and run the tests: what became of it."""
    path = Path(change.file)
    original = path.read_text(encoding="utf-8")
    lines = original.splitlines(keepends=True)
    lines[change.line - 1] = lines[change.line - 1].replace(change.before, change.after, 1)
    path.write_text("".join(lines), encoding="utf-8")
    try:
        if not build.compile_changed(change.file):
            return "refused by the compiler"
        if not passes(TESTS, f"--deselect={MODEL}", seconds=QUICK_SECONDS, examples="1"):
            return "noticed"
        if not passes(MODEL, seconds=LONG_SECONDS, examples="150"):
            return "noticed by the model"
        return "survived" if passes_fuzzing() else "noticed by fuzzing"
    finally:
        path.write_text(original, encoding="utf-8")
        build.compile_changed(change.file)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=1800, help="of the sweep (1800)")
    parser.add_argument("--results", type=Path, default=Path("mutants.jsonl"))
    parser.add_argument("--seed", default="1", help="of the order in which changes are tried")
    parser.add_argument("files", nargs="*", type=Path, help="default: the accounting")
    arguments = parser.parse_args()
    files = arguments.files or sorted(ACCOUNTING.glob("*.c"))
    todo = [change for path in files for change in changes(path)]
    random.Random(arguments.seed).shuffle(todo)
    results: dict[str, str] = {}
    if arguments.results.exists():
        for line in arguments.results.read_text(encoding="utf-8").splitlines():
            results.update(json.loads(line))
    # A sweep that is interrupted restores the sources.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("mutants: ended"))
    build = Build()
    build.link()
    if not passes(TESTS, seconds=LONG_SECONDS, examples="20") or not passes_fuzzing():
        sys.exit("mutants: the tests or the kept fuzzing inputs fail without any change")
    end = time.monotonic() + arguments.seconds
    for change in todo:
        if time.monotonic() > end:
            break
        if str(change) not in results:
            results[str(change)] = verdict = judge(build, change)
            with arguments.results.open("a", encoding="utf-8") as file:
                file.write(json.dumps({str(change): verdict}) + "\n")
    verdicts = list(results.values())
    for name, verdict in sorted(results.items()):
        if verdict == "survived":
            print(name)
    counts = {verdict: verdicts.count(verdict) for verdict in sorted(set(verdicts))}
    print(f"mutants: {len(results)} tried of {len(todo)}: {counts}")


if __name__ == "__main__":
    main()
