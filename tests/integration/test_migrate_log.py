"""What migrations log, and under which name."""

from __future__ import annotations

import logging

import pytest

from fm_storage.config import MigrationsConfig
from fm_storage.migrate import Migrator


async def test_the_engine_s_lines_are_ours(
    empty_dsn: str, caplog: pytest.LogCaptureFixture
):
    """An application that sets our level is not met by another package's lines."""
    with caplog.at_level(logging.INFO):
        await Migrator(empty_dsn, MigrationsConfig()).apply(to="0001")
    names = {record.name for record in caplog.records}
    assert "fm_storage.migrate" in names
    assert not any(name.startswith("yoyo") for name in names)
    caplog.clear()
    with caplog.at_level(logging.INFO), caplog.at_level(logging.WARNING, "fm_storage"):
        await Migrator(empty_dsn, MigrationsConfig()).apply(to="0002")
    assert not caplog.records
