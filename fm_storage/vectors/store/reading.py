"""Searching: a query is encoded by the collection's definition, then asked."""

from __future__ import annotations

from fm_storage.errors import InvalidVector, RecordNotFound
from fm_storage.vectors.points import ScoredPoint
from fm_storage.vectors.request.queries import Asked, ids_in
from fm_storage.vectors.store.call import Calls

__all__ = ["find"]


async def find(calls: Calls, collection: str, asked: Asked) -> list[ScoredPoint]:
    """See ``QdrantStore.query()``."""
    spec = await calls.spec(collection)
    try:
        request = asked.encoded(spec, collection)
    except InvalidVector:
        # The definition may have changed since it was last looked up.
        changed = await calls.changed_spec(collection)
        if changed is None:
            raise
        request = asked.encoded(changed, collection)
    try:
        found: list[ScoredPoint] = await calls.ask("query", collection, request)
    except RecordNotFound as exc:
        # The engine knows the id that it was given, not the caller's.
        key = ids_in(asked.query, asked.prefetch).get(str(exc.key), exc.key)
        raise RecordNotFound(collection, key) from exc
    return found
