"""The demonstration sends, compares and reports; and it notices a single wrong byte."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import anyio
import pytest

pytest.importorskip("rich")

from examples.demo import __main__ as demo
from examples.demo import dropped
from examples.demo.files import largest_file
from examples.demo.report import differences
from examples.demo.sending import Measured, Payload
from examples.demo.server import Received, start_server
from tests.support.needs import need_command, need_root

ROOT = Path(__file__).resolve().parents[2]
SIZE = (2 << 20) + 12345  # two whole chunks and a part of one


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "payload"
    path.write_bytes(os.urandom(SIZE))
    return path


def measured(payload: Payload, received: Received) -> Measured:
    return Measured(
        way="a way",
        connections=1,
        size=payload.size,
        seconds=0.0,
        cpu_seconds=0.0,
        peak_memory=None,
        size_each=payload.size,
        sha256=payload.sha256(payload.size),
        received=[received],
        statistics=None,
    )


def is_running(pid: int) -> bool:
    try:
        status = Path(f"/proc/{pid}/stat").read_text()
    except FileNotFoundError:
        return False
    return status.rpartition(")")[2].split()[0] != "Z"


@pytest.mark.parametrize("backend", ["asyncio", "uvloop", "trio"])
def test_every_backend_sends_in_three_ways_and_all_hashes_match(file: Path, backend: str) -> None:
    arguments = ["--backend", backend, "--connections", "12", "--slow", "2", str(file)]
    done = subprocess.run(
        [sys.executable, "-m", "examples.demo", *arguments],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=50,
        check=False,
    )
    assert done.returncode == 0, done.stderr + done.stdout
    assert not done.stderr
    assert done.stdout.count("matches  ") == 3
    assert done.stdout.count(f"SHA-256 {Payload(file, SIZE).sha256(SIZE)} at ") == 3
    assert "at 12 receivers" in done.stdout
    assert "DIFFERS" not in done.stdout
    assert "cannot receive its own" in done.stdout
    # No terminal, so no bars.
    assert "\x1b" not in done.stdout


@pytest.mark.parametrize("backend", ["asyncio", "uvloop", "trio"])
def test_what_a_device_drops_is_zero_copied(file: Path, backend: str) -> None:
    need_root("making a network namespace for certain")
    need_command("ip", "iproute2")
    ways = dropped.measure(file, SIZE, "auto", demo.BACKENDS[backend], total=8 << 20)
    assert [each.way for each in ways] == ["socket.send", "MSG_ZEROCOPY", "send group"]
    # Whole rounds of the file, in datagrams; the last one of each round is short.
    rounds = (8 << 20) // SIZE + 1
    assert {each.size for each in ways} == {rounds * SIZE}
    large = rounds * (SIZE // dropped.DATAGRAM)
    by_hand, by_group = ways[1:]
    assert (by_hand.zero_copied, by_hand.copied) == (large + rounds, 0)
    # Datagrams shorter than the threshold are copied.
    assert (by_group.zero_copied, by_group.copied) == (large, rounds)


def test_where_no_namespace_can_be_made_one_line_says_why(
    file: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert demo.main(["--connections", "2", "--slow", "0", str(file)]) == 0
    assert "Zero copy cannot be shown here:" in capsys.readouterr().out


def test_a_wrong_byte_ends_the_demonstration_with_status_1(
    file: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    broken = bytearray(file.read_bytes())
    broken[SIZE // 3] ^= 1
    other = file.with_name("other")
    other.write_bytes(broken)
    sent = 1 << 20
    digest = Payload(other, sent).sha256(sent)
    monkeypatch.setattr(Payload, "sha256", lambda self, count: digest)

    arguments = [str(file), "--limit", "1", "--connections", "2", "--slow", "0"]
    assert demo.main(arguments) == 1

    out = " ".join(capsys.readouterr().out.split())
    assert out.count("DIFFERS") == 4
    assert "matches" not in out
    assert "broadcast (0 slow): connection 1 got other bytes" in out


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({}, None),
        ({"sha256": "0" * 64}, "got other bytes"),
        ({"size": SIZE - 1}, f"got {SIZE - 1} bytes of {SIZE}"),
        ({"error": "Connection reset by peer"}, "broke after"),
    ],
)
def test_each_difference_is_one_sentence(
    file: Path, change: dict[str, object], says: str | None
) -> None:
    payload = Payload(file, SIZE)
    right = Received(connection=7, size=SIZE, sha256=payload.sha256(SIZE), error=None)
    found = differences(measured(payload, replace(right, **change)))  # type: ignore[arg-type]
    if says is None:
        assert not found
    else:
        assert len(found) == 1
        assert "connection 7" in found[0]
        assert says in found[0]


def test_only_the_beginning_of_a_large_file_is_sent(file: Path) -> None:
    payload = Payload(file, SIZE - 5)
    assert payload.size == SIZE - 5
    assert b"".join(payload.chunks(payload.size)) == file.read_bytes()[:-5]


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["/no such file"], "No such file"),
        (["/dev/null"], "is empty"),
    ],
)
def test_what_cannot_be_sent_ends_it_with_status_2(
    arguments: list[str], says: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert demo.main(arguments) == 2
    assert says in capsys.readouterr().err


@pytest.mark.parametrize(
    "arguments", [["--slow", "6", "--connections", "5"], ["--connections", "0"], ["--limit", "0"]]
)
def test_wrong_options_end_it_with_status_2(arguments: list[str]) -> None:
    with pytest.raises(SystemExit) as exited:
        demo.main(arguments)
    assert exited.value.code == 2


def test_largest_file_within_the_limit(tmp_path: Path) -> None:
    (tmp_path / "deep").mkdir()
    for name, size in [("empty", 0), ("small", 10), ("deep/right", 20), ("too large", 31)]:
        (tmp_path / name).write_bytes(bytes(size))
    (tmp_path / "link").symlink_to(tmp_path / "too large")
    assert largest_file(30, [str(tmp_path / "none"), str(tmp_path)]) == tmp_path / "deep" / "right"
    assert largest_file(5, [str(tmp_path)]) is None


# Not uvloop: at its first child process, libuv opens a pipe that stays for as long as this process
# lives, and would be taken for a descriptor that was left open.
without_uvloop = pytest.mark.parametrize("anyio_backend", ["asyncio", "trio"])


@without_uvloop
@pytest.mark.anyio
async def test_the_server_ends_with_its_scope_also_after_a_failure() -> None:
    with pytest.raises(ZeroDivisionError):
        async with start_server() as server:
            pid = server.pid
            assert is_running(pid)
            raise ZeroDivisionError
    assert not is_running(pid)


@without_uvloop
@pytest.mark.anyio
async def test_a_server_that_ended_is_noticed() -> None:
    async with start_server() as server:
        os.kill(server.pid, signal.SIGKILL)
        with anyio.fail_after(10), pytest.raises(RuntimeError, match="server has ended"):
            await server.received()


def test_the_server_ends_when_the_demonstration_is_killed() -> None:
    program = """
import anyio
from examples.demo.server import start_server

async def main():
    async with start_server() as server:
        print(server.pid, flush=True)
        await anyio.sleep_forever()

anyio.run(main)
"""
    with subprocess.Popen(
        [sys.executable, "-c", program], cwd=ROOT, stdout=subprocess.PIPE, text=True
    ) as parent:
        assert parent.stdout is not None
        pid = int(parent.stdout.readline())
        assert is_running(pid)
        parent.kill()
    give_up_at = time.monotonic() + 10
    while is_running(pid):
        assert time.monotonic() < give_up_at
        time.sleep(0.02)
