"""Compare zc_anyio with other ways to send: ``python -m benchmarks --help``."""

from __future__ import annotations

import argparse
import os
import resource
import signal
import sys
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from benchmarks.lab.network import LabUnavailable, enter_lab
from benchmarks.lab.place import LAB, Place, loopback
from benchmarks.measure.environment import environment
from benchmarks.measure.rounds import Case, Settings, rounds
from benchmarks.peers.peer import Peer, peers_of
from benchmarks.report.results import CaseResults, Results
from benchmarks.report.tables import case_table
from benchmarks.scenarios.scenario import Scenario, all_scenarios

RESULTS = Path(__file__).with_name("results")
# Wide enough for a table where there is no terminal to ask.
WIDTH = 132


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument(
        "--scenario", action="append", choices=list(all_scenarios()), help="only this; repeatable"
    )
    parser.add_argument("--case", action="append", help="only cases of this name; repeatable")
    parser.add_argument(
        "--peer", action="append", help="only peers with this in their name; repeatable"
    )
    parser.add_argument("--rounds", type=int, default=5, help="rounds of each peer (%(default)s)")
    parser.add_argument("--seconds", type=float, default=0.15, help="of each round (%(default)s)")
    parser.add_argument(
        "--quick", action="store_true", help="two small rounds of a few cases: does it work?"
    )
    parser.add_argument(
        "--place",
        choices=["lab", "loopback"],
        help="where to send; default: the lab, or loopback if the lab cannot be made",
    )
    parser.add_argument("--core", type=int, help="core to which everything that sends is pinned")
    parser.add_argument("--results", type=Path, default=RESULTS, help="folder (%(default)s)")
    parser.add_argument(
        "--send-zerocopy", default="", metavar="PROGRAM", help="liburing's built example"
    )
    arguments = parser.parse_args()
    if arguments.rounds < 1 or arguments.seconds <= 0:
        parser.error("--rounds and --seconds must be positive")
    return arguments


def _find_place(wanted: str | None, console: Console) -> str:
    if wanted == "loopback":
        return "loopback"
    try:
        enter_lab()
    except LabUnavailable as exc:
        if wanted == "lab":
            sys.exit(f"the lab cannot be made: {exc}")
        left_out = [one.name for one in all_scenarios().values() if "loopback" not in one.places]
        console.print(
            f"[bold yellow]Measuring on loopback, where the kernel copies zero-copy data too and "
            f"without {' and '.join(left_out)}, because the lab cannot be made: {exc}."
        )
        return "loopback"
    return "lab"


def _chosen(
    arguments: argparse.Namespace, place: str
) -> Iterator[tuple[Scenario, str, list[Case], list[Peer]]]:
    for scenario in all_scenarios().values():
        if arguments.scenario and scenario.name not in arguments.scenario:
            continue
        where = place if place in scenario.places else scenario.places[-1]
        if where == "lab" and place != "lab":
            continue
        wanted = arguments.case or (scenario.quick if arguments.quick else None)
        cases = [case for case in scenario.cases if wanted is None or case.name in wanted]
        peers = [
            peer
            for peer in peers_of(scenario.kind)
            if not arguments.peer or any(part in peer.name for part in arguments.peer)
        ]
        if cases and peers:
            yield scenario, where, cases, peers


def main() -> int:
    """Measure what the command line asks for; return the exit status."""
    arguments = _arguments()
    console = Console(width=None if sys.stdout.isatty() else WIDTH)
    # SIGTERM ends it like Ctrl-C, so that child processes end as well.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    cores = sorted(os.sched_getaffinity(0))
    core = cores[-1] if arguments.core is None else arguments.core
    descriptors = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (descriptors, descriptors))
    place = _find_place(arguments.place, console)
    settings = Settings(
        2 if arguments.quick else arguments.rounds,
        None if arguments.quick else arguments.seconds,
        core,
        {"send_zerocopy": arguments.send_zerocopy},
    )
    results = Results.read(arguments.results)
    failures = 0
    with ExitStack() as stack:
        places: dict[str, Place] = {"lab": LAB, "loopback": stack.enter_context(loopback(cores[0]))}
        os.sched_setaffinity(0, {core})
        described = environment(core, settings.rounds, settings.seconds)
        console.print("; ".join(f"{name} {value}" for name, value in described.items()))
        for scenario, where, cases, peers in _chosen(arguments, place):
            results.environments[scenario.name] = described
            stored = results.scenarios.setdefault(scenario.name, {})
            for case in cases:
                found = _measure(scenario, case, peers, places[where], settings, console)
                console.print(case_table(scenario, found))
                failures += sum(result.failure is not None for result in found.peers.values())
                _merge(stored, found)
                results.write(arguments.results, scenario.name)
    if failures:
        console.print(f"[bold red]{failures} failed")
    return 1 if failures else 0


def _merge(stored: dict[str, CaseResults], found: CaseResults) -> None:
    """Keep the earlier results of peers that did not run now."""
    earlier = stored.get(found.name)
    if earlier is not None and earlier.place == found.place:
        found.peers = {**earlier.peers, **found.peers}
    stored[found.name] = found


def _measure(
    scenario: Scenario,
    case: Case,
    peers: list[Peer],
    place: Place,
    settings: Settings,
    console: Console,
) -> CaseResults:
    found = CaseResults(case.name, case.size, case.connections, place.name)
    bar = Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        console=console,
        transient=True,
    )
    if scenario.once:
        settings = replace(settings, seconds=None)
    with bar:
        total = (settings.rounds + 1) * len(peers)
        task = bar.add_task(f"{scenario.title} {case.name}", total=total)
        for results in rounds(scenario.measure, peers, case, place, settings):
            found.peers = {result.peer: result for result in results}
            bar.advance(task)
    return found


if __name__ == "__main__":
    try:
        sys.exit(main())
    except KeyboardInterrupt:
        sys.exit("stopped; the cases that were complete are in the results")
