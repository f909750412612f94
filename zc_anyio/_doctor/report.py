"""What ``python -m zc_anyio`` finds out; nothing here prints."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from .._base.errors import DriverUnavailable
from .._base.kernel_tls import why_no_kernel_tls
from .._native.ring import NativeRing
from .._ring.capabilities import Capabilities, System, of_system
from .._ring.opening import DEFAULT_ENTRIES, Driver, open_ring
from .measure import Loopback, Measurement, try_loopback

__all__ = ["DriverReport", "Report", "as_json", "survey"]

# The best first, as "auto" tries them.
DRIVERS: tuple[Driver, ...] = ("io_uring", "msg_zerocopy", "copy")
# An io_uring is used only where the kernel has all of these.
OPCODES = ("SEND", "SENDMSG", "SEND_ZC", "SENDMSG_ZC", "ASYNC_CANCEL")


@dataclass(frozen=True, slots=True)
class DriverReport:
    """Whether a driver can run.

    :ivar unavailable: why it cannot, or ``None``.
    :ivar loopback: what became of a zero-copy send by this driver.
    """

    unavailable: str | None
    loopback: Loopback | None


@dataclass(frozen=True, slots=True)
class Report:
    """What this machine and this process can do.

    :ivar zero_copy: whether zero copy works with the driver that ``"auto"`` takes.
    :ivar verdict: the same as a sentence, with the reason.
    :ivar capabilities: those of a ring that was opened with all defaults.
    :ivar opcodes: for each io_uring opcode that is used, whether this kernel has it; ``None``: not
        known, because no ring could be made, or the kernel was not asked which one is missing.
    :ivar no_kernel_tls: why the kernel encrypts no TLS here; ``None`` if it can.
    """

    version: str | None
    zero_copy: bool
    verdict: str
    system: System
    capabilities: Capabilities | None
    drivers: dict[str, DriverReport]
    opcodes: dict[str, bool | None]
    no_kernel_tls: str | None
    measurement: Measurement | None = None


async def survey() -> Report:
    """Try every driver, send over loopback by each, and read what the kernel is set to."""
    system = of_system()
    drivers: dict[str, DriverReport] = {driver: await _try(driver) for driver in DRIVERS}
    capabilities = None
    try:
        async with open_ring() as ring:
            capabilities = ring.capabilities
    except (DriverUnavailable, OSError):
        pass  # the drivers' own reports say why
    works, verdict = _judge(capabilities, drivers)
    known = drivers["io_uring"].unavailable is None
    return Report(
        version=_version(),
        zero_copy=works,
        verdict=verdict,
        system=system,
        capabilities=capabilities,
        drivers=drivers,
        opcodes=dict.fromkeys(OPCODES, True if known else None),
        no_kernel_tls=why_no_kernel_tls(),
    )


async def _try(driver: Driver) -> DriverReport:
    try:
        NativeRing(driver=driver, entries=DEFAULT_ENTRIES).close()
    except DriverUnavailable as exc:
        return DriverReport(str(exc), None)
    return DriverReport(None, await try_loopback(driver))


def _judge(capabilities: Capabilities | None, drivers: dict[str, DriverReport]) -> tuple[bool, str]:
    if capabilities is None:
        reasons = "; ".join(f"{name}: {report.unavailable}" for name, report in drivers.items())
        return False, f"Nothing can be sent here: {reasons}."
    driver = capabilities.driver
    if driver == "copy":
        return False, "Zero copy does not work here: only the copy driver runs."
    loopback = drivers[driver].loopback
    if loopback is not None and loopback.refused:
        return False, (
            f"Zero copy does not work here: {driver} runs, but the kernel refused to pin "
            f"{loopback.bytes >> 10} KiB for a zero-copy send, see RLIMIT_MEMLOCK; "
            "everything is copied."
        )
    instead = "" if driver == DRIVERS[0] else f", because {DRIVERS[0]} cannot run"
    return True, f"Zero copy works here: {driver} carries the sends{instead}."


def as_json(report: Report) -> dict[str, Any]:
    """Return the report in a form that ``json`` takes, with the measured rates added."""
    whole = asdict(report)
    if report.measurement is not None:
        for entry, result in zip(
            whole["measurement"]["results"], report.measurement.results, strict=True
        ):
            entry["bytes_per_second"] = result.bytes_per_second
            entry["cpu_seconds_per_gigabyte"] = result.cpu_seconds_per_gigabyte
    return whole


def _version() -> str | None:
    try:
        return version("zc_anyio")
    except PackageNotFoundError:  # run from the source tree
        return None
