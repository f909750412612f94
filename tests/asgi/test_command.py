"""``python -m zc_anyio.asgi`` as users run it: options, workers, reloading, what it says."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import sys
import threading
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import httpx
import pytest
import trustme

from tests.asgi.command import APP, LIMIT, command
from tests.support.commands import ROOT, run
from tests.support.needs import missing, why_not
from tests.support.waiting import until_blocking


def is_alive(process: int) -> bool:
    """Whether a process runs; one that has ended and is still to be waited for does not."""
    try:
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


@pytest.mark.parametrize("backend", ["asyncio", "uvloop", "trio"])
@pytest.mark.parametrize("driver", ["io_uring", "msg_zerocopy", "copy"])
def test_every_event_loop_and_driver(backend: str, driver: str) -> None:
    if (reason := why_not(driver)) is not None:
        missing(f"the driver {driver} cannot run: {reason}")
    with command(f"--backend={backend}", f"--driver={driver}") as served:
        assert served.ask()["driver"] == driver
        answer = httpx.get(f"{served.urls[0]}/file")
        assert answer.content == (ROOT / "tests/asgi/served_app.py").read_bytes()
        assert served.stop() == 0
        assert served.errors() == []
        assert served.process.stdout is not None
        logged = served.process.stdout.read().splitlines()
    pattern = r'INFO:     127\.0\.0\.1:\d+ - "GET / HTTP/1\.1" 200 OK'
    assert re.fullmatch(pattern, logged[0])
    assert len(logged) == 2
    said = "\n".join(served.lines)
    assert re.search(r"INFO:     Started server process \[\d+\]\n", said)
    assert "INFO:     Application startup complete.\n" in said
    assert "INFO:     Application shutdown complete.\n" in said
    assert f" by {driver} (Press CTRL+C to quit)" in said


@pytest.mark.parametrize(
    ("arguments", "status", "said"),
    [
        ([APP, "--port=99999"], 2, "'99999' is not a port, 0 to 65535"),
        ([APP, "--port=-1"], 2, "'-1' is not a port"),
        ([APP, "--workers=0"], 2, "at least 1"),
        ([APP, "--limit-concurrency=x"], 2, "'x' is not a whole number"),
        ([APP, "--timeout-keep-alive=nan"], 2, "'nan' is not a positive number of seconds"),
        ([APP, "--forwarded-allow-ips=nonsense"], 2, "'nonsense' does not appear to be"),
        ([APP, "--backend=curio"], 2, "invalid choice: 'curio'"),
        (["tests.asgi.served_app"], 2, "is not of the form MODULE:APP"),
        (["no_such_module:app"], 1, 'Could not import module "no_such_module"'),
        (["tests.asgi.no_such:app"], 1, 'Could not import module "tests.asgi.no_such"'),
        (["tests.asgi.served_app:none"], 1, 'Attribute "none" not found'),
        (["tests.asgi.served_app:number"], 1, "is not callable"),
        ([APP, "--host=192.0.2.1"], 1, "192.0.2.1, port 8000"),
        ([APP, "--host=192.0.2.1", "--workers=2"], 1, "192.0.2.1, port 8000"),
        ([APP, "--uds=/no/such/folder/socket"], 1, "/no/such/folder/socket"),
        ([APP, "--fd=1000"], 1, "descriptor 1000"),
        ([APP, "--tls-cert=/no/such/file"], 1, "--tls-cert /no/such/file"),
        (["tests.asgi.served_app:fails_to_start"], 3, "no database"),
    ],
)
def test_what_cannot_be_done_is_reported_in_one_line(
    arguments: list[str], status: int, said: str
) -> None:
    done = run(sys.executable, "-m", "zc_anyio.asgi", "--log-level=warning", *arguments)
    assert done.status == status, done
    (line,) = done.errors.splitlines()
    assert said in line


@pytest.mark.parametrize("workers", [1, 2])
def test_a_port_in_use(workers: int) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        arguments = [APP, f"--port={port}", f"--workers={workers}", "--log-level=warning"]
        done = run(sys.executable, "-m", "zc_anyio.asgi", *arguments)
    assert done.status == 1
    (line,) = done.errors.splitlines()
    assert f"127.0.0.1, port {port}: " in line
    assert "in use" in line


@pytest.mark.parametrize("workers", [1, 2])
def test_an_address_of_ipv6(workers: int) -> None:
    with command("--host=::1", workers=workers) as served:
        assert re.fullmatch(r"http://\[::1\]:\d+", served.urls[0])
        assert served.ask()["client"] == "::1"
        assert served.stop() == 0
        assert served.process.stdout is not None
        (logged,) = served.process.stdout.read().splitlines()
    # As uvicorn logs it.
    assert re.fullmatch(r'INFO:     ::1:\d+ - "GET / HTTP/1\.1" 200 OK', logged)


def test_behind_a_proxy() -> None:
    with command("--root-path=/mounted", "--no-access-log") as served:
        forwarded = {"X-Forwarded-For": "1.2.3.4", "X-Forwarded-Proto": "https"}
        told = served.ask(headers=forwarded)
        assert (told["client"], told["scheme"]) == ("1.2.3.4", "https")
        assert told["root_path"] == "/mounted"
        assert served.stop(signal.SIGINT) == 0
        assert served.process.stdout is not None
        assert served.process.stdout.read() == ""
    for option in ("--no-proxy-headers", "--forwarded-allow-ips=10.0.0.0/8"):
        with command(option) as served:
            assert served.ask(headers=forwarded)["client"] == "127.0.0.1"


def test_tls(tmp_path: Path) -> None:
    authority = trustme.CA()
    certificate = authority.issue_cert("127.0.0.1")
    certificate.cert_chain_pems[0].write_to_path(tmp_path / "cert.pem")
    certificate.private_key_pem.write_to_path(tmp_path / "key.pem")
    authority.cert_pem.write_to_path(tmp_path / "ca.pem")
    with command(
        f"--tls-cert={tmp_path / 'cert.pem'}", f"--tls-key={tmp_path / 'key.pem'}"
    ) as served:
        assert served.urls[0].startswith("https://")
        done = run("curl", "-sS", "--cacert", str(tmp_path / "ca.pem"), f"{served.urls[0]}/")
        assert json.loads(done.output)["scheme"] == "https"


@pytest.mark.parametrize("workers", [1, 2])
def test_a_unix_socket(tmp_path: Path, workers: int) -> None:
    path = tmp_path / "socket"
    for _ in range(2):
        with command(f"--uds={path}", workers=workers) as served:
            with httpx.Client(transport=httpx.HTTPTransport(uds=str(path))) as client:
                assert client.get("http://a/").json()["client"] is None
            assert served.stop() == 0
            assert not path.exists()
        # A socket file that was left behind is replaced.
        with socket.socket(socket.AF_UNIX) as left:
            left.bind(str(path))


def test_a_descriptor_for_several_workers() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listening:
        with command(
            f"--fd={listening.fileno()}", workers=2, pass_fds=(listening.fileno(),)
        ) as served:
            assert served.urls[0] == f"http://127.0.0.1:{listening.getsockname()[1]}"
            assert served.processes(2)
            assert served.stop() == 0


def test_what_is_missing_is_told_and_what_is_not_needed_is_not_imported() -> None:
    script = "import sys; sys.modules['httptools'] = None; import zc_anyio.asgi"
    done = run(sys.executable, "-c", script)
    assert done.errors.splitlines()[-1].endswith("pip install 'zc_anyio[asgi]'")
    script = "import sys, zc_anyio.asgi; print(*sys.modules)"
    found = set(run(sys.executable, "-c", script).output.split())
    assert not {"starlette", "trio", "uvloop", "watchfiles"} & found


# --- workers ---


def test_workers_share_the_port_and_one_that_dies_is_replaced() -> None:
    with command(workers=3) as served:
        before = served.processes(3)
        assert len(set(served.urls)) == 1
        with pytest.raises(httpx.HTTPError):
            served.ask("/die")
        until_blocking(lambda: len(served.urls) == 4)
        after = served.processes(3)
        assert len(after - before) == 1
        (error,) = served.errors()
        assert re.search(r"Worker \[\d+\] ended with status -9\.", error)
        assert served.stop() == 0
        assert not any(map(is_alive, before | after))


def test_a_worker_that_has_answered_enough_is_replaced() -> None:
    with command("--limit-max-requests=3", workers=2) as served:
        found = set()

        def asked() -> bool:
            # Both may be starting at the same time.
            with suppress(httpx.ConnectError):
                found.add(served.ask()["process"])
            return len(found) > 4

        until_blocking(asked, "other processes answer")
        assert served.stop() == 0
        assert all("Maximum request limit" in line for line in served.errors())


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGHUP])
def test_workers_end_when_their_parent_does(number: int) -> None:
    with command(workers=2) as served:
        workers = served.processes(2)
        served.stop(number)
        until_blocking(lambda: not any(map(is_alive, workers)))
        with pytest.raises(httpx.ConnectError):
            served.ask()


@pytest.mark.parametrize("by_terminal", [False, True])
def test_a_stop_of_workers_lets_answers_end(by_terminal: bool) -> None:
    with command(workers=2) as served:
        answers: list[Any] = []
        asking = [
            threading.Thread(target=lambda: answers.append(served.ask("/slow"))) for _ in range(4)
        ]
        for thread in asking:
            thread.start()
        until_blocking(lambda: served.lines.count("a slow answer begins") == 4, "all are asked")
        if by_terminal:
            # Ctrl+C is for all processes of its group.
            os.killpg(served.process.pid, signal.SIGINT)
            assert served.process.wait(LIMIT) == 0
        assert served.stop() == 0
        for thread in asking:
            thread.join(LIMIT)
        assert len(answers) == 4


def test_workers_that_cannot_start_are_given_up() -> None:
    arguments = ["tests.asgi.served_app:fails_to_start", "--port=0", "--workers=2"]
    done = run(sys.executable, "-m", "zc_anyio.asgi", *arguments)
    assert done.status == 3
    assert "giving up" in done.errors
    assert "Traceback" not in done.errors


# --- reloading ---


@pytest.mark.parametrize("workers", [1, 2])
def test_a_change_is_loaded(tmp_path: Path, workers: int) -> None:
    module = tmp_path / "changing.py"
    text = (
        "from starlette.applications import Starlette\n"
        "from starlette.responses import JSONResponse\n"
        "from starlette.routing import Route\n"
        "async def home(request):\n"
        "    return JSONResponse({!r})\n"
        "app = Starlette(routes=[Route('/', home)])\n"
    )
    module.write_text(text.format("before"))

    def becomes(expected: str) -> Callable[[], bool]:
        def asks() -> bool:
            try:
                # Each connection is a worker's choice of the kernel; all of them load the change.
                return all(served.ask() == expected for _ in range(8))
            except httpx.HTTPError:
                return False

        return asks

    with command("--reload", app="changing:app", folder=tmp_path, workers=workers) as served:
        assert served.ask() == "before"
        module.write_text(text.format("after"))
        until_blocking(becomes("after"), "the change")
        # A file that does not even parse is waited for until it changes.
        module.write_text("this is no Python")
        until_blocking(lambda: any("SyntaxError" in line for line in served.lines))
        module.write_text(text.format("mended"))
        until_blocking(becomes("mended"), "the mended one")
        assert served.stop() == 0
