"""What PostgreSQL says the vector store should hold, as tests compare it."""

from __future__ import annotations

from typing import Any

from fm_storage.postgres import Pool
from fm_storage.vector_state import decode_vectors

__all__ = ["states"]


async def states(pool: Pool) -> dict[str, tuple[Any, ...]]:
    """Return operation, vector and payload by point id; all of them are queued."""
    rows = await pool.fetch(
        "SELECT s.*, q.ver AS queued FROM fm_storage.vector_state s "
        "LEFT JOIN fm_storage.vector_queue q USING (collection, point_id)"
    )
    assert all(row["queued"] == row["ver"] for row in rows)
    return {
        row["point_id"]: (
            row["op"],
            row["vectors"] and list(decode_vectors(row["vectors"])[""]),
            row["payload"],
        )
        for row in rows
    }
