"""The SQL and the encodings of desired state, and nothing else.

Desired state is what the vector store should hold: one row per point in
``fm_storage.vector_state``, and one in ``fm_storage.vector_queue`` until it has
been delivered. Separate from the outbox so that every room that writes records
can append these fragments to its own statement.
"""

from __future__ import annotations

from fm_storage.vector_state.frames import (
    DecodedVectors,
    SparseLike,
    VectorLike,
    decode_vectors,
    encode_vectors,
)
from fm_storage.vector_state.identifiers import (
    decode_id,
    encode_id,
    encode_ids,
    point_id_sql,
)
from fm_storage.vector_state.rows import (
    VERSION_KEY,
    StateRow,
    Unembedded,
    payload_digest,
    state_row,
    stored_payload,
)
from fm_storage.vector_state.shapes import Shape, Shapes
from fm_storage.vector_state.statements import (
    DELETE_MANY,
    DELETE_MANY_FAST,
    UPSERT_MANY,
    UPSERT_MANY_FAST,
    delete_ctes,
    restore_ctes,
    retire_ctes,
    upsert_ctes,
)

__all__ = [
    "DELETE_MANY",
    "DELETE_MANY_FAST",
    "UPSERT_MANY",
    "UPSERT_MANY_FAST",
    "VERSION_KEY",
    "DecodedVectors",
    "Shape",
    "Shapes",
    "SparseLike",
    "StateRow",
    "Unembedded",
    "VectorLike",
    "decode_id",
    "decode_vectors",
    "delete_ctes",
    "encode_id",
    "encode_ids",
    "encode_vectors",
    "payload_digest",
    "point_id_sql",
    "restore_ctes",
    "retire_ctes",
    "state_row",
    "stored_payload",
    "upsert_ctes",
]
