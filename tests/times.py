"""A plugin of pytest that notes what each test takes, for tools/test_times.py: -p tests.times --times FILE.

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
