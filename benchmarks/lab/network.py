"""The lab: a network namespace in which everything sent is acknowledged without being received.

A machine cannot receive its own zero-copy data without copying it, so loopback and veth hide what
zero copy gains.  In the lab the subnet 10.99.0.0/16 is an ``ifb`` device, which drops what it is
given and frees the pages untouched: a UDP sink.  The programs of ``peer.bpf.c`` make it a TCP peer
as well, and on one port a peer that reads nothing.

The namespace has no name: it exists for as long as a process is in it, with its devices and
programs.  So nothing is left behind, however this process ends.
"""

from __future__ import annotations

import ctypes
import os
import platform
import shutil
import subprocess
from collections.abc import Mapping
from pathlib import Path

__all__ = ["ADDRESS", "DEVICE", "STALLED_PORT", "LabUnavailable", "enter_lab"]

CLONE_NEWNET = 0x40000000
SOURCE = Path(__file__).with_name("peer.bpf.c")
# In the folder of everything that is built; `make clean` removes it.
OBJECT = Path(__file__).resolve().parents[2] / "build" / "benchmarks" / "peer.o"

ADDRESS = "10.99.0.2"
STALLED_PORT = 9999
DEVICE, BRIDGE = "sink", "trim"

SETTINGS = {
    # The programs only handle headers without options.
    "ipv4/tcp_timestamps": 0,
    "ipv4/tcp_sack": 0,
    # BBR, the default of some systems, sets a timer for each segment, which would be measured.
    "ipv4/tcp_congestion_control": "reno",
    "ipv4/tcp_no_metrics_save": 1,
    # Answers come from an address of another host, with one of this host's as their destination.
    "ipv4/conf/all/accept_local": 1,
    "ipv4/conf/all/rp_filter": 0,
    "ipv4/conf/default/rp_filter": 0,
    # Only what is measured passes the device.
    "ipv6/conf/all/disable_ipv6": 1,
    # Connections to peers that stopped answering end soon after their process, so that the
    # namespace ends too.
    "ipv4/tcp_orphan_retries": 1,
    "ipv4/tcp_fin_timeout": 1,
    "ipv4/ip_local_port_range": "1024 65535",
}
DEVICE_SETTINGS = {
    f"ipv4/conf/{DEVICE}/accept_local": 1,
    f"ipv4/conf/{DEVICE}/rp_filter": 0,
    f"ipv4/conf/{BRIDGE}/accept_local": 1,
    f"ipv4/conf/{BRIDGE}/rp_filter": 0,
    # Makes the bridge look at IP headers, and trim packets.
    "bridge/bridge-nf-call-iptables": 1,
}
LINKS = f"""
link set lo up
link add name {BRIDGE} type bridge stp_state 0 mcast_snooping 0
link add name {DEVICE} type ifb
link set dev {DEVICE} mtu 65535 up
link set dev {DEVICE} master {BRIDGE}
link set dev {DEVICE} type bridge_slave learning off flood off mcast_flood off
link set dev {BRIDGE} mtu 65535 up
address add 10.99.0.1/16 dev {DEVICE}
"""


class LabUnavailable(Exception):  # noqa: N818 - as anyio's exceptions are named
    """The lab cannot be made here, with the reason."""


def enter_lab() -> None:
    """Make the lab, and put this process (its calling thread, and children made later) into it.

    :raises LabUnavailable: this is not root, or something that the lab is made of is missing.
    """
    if os.geteuid() != 0:
        raise LabUnavailable("making a network namespace needs root")
    tools = {name: _tool(name) for name in ("clang", "ip", "tc")}
    _compile(tools["clang"])
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.unshare(CLONE_NEWNET) != 0:
        raise LabUnavailable(f"network namespace: {os.strerror(ctypes.get_errno())}")
    _set(SETTINGS)
    _run(tools["ip"], "-batch", "-", lines=LINKS)
    _set(DEVICE_SETTINGS)
    _run(tools["tc"], *f"qdisc add dev {DEVICE} clsact".split())
    classifier = f"filter add dev {DEVICE} egress bpf direct-action object-file {OBJECT} section tc"
    _run(tools["tc"], *classifier.split())
    _run(tools["ip"], *f"link set dev {BRIDGE} xdpgeneric obj {OBJECT} sec xdp.frags".split())


def _tool(name: str) -> str:
    path = shutil.which(name, path=f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin")
    if path is None:
        raise LabUnavailable(f"{name} is missing (Debian: clang, libbpf-dev, iproute2)")
    return path


def _compile(clang: str) -> None:
    """Compile the programs if they have changed since the last time."""
    if OBJECT.exists() and OBJECT.stat().st_mtime >= SOURCE.stat().st_mtime:
        return
    OBJECT.parent.mkdir(parents=True, exist_ok=True)
    unfinished = OBJECT.with_suffix(f".{os.getpid()}")
    # Debian has the headers of its own architecture here, where the BPF target does not look.
    headers = f"/usr/include/{platform.machine()}-linux-gnu"
    options = ["-O2", "-g", "-Wall", "-Wextra", "-Werror", "-target", "bpf", f"-I{headers}"]
    try:
        _run(clang, *options, "-c", str(SOURCE), "-o", str(unfinished))
        unfinished.replace(OBJECT)
    finally:
        unfinished.unlink(missing_ok=True)


def _set(settings: Mapping[str, object]) -> None:
    for name, value in settings.items():
        try:
            Path("/proc/sys/net", name).write_text(str(value))
        except OSError as exc:
            raise LabUnavailable(f"net/{name} cannot be set: {exc.strerror}") from exc


def _run(*words: str, lines: str = "") -> None:
    done = subprocess.run(words, input=lines, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise LabUnavailable(f"{' '.join(words)}: {done.stderr.strip()}")
