"""pytest plugin (``-p bench.gpu.failures``): prints each failure at once, since a run that exceeds its time limit prints no summary."""

from typing import Any

import pytest


class Failures:
    """Prints failures to pytest's own output, which is not captured."""

    def __init__(self, config: pytest.Config) -> None:
        self.terminal: Any = config.pluginmanager.get_plugin("terminalreporter")

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """Print a failed or broken test with its traceback."""
        if report.failed:
            self.terminal.write_line(f"\nFAILED {report.nodeid} ({report.when})\n{report.longreprtext}", flush=True)


def pytest_sessionstart(session: pytest.Session) -> None:
    """Only the process that reports: pytest-xdist's workers have no terminal."""
    if not hasattr(session.config, "workerinput"):
        session.config.pluginmanager.register(Failures(session.config))
