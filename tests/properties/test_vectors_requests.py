"""Whatever is asked is answered or refused by name, on every engine alike."""

from __future__ import annotations

import pytest

from fm_storage.vectors import QdrantStore
from tests.support.vector_requests import prepare, send_many


@pytest.mark.timeout(180)
@pytest.mark.parametrize("seed", [1, 2])
async def test_request_is_answered_or_refused_by_name(
    any_store: QdrantStore, name: str, seed: int
) -> None:
    """Two thousand requests of all shapes; the store serves on afterwards."""
    await prepare(any_store, name)
    answered = await send_many(any_store, name, 250, seed)
    assert 20 < answered < 240
    assert await any_store.count(name) == 6
