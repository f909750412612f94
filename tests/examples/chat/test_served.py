"""The server as people start it: other clients, the terminal client, stopping, workers."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any

import pytest
from websockets.exceptions import ConnectionClosed
from websockets.sync.client import ClientConnection, connect

from tests.support.commands import ROOT, run
from tests.support.redis import redis_server
from tests.support.served import COMBINATIONS, LIMIT, Served, serve
from tests.support.waiting import until_blocking

PNG = b"\x89PNG\r\n\x1a\n"
MIB = 1 << 20


def join(stack: ExitStack, server: Served, name: str, room: str = "lobby") -> ClientConnection:
    """Be a member, with another WebSocket library."""
    # Compression is asked for, as browsers do, and not agreed to.
    url = f"ws://127.0.0.1:{server.port}/chat?room={room}&name={name}"
    connection = connect(url, compression="deflate", max_size=None, open_timeout=LIMIT)
    return stack.enter_context(connection)


def receive(member: ClientConnection, kind: str) -> dict[str, Any]:
    """Receive the next message of a type."""
    while True:
        fields: dict[str, Any] = json.loads(member.recv(timeout=LIMIT))
        if fields["type"] == kind:
            return fields


def say(member: ClientConnection, text: str) -> None:
    member.send(json.dumps({"type": "say", "nonce": "1", "text": text}))


@pytest.fixture(params=["--backend=asyncio", "--backend=uvloop", "--backend=trio"])
def backend(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.mark.parametrize("combination", COMBINATIONS)
def test_another_websocket_client_talks_to_the_server(combination: str) -> None:
    arguments = combination.split()
    with serve("examples.chat", *arguments) as server, ExitStack() as stack:
        ada, bob = join(stack, server, "ada"), join(stack, server, "bob")
        welcome = receive(bob, "welcome")
        assert welcome["members"] == ["ada", "bob"]
        way = dict(
            argument.removeprefix("--").split("=") for argument in arguments if "=" in argument
        )
        assert welcome["server"] == way
        say(ada, "hello")
        assert receive(bob, "message")["text"] == "hello"
        # In fragments, and with a ping between.
        payload = json.dumps({"type": "say", "nonce": "2", "text": "x" * 4000})
        ada.send(payload[at : at + 100] for at in range(0, len(payload), 100))
        assert ada.ping().wait(LIMIT)
        assert receive(bob, "message")["text"] == "x" * 4000
        # A picture goes by HTTP, both ways.
        content = PNG + bytes(range(256)) * (MIB // 256)
        token = receive(ada, "welcome")["token"]
        posted = server.ask(f"/pictures?token={token}&name=x.png", method="POST", body=content)
        assert posted.status == 204
        told = receive(bob, "image")
        picture = server.ask(f"/pictures/lobby/{told['id']}")
        assert (picture.headers["content-type"], picture.body) == ("image/png", content)
        metrics = server.metrics()
        assert metrics['chat_messages_total{kind="picture"}'] == 1
        assert metrics["chat_deliveries_total"] >= 4
        bob.close(1000, "bye")
        assert bob.close_code == 1000


def test_sigterm_tells_everybody_and_ends_within_a_limit(backend: str) -> None:
    with serve("examples.chat", backend) as server, ExitStack() as stack:
        members = [join(stack, server, f"member{number}") for number in range(20)]
        for member in members:
            receive(member, "welcome")
        say(members[0], "last words")
        for member in members:
            receive(member, "message")
        server.process.send_signal(signal.SIGTERM)
        for member in members:
            with pytest.raises(ConnectionClosed) as closed:
                receive(member, "nothing")
            assert closed.value.rcvd is not None
            assert closed.value.rcvd.code == 1001
        server.process.communicate(timeout=LIMIT)
        assert server.process.returncode == 0
        with pytest.raises(ConnectionRefusedError):
            socket.create_connection(("127.0.0.1", server.port))


def test_workers_share_the_port_and_the_rooms(tmp_path: Path) -> None:
    with redis_server(tmp_path) as redis, ExitStack() as stack:
        with serve("examples.chat", "--workers=2", f"--redis={redis.url}") as server:
            # The other worker says so as well.  Which one gets a connection is the kernel's choice.
            assert server.process.stdout is not None
            assert server.url in server.process.stdout.readline()
            members = [join(stack, server, f"member{number}") for number in range(12)]
            for number, member in enumerate(members):
                receive(member, "welcome")
                say(member, str(number))
            orders = []
            for member in members:
                texts = [receive(member, "message")["text"] for _ in members]
                orders.append(texts)
            assert all(order == orders[0] for order in orders)
            assert sorted(orders[0], key=int) == [str(number) for number in range(12)]
            # Whichever worker is asked tells the metrics of both.
            until_blocking(lambda: sum(of_workers(server, "chat_members")) == 12)
            assert sum(of_workers(server, "chat_messages_total")) == 24
            assert min(of_workers(server, "chat_messages_total")) == 12
            (first, _) = workers = _children(server.process.pid)
            folder = Path(Path(f"/proc/{first}/cmdline").read_text().split("\0")[-2])
            assert sorted(path.name for path in folder.iterdir()) == ["0", "1"]
            assert folder.stat().st_mode & 0o777 == 0o700
            server.process.send_signal(signal.SIGTERM)
            for member in members:
                with pytest.raises(ConnectionClosed) as closed:
                    receive(member, "nothing")
                assert closed.value.rcvd is not None
                assert closed.value.rcvd.code == 1001
            _, errors = server.process.communicate(timeout=LIMIT)
            assert server.process.returncode == 0, errors
            assert not any(Path(f"/proc/{pid}").exists() for pid in workers)
            assert not folder.exists()


def of_workers(server: Served, name: str) -> list[float]:
    """Return a metric of both workers."""
    values = server.metrics()
    found = {
        number: value
        for number in (0, 1)
        for key, value in values.items()
        if key.startswith(name) and f'worker="{number}"' in key
    }
    assert found.keys() == {0, 1}, values
    return list(found.values())


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGHUP], ids=["SIGKILL", "SIGHUP"])
def test_workers_end_with_their_parent(number: signal.Signals) -> None:
    with serve("examples.chat", "--workers=2", "--redis=redis://127.0.0.1:1/0") as server:
        workers = _children(server.process.pid)
        assert len(workers) == 2
        folder = Path(Path(f"/proc/{workers[0]}/cmdline").read_text().split("\0")[-2])
        assert folder.is_dir()
        try:
            server.process.send_signal(number)
            until_blocking(lambda: not any(Path(f"/proc/{pid}").exists() for pid in workers))
        finally:
            for pid in workers:
                with suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            server.process.communicate(timeout=LIMIT)
        assert not folder.exists()
        with pytest.raises(ConnectionRefusedError):
            socket.create_connection(("127.0.0.1", server.port))


def test_a_worker_that_ends_at_once_ends_the_service_and_is_told_of() -> None:
    with serve("examples.chat", "--workers=2", "--redis=redis://127.0.0.1:1/0") as server:
        worker = _children(server.process.pid)[0]
        os.kill(worker, signal.SIGKILL)
        _, errors = server.process.communicate(timeout=LIMIT)
    assert server.process.returncode == 1
    assert f"worker {worker} has ended with status -9" in errors


def _children(pid: int) -> list[int]:
    return list(map(int, Path(f"/proc/{pid}/task/{pid}/children").read_text().split()))


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["--workers=2"], "--redis"),
        (["--workers=0"], "--workers: "),
        (["--queue=nan"], "--queue: "),
        (["--lag=-1"], "--lag"),
        (["--message-rate=inf"], "--message-rate: "),
        (["--port=99999"], "--port: "),
        (["--connections=0"], "--connections: "),
        (["--redis=nonsense"], "is not of the form redis://"),
        (["--redis=redis://127.0.0.1:port/0"], "is not of the form redis://"),
        (["--redis=http://127.0.0.1/"], "is not of the form redis://"),
    ],
)
def test_nonsense_is_refused(arguments: list[str], told: str) -> None:
    done = run(sys.executable, "-m", "examples.chat", *arguments)
    assert done.status == 2
    assert told in done.errors
    assert "Traceback" not in done.errors


@pytest.mark.parametrize("workers", ["--workers=1", "--workers=2"])
def test_a_port_that_is_taken(workers: str) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        redis = "--redis=redis://127.0.0.1:1/0"
        done = run(sys.executable, "-m", "examples.chat", f"--port={port}", redis, workers)
    assert done.status == 1
    assert f"127.0.0.1, port {port}: " in done.errors
    assert "Traceback" not in done.errors


def test_a_redis_that_is_not_there_is_told_in_a_line() -> None:
    with serve("examples.chat", "--redis=redis://127.0.0.1:1/0") as server, ExitStack() as stack:
        assert receive(join(stack, server, "ada"), "welcome")["shared"] is False
        server.stop()
    # There may also be warnings about memory streams that coredis does not close.
    assert server.errors.count("Redis cannot be reached") == 1
    assert "ERROR" not in server.errors


@pytest.fixture
def terminal() -> Iterator[list[subprocess.Popen[str]]]:
    """Terminal clients that were started, which end with the test."""
    started: list[subprocess.Popen[str]] = []
    yield started
    for process in started:
        process.kill()
        process.communicate()


@pytest.mark.parametrize("backend", ["--backend=asyncio", "--backend=trio"])
def test_the_terminal_client_talks_sends_and_saves_pictures(
    backend: str, tmp_path: Path, terminal: list[subprocess.Popen[str]]
) -> None:
    picture = PNG + bytes(100_000)
    (tmp_path / "sent.png").write_bytes(picture)
    with serve("examples.chat") as server, ExitStack() as stack:
        ada = join(stack, server, "ada")
        command = [sys.executable, "-W", "error", "-m", "examples.chat.client", server.url, backend]
        client = subprocess.Popen(
            [*command, "--name=zoe"],
            cwd=ROOT,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        terminal.append(client)
        assert client.stdin is not None
        assert client.stdout is not None
        assert "you are zoe" in client.stdout.readline()

        def type_line(line: str) -> None:
            assert client.stdin is not None
            client.stdin.write(f"{line}\n")
            client.stdin.flush()

        type_line("hello from a terminal")
        fields = receive(ada, "message")
        assert (fields["from"], fields["text"]) == ("zoe", "hello from a terminal")
        assert "hello from a terminal" in client.stdout.readline()
        say(ada, "[bold]no markup[/bold]")
        assert "ada [bold]no markup[/bold]" in client.stdout.readline()
        type_line(f"/image {tmp_path}/sent.png")
        told = receive(ada, "image")
        assert server.ask(f"/pictures/lobby/{told['id']}").body == picture
        shown = client.stdout.readline()
        ident = re.search(r"/save (\S+)", shown)
        assert ident is not None, shown
        type_line(f"/save {ident[1]} {tmp_path}/saved.png")
        assert "saved" in client.stdout.readline()
        assert (tmp_path / "saved.png").read_bytes() == picture
        type_line("/quit")
        assert client.wait(LIMIT) == 0
        # Without a server it says so.
        assert client.stderr is not None
        assert not client.stderr.read()
    done = subprocess.run(command, capture_output=True, cwd=ROOT, timeout=LIMIT, check=False)
    assert done.returncode == 1
    assert done.stderr.startswith(b"chat: ")
