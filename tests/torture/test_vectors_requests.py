"""Sixty thousand requests of all shapes: none is taken for an outage."""

from __future__ import annotations

import pytest

from fm_storage.vectors import QdrantStore
from tests.support.vector_requests import prepare, send_many


@pytest.mark.torture
@pytest.mark.timeout(3600)
async def test_no_request_is_taken_for_an_outage(
    any_store: QdrantStore, name: str
) -> None:
    """Fifteen thousand on each engine; the store serves on afterwards."""
    await prepare(any_store, name)
    for seed in range(100, 115):
        await send_many(any_store, name, 1000, seed)
    assert await any_store.count(name) == 6
