"""The pages of results: blocks between marks are written anew, everything else stays.

A block begins with ``<!-- begin measured: NAME -->`` and ends with ``<!-- end measured -->``.
NAME is ``summary``, ``environment``, ``goals``, ``goals-by-cpu``, ``defaults``, the name of a
scenario, or one of ``web``, ``web-environment`` and ``web-goals``.
"""

from __future__ import annotations

import re

from benchmarks.report import web
from benchmarks.report.goals import defaults_table, goals_table
from benchmarks.report.results import Results
from benchmarks.report.summary import summary_table
from benchmarks.report.tables import case_rows, columns
from benchmarks.scenarios.scenario import all_scenarios

__all__ = ["rewrite"]

BLOCK = re.compile(
    r"(?P<begin><!-- begin measured: (?P<name>\S+) -->\n).*?(?P<end><!-- end measured -->)",
    re.DOTALL,
)


def rewrite(page: str, results: Results) -> str:
    """Return a page with the latest results in each of its blocks.

    :raises ValueError: a block has an unknown name, or the page has no block.
    """
    written, number = BLOCK.subn(
        lambda found: f"{found['begin']}\n{_block(found['name'], results)}\n{found['end']}", page
    )
    if not number:
        raise ValueError("the page has no marks for results")
    return written


def _block(name: str, results: Results) -> str:
    if name == "summary":
        return _table(summary_table(results))
    if name == "environment":
        return _environments(results)
    if name == "web-environment":
        return _environment(results.environments.get(web.SCENARIO, {}))
    if name == "web-goals":
        return _table(web.goals_table(results))
    if name == web.SCENARIO:
        return _web_cases(results)
    if name == "goals":
        return _table(goals_table(results))
    if name == "goals-by-cpu":
        return _table(goals_table(results, by_cpu=True))
    if name == "defaults":
        return _table(defaults_table(results))
    scenario = all_scenarios().get(name)
    if scenario is None:
        raise ValueError(f"there is no scenario or table called {name!r}")
    cases = results.scenarios.get(name, {})
    parts = []
    for case in cases.values():
        where = "" if case.place == "lab" else f" ({case.place})"
        rows = [columns(scenario), *case_rows(scenario, case)]
        parts.append(f"**{scenario.title} {case.name}**{where}\n\n{_table(rows)}")
    return "\n".join(parts) or "Not measured yet.\n"


def _web_cases(results: Results) -> str:
    parts = []
    for case in results.scenarios.get(web.SCENARIO, {}).values():
        rows = [web.case_columns(case), *web.case_rows(case)]
        parts.append(f"**{case.name}**\n\n{_table(rows)}")
    return "\n".join(parts) or "Not measured yet.\n"


def _environments(results: Results) -> str:
    environments = {name: one for name, one in results.environments.items() if name != web.SCENARIO}
    if not environments:
        return "Nothing measured yet.\n"
    latest = max(environments.values(), key=lambda one: one["date"])
    own = ("date", "rounds", "others running")
    common = {name: value for name, value in latest.items() if name not in own}
    measured = [["scenario", *own]]
    measured += [[name, *[one[key] for key in own]] for name, one in environments.items()]
    return f"{_environment(common)}\n{_table(measured)}"


def _environment(named: dict[str, str]) -> str:
    return _table([["", ""], *[[name, value] for name, value in named.items()]])


def _table(rows: list[list[str]]) -> str:
    lines = [f"| {' | '.join(cell.replace('|', '/') for cell in row)} |" for row in rows]
    lines.insert(1, "|---" * len(rows[0]) + "|")
    return "\n".join(lines) + "\n"
