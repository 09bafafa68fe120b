"""What every test may use: the options, the fixtures' files, the honest header.

Fixtures live in ``fix_*.py`` beside this file, one noun each. Here is only what
pytest must find in a ``conftest.py``: options, markers set by the fixtures that
a test uses, and the rule that a test which cannot run here is deselected and
named, never skipped in silence.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Generator
from pathlib import Path

import hypothesis
import pytest

from tests.support import servers

# Every fix_*.py beside this file. Their asserts are to be explained like a
# test's own, in whatever order they import each other.
pytest_plugins = [
    f"tests.{path.stem}" for path in sorted(Path(__file__).parent.glob("fix_*.py"))
]
pytest.register_assert_rewrite(*pytest_plugins)

# Marker set for every test that uses the fixture, directly or not.
_MARKS = {
    "server": "postgres",
    "cluster_template": "cluster",
    "postgis": "cluster",
    "browser": "slow",
    "vector_folder": "qdrant",
}


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add the options that say where the servers are."""
    group = parser.getgroup("fm_storage")
    group.addoption("--dsn", help="superuser DSN of a PostgreSQL server to test on")
    group.addoption("--qdrant-url", help="URL of a Qdrant server to test on as well")
    group.addoption(
        "--quick",
        action="store_true",
        help="of every parametrised test, run only the first case, and a fifth of "
        "the examples of a property",
    )
    group.addoption(
        "--containers",
        action="store_true",
        help="insist on containers: fail where no Docker engine answers",
    )


def pytest_configure(config: pytest.Config) -> None:
    """Choose the servers once, so that the header can say which they are."""
    # A job in the background of a shell ignores SIGINT, and so would every child.
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    # How long an example takes says how busy the machine is.
    hypothesis.settings.register_profile(
        "ours",
        max_examples=20 if config.getoption("--quick") else 100,
        deadline=None,
        suppress_health_check=[hypothesis.HealthCheck.too_slow],
    )
    hypothesis.settings.load_profile("ours")
    config.stash[servers.CHOICE] = servers.choose(
        dsn=config.getoption("--dsn"),
        qdrant_url=config.getoption("--qdrant-url"),
        insist=config.getoption("--containers"),
    )


def pytest_report_header(config: pytest.Config) -> list[str]:
    """Say on what the tests run."""
    return config.stash[servers.CHOICE].header()


def pytest_collection_modifyitems(
    config: pytest.Config, items: list[pytest.Item]
) -> None:
    """Set the markers, and deselect what needs a server that is not there."""
    _keep_first_cases(config, items)
    absent = config.stash[servers.CHOICE].absent()
    kept: list[pytest.Item] = []
    dropped: list[pytest.Item] = []
    for item in items:
        used = set(getattr(item, "fixturenames", ()))
        for fixture, mark in _MARKS.items():
            if fixture in used:
                item.add_marker(mark)
        folder = item.path.parent.name
        if folder in {"torture", "bench"}:
            item.add_marker(folder)
        (dropped if used & absent.keys() else kept).append(item)
    if dropped:
        items[:] = kept
        config.hook.pytest_deselected(items=dropped)
        reporter = config.pluginmanager.get_plugin("terminalreporter")
        for fixture, why in absent.items():
            count = sum(fixture in getattr(i, "fixturenames", ()) for i in dropped)
            if count and reporter is not None:
                reporter.write_line(f"deselected {count} tests: {why}")


def _keep_first_cases(config: pytest.Config, items: list[pytest.Item]) -> None:
    if not config.getoption("--quick"):
        return
    first: dict[str, pytest.Item] = {}
    for item in items:
        first.setdefault(item.nodeid.partition("[")[0], item)
    kept = set(first.values())
    config.hook.pytest_deselected(items=[i for i in items if i not in kept])
    items[:] = [item for item in items if item in kept]


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport() -> Generator[
    None, pytest.TestReport, pytest.TestReport
]:
    """Turn a skip into a failure in CI: nothing there may go untested unseen."""
    report = yield
    if report.skipped and os.environ.get("CI") and not hasattr(report, "wasxfail"):
        report.outcome = "failed"
        report.longrepr = f"skipped, which in CI is a failure: {report.longrepr}"
    return report
