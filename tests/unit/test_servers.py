"""What the tests find out about servers leaves nothing behind."""

from __future__ import annotations

import gc
import warnings
from pathlib import Path

import pytest

from tests.support import servers


def test_an_engine_that_is_gone_is_no_engine_and_leaves_no_socket(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Docker's client leaks the socket that it could not connect."""
    monkeypatch.setenv("DOCKER_HOST", f"unix://{tmp_path}/docker.sock")
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always", ResourceWarning)
        choice = servers.choose(dsn="postgresql:///", qdrant_url=None, insist=False)
        gc.collect()
    assert choice.docker == "no engine"
    assert [str(warning.message) for warning in seen] == []
