"""The report is right, for people and as JSON, and connects to nobody."""

from __future__ import annotations

import json
import os
import re
import resource
from dataclasses import asdict
from pathlib import Path
from typing import Any

import anyio
import pytest

import zc_anyio
from tests.support.commands import cli
from tests.support.needs import missing, why_not

DRIVERS = ["io_uring", "msg_zerocopy", "copy"]


def zero_copy_works() -> bool:
    return why_not("io_uring") is None or why_not("msg_zerocopy") is None


def capabilities(driver: Any = "auto") -> zc_anyio.Capabilities:
    async def opened() -> zc_anyio.Capabilities:
        async with zc_anyio.open_ring(driver=driver) as ring:
            return ring.capabilities

    return anyio.run(opened)


def setting(name: str) -> str | None:
    path = Path("/proc/sys") / name.replace(".", "/")
    return path.read_text().strip() if path.exists() else None


def meminfo(name: str) -> str:
    found = re.search(rf"^{name}:\s*(\d+)", Path("/proc/meminfo").read_text(), re.MULTILINE)
    assert found is not None
    return found.group(1)


def has_ipc_lock() -> bool:
    found = re.search(r"^CapEff:\s*(\w+)", Path("/proc/self/status").read_text(), re.MULTILINE)
    assert found is not None
    return bool(int(found.group(1), 16) & 1 << 14)


def need_zero_copy() -> None:
    if not zero_copy_works():
        missing("neither io_uring nor msg_zerocopy can run")


def test_the_report_for_people_has_the_facts() -> None:
    done = cli()
    text = done.text
    own = capabilities()
    assert done.errors == ""
    assert f"kernel {os.uname().release} {os.uname().machine}" in text
    assert f"driver chosen {own.driver}" in text
    assert f"flags chosen {' '.join(own.setup_flags) or 'none'}" in text
    for driver in DRIVERS:
        reason = why_not(driver)
        assert f"{driver} {'yes' if reason is None else f'no {reason}'}" in text
    if why_not("io_uring") is None:
        assert "SEND_ZC yes, SENDMSG_ZC yes" in text
    soft, hard = (
        "unlimited" if limit == resource.RLIM_INFINITY else f"{limit} bytes"
        for limit in resource.getrlimit(resource.RLIMIT_MEMLOCK)
    )
    assert f"RLIMIT_MEMLOCK {soft} (hard {hard})" in text
    assert f"CAP_IPC_LOCK {'yes' if has_ipc_lock() else 'no'}" in text
    assert f"net.core.optmem_max {setting('net.core.optmem_max')}" in text
    disabled = setting("kernel.io_uring_disabled")
    assert f"kernel.io_uring_disabled {'not there' if disabled is None else disabled}" in text
    total, free = meminfo("HugePages_Total"), meminfo("HugePages_Free")
    assert f"explicit huge pages {free} of {total} free" in text
    transparent = Path("/sys/kernel/mm/transparent_hugepage/enabled")
    if transparent.exists():
        chosen = re.search(r"\[(\w+)\]", transparent.read_text())
        assert chosen is not None
        assert f"transparent huge pages {chosen.group(1)}" in text


def test_the_report_for_people_tells_of_the_send_over_loopback() -> None:
    need_zero_copy()
    done = cli()
    assert done.status == 0
    assert done.text.startswith(f"Zero copy works here: {capabilities().driver} carries the sends")
    for driver in DRIVERS[:2]:
        if why_not(driver) is None:
            assert (
                f"{driver} yes taken, and copied on its way, as always over loopback" in done.text
            )
    assert "copy yes copied, as everything is by this driver" in done.text


def test_json_agrees_with_an_open_ring() -> None:
    done = cli("--json")
    report = done.json
    own = capabilities()
    assert done.errors == ""
    assert report["capabilities"] == json.loads(json.dumps(asdict(own)))
    assert list(report["drivers"]) == DRIVERS
    for driver in DRIVERS:
        assert report["drivers"][driver]["unavailable"] == why_not(driver)
        assert (report["drivers"][driver]["loopback"] is None) == (why_not(driver) is not None)
    assert report["system"]["kernel"] == own.kernel == os.uname().release
    assert report["system"]["optmem_max"] == int(setting("net.core.optmem_max") or 0)
    assert report["system"]["huge_pages_free"] == int(meminfo("HugePages_Free"))
    assert report["system"]["cap_ipc_lock"] == has_ipc_lock()
    soft, _ = resource.getrlimit(resource.RLIMIT_MEMLOCK)
    assert report["system"]["memlock_soft"] == (None if soft == resource.RLIM_INFINITY else soft)
    known = True if why_not("io_uring") is None else None
    assert set(report["opcodes"]) >= {"SEND_ZC", "SENDMSG_ZC"}
    assert set(report["opcodes"].values()) == {known}
    assert report["measurement"] is None


def test_json_tells_of_the_send_over_loopback() -> None:
    need_zero_copy()
    report = cli("--json").json
    assert report["zero_copy"] is True
    for driver in DRIVERS:
        if why_not(driver) is None:
            loopback = report["drivers"][driver]["loopback"]
            assert loopback["error"] is None
            # A Linux machine cannot receive its own zero-copy data without copying it.
            assert (loopback["zero_copied"], loopback["copied"]) == (False, True)
            assert loopback["refused"] is False


# Every Python that finds this imports it before the program; it notes the program's connections.
WITNESS = """
import os, sys

def note(event, arguments):
    if event in ("socket.connect", "socket.sendto", "socket.sendmsg", "socket.bind"):
        line = f"{event} {arguments[1]!r}"
    elif event in ("socket.getaddrinfo", "socket.gethostbyname"):
        line = f"{event} {arguments[0]!r}"
    else:
        return
    with open(os.environ["WITNESS"], "a") as file:
        file.write(line + "\\n")

sys.addaudithook(note)
"""


def witnessed(tmp_path: Path, *arguments: str) -> list[str]:
    (tmp_path / "sitecustomize.py").write_text(WITNESS)
    seen = tmp_path / "seen"
    path = os.pathsep.join(filter(None, [str(tmp_path), os.environ.get("PYTHONPATH")]))
    cli(*arguments, PYTHONPATH=path, WITNESS=str(seen))
    return seen.read_text().splitlines() if seen.exists() else []


@pytest.mark.parametrize("arguments", [[], ["--json"]], ids=["people", "json"])
def test_it_connects_to_nothing_but_itself(tmp_path: Path, arguments: list[str]) -> None:
    seen = witnessed(tmp_path, *arguments)
    own = re.compile(r"socket\.(connect|bind) \('127\.0\.0\.1', \d+\)")
    assert seen, "the probe over loopback connects, and the witness must have seen that"
    assert [line for line in seen if not own.fullmatch(line)] == []


def test_the_witness_sees_where_a_measurement_connects_to(tmp_path: Path) -> None:
    seen = witnessed(tmp_path, "--json", "--measure", "127.77.0.1:9", "--seconds", "1")
    assert [line for line in seen if "127.77.0.1" in line]


@pytest.fixture
def without_rich(tmp_path: Path) -> str:
    """A PYTHONPATH on which rich cannot be imported."""
    (tmp_path / "rich.py").write_text("raise ModuleNotFoundError(\"No module named 'rich'\")\n")
    return os.pathsep.join(filter(None, [str(tmp_path), os.environ.get("PYTHONPATH")]))


def test_without_rich_one_sentence_says_what_to_do(without_rich: str) -> None:
    done = cli(PYTHONPATH=without_rich)
    assert done.status == 2
    assert done.output == ""
    assert re.fullmatch(
        r"zc_anyio: the report needs rich: install zc_anyio\[cli\].*\n", done.errors
    )


def test_json_needs_no_rich(without_rich: str) -> None:
    done = cli("--json", PYTHONPATH=without_rich)
    assert done.json["capabilities"]["driver"] == capabilities().driver
    assert done.status == (0 if done.json["zero_copy"] else 1)


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (["--nonsense"], "--nonsense"),
        (["--measure"], "expected one argument"),
        (["--measure", "nowhere"], "'nowhere' is not HOST:PORT"),
        (["--measure", ":80"], "':80' is not HOST:PORT"),
        (["--measure", "host:"], "'host:' is not HOST:PORT"),
        (["--measure", "host:http"], "'host:http' is not HOST:PORT"),
        (["--measure", "host:0"], "0 is not a port"),
        (["--measure", "host:65536"], "65536 is not a port"),
        (["--measure", "::1:80"], "needs brackets: [::1]:80"),
        (["--measure", "host:80", "--seconds", "0"], "'0' is not a positive number"),
        (["--measure", "host:80", "--seconds", "-1"], "'-1' is not a positive number"),
        (["--measure", "host:80", "--seconds", "inf"], "'inf' is not a positive number"),
        (["--measure", "host:80", "--seconds", "nan"], "'nan' is not a positive number"),
        (["--measure", "host:80", "--seconds", "soon"], "'soon' is not a positive number"),
        (["--seconds", "5"], "--seconds is for --measure"),
    ],
)
def test_usage_errors(arguments: list[str], complaint: str) -> None:
    done = cli(*arguments)
    assert done.status == 2
    assert done.output == ""
    assert complaint in done.errors
    assert "Traceback" not in done.errors


def test_help_tells_the_exit_statuses(without_rich: str) -> None:
    done = cli("--help", PYTHONPATH=without_rich)
    assert done.status == 0
    assert "--measure HOST:PORT" in done.text
    assert "Exit status: 0, zero copy works" in done.text
