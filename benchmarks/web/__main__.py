"""Measure one Starlette application under several servers: ``python -m benchmarks.web --help``.

Servers take turns, each started anew for each round and pinned to a core; the client has another.
Everything goes over loopback, where the kernel copies what would leave without a copy elsewhere.
"""

from __future__ import annotations

import argparse
import os
import resource
import signal
import sys
import tempfile
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path

from rich.console import Console

from benchmarks.measure.environment import environment
from benchmarks.measure.rounds import Result, Round
from benchmarks.report.results import CaseResults, Results
from benchmarks.report.web import SCENARIO, case_table
from benchmarks.web.cases import Case, cases, make_files
from benchmarks.web.load import Target
from benchmarks.web.servers import ROOT, SERVERS, Server, running
from benchmarks.web.watch import Watch

RESULTS = ROOT / "benchmarks" / "results"
WIDTH = 150
OTHERS = ("starlette", "httptools", "uvicorn", "hypercorn", "granian", "websockets")


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.web", description=__doc__)
    parser.add_argument(
        "--case", action="append", help="only those with this in their name; repeatable"
    )
    parser.add_argument(
        "--server", action="append", help="only those with this in their name; repeatable"
    )
    parser.add_argument("--rounds", type=int, default=5, help="of each server (%(default)s)")
    parser.add_argument("--seconds", type=float, default=3.0, help="of a round (%(default)s)")
    parser.add_argument("--quick", action="store_true", help="one small round: does it work?")
    parser.add_argument("--results", type=Path, default=RESULTS, help="folder (%(default)s)")
    arguments = parser.parse_args()
    if arguments.rounds < 1 or arguments.seconds <= 0:
        parser.error("--rounds and --seconds must be positive")
    if arguments.quick:
        arguments.rounds, arguments.seconds = 1, 0.1
    return arguments


def main() -> int:
    """Measure what the command line asks for; return the exit status."""
    arguments = _arguments()
    console = Console(width=None if sys.stdout.isatty() else WIDTH)
    # SIGTERM ends it like Ctrl-C, so that servers end as well.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    cores = sorted(os.sched_getaffinity(0))
    if len(cores) < 2:
        sys.exit("server and client need a core each")
    os.sched_setaffinity(0, {cores[0]})
    descriptors = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (descriptors, descriptors))
    seconds = None if arguments.quick else arguments.seconds
    results = Results.read(arguments.results)
    results.environments[SCENARIO] = {
        **environment(cores[-1], arguments.rounds, seconds),
        **{name: version(name) for name in OTHERS},
    }
    stored = results.scenarios.setdefault(SCENARIO, {})
    failures = 0
    with tempfile.TemporaryDirectory(prefix="zc_anyio-", dir=ROOT / "build") as name:
        folder = Path(name)
        make_files(folder, quick=arguments.quick)
        for case in cases(folder, quick=arguments.quick):
            servers = [
                server
                for server in SERVERS
                if case.is_for(server) and _is_chosen(server.name, arguments.server)
            ]
            if not servers or not _is_chosen(case.name, arguments.case):
                continue
            found = CaseResults(case.name, case.content.size, case.connections, "loopback")
            for result in _rounds(case, servers, arguments, cores[-1], folder):
                found.peers[result.peer] = result
                console.print(f"[dim]{case.name}: {result.peer}, {len(result.rounds)} rounds")
            console.print(case_table(found))
            failures += sum(result.failure is not None for result in found.peers.values())
            earlier = stored.get(case.name)
            if earlier is not None:
                found.peers = {**earlier.peers, **found.peers}
            stored[case.name] = found
            results.write(arguments.results, SCENARIO)
    if failures:
        console.print(f"[bold red]{failures} failed")
    return 1 if failures else 0


def _is_chosen(name: str, parts: list[str] | None) -> bool:
    return parts is None or any(part in name for part in parts)


def _rounds(
    case: Case, servers: list[Server], arguments: argparse.Namespace, core: int, folder: Path
) -> Iterator[Result]:
    """Measure in turns; gives a server's result so far after each round of it."""
    results = {server.name: Result(server.name) for server in servers}
    for number in range(arguments.rounds):
        # Nobody always comes after the same one.
        turn = number % len(servers)
        for server in servers[turn:] + servers[:turn]:
            result = results[server.name]
            if result.failure:
                continue
            try:
                result.rounds.append(_round(case, server, arguments.seconds, core, folder))
            except Exception as exc:
                result.failure = f"{type(exc).__name__}: {exc}"
            yield result


def _round(case: Case, server: Server, seconds: float, core: int, folder: Path) -> Round:
    with running(server, core, folder, folder / "log") as (process, port):
        path = case.path.format(room=server.room)
        watch = Watch(process)
        load = case.run(Target(port, path, case.content, case.connections, seconds), watch)
    notes = {}
    if load.latencies is not None:
        median, slow = load.latencies
        notes = {"p50_us": round(median * 1e6), "p99_us": round(slow * 1e6)}
    done, size = load.operations, case.content.size
    return Round(done, done * size, load.seconds, watch.cpu_seconds, watch.memory, notes)


if __name__ == "__main__":
    try:
        sys.exit(main())
    except KeyboardInterrupt:
        sys.exit("stopped; the cases that were complete are in the results")
