"""What the report says, and how it ends, where io_uring or pinned memory is refused."""

from __future__ import annotations

import pytest

from tests.support.commands import cli, forbidden, memlock
from tests.support.needs import missing, why_not

REASONS = {
    "EPERM": "io_uring is forbidden to this process: by a seccomp filter",
    "ENOSYS": "this kernel has no io_uring",
    "ENOMEM": "not enough lockable memory",
}


@pytest.fixture(autouse=True)
def _both_drivers() -> None:
    for driver in ("io_uring", "msg_zerocopy"):
        if (reason := why_not(driver)) is not None:
            missing(f"without a restriction, the driver {driver} cannot run: {reason}")


@pytest.mark.parametrize("name", REASONS)
def test_io_uring_forbidden(name: str) -> None:
    done = cli(under=forbidden(name))
    assert done.errors == ""
    assert done.status == 0
    assert "Zero copy works here: msg_zerocopy carries the sends" in done.text
    assert "because io_uring cannot run" in done.text
    assert f"io_uring no {REASONS[name]}" in done.text
    assert "msg_zerocopy yes taken" in done.text
    assert "opcodes not known" in done.text
    assert "driver chosen msg_zerocopy flags chosen none" in done.text
    assert "seccomp filter" in done.text


@pytest.mark.parametrize("name", REASONS)
@pytest.mark.parametrize("calls", ["all", "setup"])
def test_io_uring_forbidden_as_json(name: str, calls: str) -> None:
    done = cli("--json", under=forbidden(name, calls))
    report = done.json
    assert (done.status, report["zero_copy"]) == (0, True)
    assert report["capabilities"]["driver"] == "msg_zerocopy"
    reason = report["drivers"]["io_uring"]["unavailable"]
    assert REASONS[name] in reason
    assert report["capabilities"]["unavailable"] == {"io_uring": reason}
    assert report["drivers"]["io_uring"]["loopback"] is None
    assert set(report["opcodes"].values()) == {None}
    assert report["drivers"]["msg_zerocopy"]["loopback"]["refused"] is False
    assert report["system"]["seccomp"] == "filter"


def test_only_entering_forbidden() -> None:
    report = cli("--json", under=forbidden("EPERM", "enter")).json
    assert REASONS["EPERM"] in report["drivers"]["io_uring"]["unavailable"]
    assert report["capabilities"]["driver"] == "msg_zerocopy"


# --- RLIMIT_MEMLOCK ---


@pytest.mark.parametrize("limit", [0, 60 << 10])
def test_no_memory_may_be_pinned(limit: int) -> None:
    under = memlock(limit)
    report = cli("--json", under=under)
    assert report.status == 1
    assert report.json["zero_copy"] is False
    assert report.json["capabilities"]["memlock_limit"] == limit
    assert report.json["system"]["memlock_soft"] == limit
    assert report.json["system"]["cap_ipc_lock"] is False
    assert report.json["drivers"]["msg_zerocopy"]["loopback"]["refused"] is True
    # Linux 6.18 counts a ring's own memory as well; where it does not, the sends are refused.
    io_uring = report.json["drivers"]["io_uring"]
    if io_uring["unavailable"] is None:
        assert io_uring["loopback"]["refused"] is True
    else:
        assert "RLIMIT_MEMLOCK" in io_uring["unavailable"]

    done = cli(under=under)
    assert done.errors == ""
    assert done.status == 1
    assert "Zero copy does not work here" in done.text
    assert "see RLIMIT_MEMLOCK" in done.text
    assert "msg_zerocopy yes refused" in done.text
    assert f"RLIMIT_MEMLOCK {limit} bytes" in done.text
    assert "CAP_IPC_LOCK no" in done.text
    assert f"Limited: RLIMIT_MEMLOCK is {limit} bytes" in done.text


def test_little_memory_may_be_pinned() -> None:
    limit = 4 << 20
    done = cli(under=memlock(limit))
    assert done.status == 0
    assert "io_uring yes taken" in done.text
    assert f"Limited: RLIMIT_MEMLOCK is {limit} bytes" in done.text


def test_the_limit_does_not_bind_a_process_with_the_capability() -> None:
    done = cli("--json", under=memlock(0, cap_ipc_lock=True))
    assert done.status == 0
    assert done.json["system"]["memlock_soft"] == 0
    assert done.json["system"]["cap_ipc_lock"] is True
    assert done.json["capabilities"]["memlock_limit"] is None
    assert done.json["capabilities"]["zero_copy_limited"] is None
    assert done.json["drivers"]["io_uring"]["loopback"]["refused"] is False


def test_no_memory_and_no_io_uring() -> None:
    done = cli("--json", under=[*memlock(0), *forbidden("EPERM")])
    assert done.status == 1
    assert "RLIMIT_MEMLOCK" in done.json["verdict"]
    assert REASONS["EPERM"] in done.json["drivers"]["io_uring"]["unavailable"]
