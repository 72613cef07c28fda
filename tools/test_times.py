"""Where the time of the tests goes: a plugin of pytest that notes it, and a table of it.

python -m pytest -p tools.test_times --times times.json
python tools/test_times.py times.json            by file, the dearest first
python tools/test_times.py times.json --tests    by test

Seconds on the clock depend on what else runs; CPU seconds, of a test's own process and of the programs that it waited
for, hardly do. What is compiled is measured in the test's own process only.
"""

import collections
import json
import resource
import sys
import time
from pathlib import Path

import pytest

from qil_jax.command_line import Parser
from qil_jax.programs import run_main

COMPILING = "/jax/core/compile/backend_compile_duration"
KEYS = ("clock", "cpu", "children", "compiling")


def _cpu(who: int) -> float:
    usage = resource.getrusage(who)
    return usage.ru_utime + usage.ru_stime


class Times:
    """Notes what each phase of each test took, on the workers, and collects it where they report."""

    def __init__(self, path: Path | None):
        self.path = path
        self.compiled = 0.0
        self.listening = False
        self.tests: dict[str, collections.Counter] = collections.defaultdict(collections.Counter)

    def _listen(self) -> None:
        if not self.listening and "jax" in sys.modules:
            from jax import monitoring

            def note(event: str, seconds: float, **_: object) -> None:
                self.compiled += seconds if event == COMPILING else 0

            monitoring.register_event_duration_secs_listener(note)
            self.listening = True

    def _now(self) -> tuple[float, ...]:
        self._listen()
        return time.monotonic(), _cpu(resource.RUSAGE_SELF), _cpu(resource.RUSAGE_CHILDREN), self.compiled

    @pytest.hookimpl(hookwrapper=True)
    def pytest_runtest_makereport(self, item, call):
        outcome = yield
        now = self._now()
        before = getattr(self, "_before", now)
        outcome.get_result().user_properties = [
            *item.user_properties,
            ("times", dict(zip(KEYS, (b - a for a, b in zip(before, now, strict=True)), strict=True))),
        ]
        self._before = now

    @pytest.hookimpl(tryfirst=True)
    def pytest_runtest_logstart(self, nodeid):
        self._before = self._now()

    def pytest_runtest_logreport(self, report):
        for name, times in report.user_properties:
            if name == "times":
                self.tests[report.nodeid].update(times)

    def pytest_sessionfinish(self, session):
        if self.path is not None and not hasattr(session.config, "workerinput"):
            self.path.write_text(json.dumps(self.tests, indent=0, sort_keys=True), encoding="utf-8")


def pytest_addoption(parser):
    parser.addoption("--times", type=Path, help="the file for what each test took")


def pytest_configure(config):
    config.pluginmanager.register(Times(config.getoption("--times")))


def table(tests: dict[str, dict[str, float]], *, by_test: bool, rows: int) -> str:
    """What tests took, by file or by test, as a Markdown table: the dearest in CPU seconds first."""
    groups: dict[str, collections.Counter] = collections.defaultdict(collections.Counter)
    for name, times in tests.items():
        groups[name if by_test else name.partition("::")[0]].update({**times, "tests": 1})
    total = collections.Counter()
    for times in groups.values():
        total.update(times)
    order = sorted(groups, key=lambda name: -(groups[name]["cpu"] + groups[name]["children"]))
    lines = ["| | tests | clock s | CPU s | of these in programs | compiling s |", "|---|---|---|---|---|---|"]
    for name, times in [*((name, groups[name]) for name in order[:rows]), ("all", total)]:
        figures = (times["clock"], times["cpu"] + times["children"], times["children"], times["compiling"])
        lines.append(f"| {name} | {times['tests']} | " + " | ".join(f"{figure:.1f}" for figure in figures) + " |")
    return "\n".join(lines)


def main(argv: list[str]) -> int:
    """Print the table; returns 0."""
    parser = Parser(description=__doc__)
    parser.add_argument("times", type=Path, help="what --times wrote")
    parser.add_argument("--tests", action="store_true", help="by test instead of by file")
    parser.add_argument("--rows", type=int, default=40, help="how many rows (default %(default)s)")
    arguments = parser.parse_args(argv)
    print(table(json.loads(arguments.times.read_text()), by_test=arguments.tests, rows=arguments.rows))
    return 0


if __name__ == "__main__":
    run_main(main)
