"""A whole manager: rows, vectors, sessions, as an application opens it."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from fm_storage.config import StorageConfig

if TYPE_CHECKING:
    from fm_storage import StorageManager

__all__ = ["no_variables", "storage", "storage_config"]


@pytest.fixture
def no_variables(monkeypatch: pytest.MonkeyPatch) -> None:
    """Hide the settings that this shell's own environment makes."""
    for name in [name for name in os.environ if name.startswith("FM_STORAGE_")]:
        monkeypatch.delenv(name)


@pytest.fixture
def storage_config(dsn: str, vector_folder: Path, tmp_path: Path) -> StorageConfig:
    """Give a configuration: a fresh migrated database, an empty vector folder."""
    return StorageConfig(
        postgres={"dsn": dsn},
        qdrant={"url": f"embedded:{vector_folder}", "durability": "process"},
        data_dir=tmp_path / "data",
    )


@pytest.fixture
async def storage(storage_config: StorageConfig) -> AsyncIterator[StorageManager]:
    """Give an open manager on real engines."""
    from fm_storage import StorageManager

    async with StorageManager(storage_config) as opened:
        yield opened
