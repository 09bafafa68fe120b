"""Folders for tests.

Apart, because pytest's own temporary folders are closed to others, and an
embedded server that root starts runs as somebody else.
"""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

__all__ = ["as_root", "tmp_path"]


@pytest.fixture
def as_root() -> None:
    """Mark a test that only root can run; for others it is deselected."""


@pytest.fixture
def tmp_path() -> Iterator[Path]:
    """Give an empty folder with a short path that a service account can enter."""
    folder = Path(tempfile.mkdtemp(prefix="fm-test-"))
    folder.chmod(0o755)
    yield folder
    shutil.rmtree(folder, ignore_errors=True)
