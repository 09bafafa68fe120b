"""The raw part of an answer: vectors as bytes beside the JSON.

Runs in the engine's process only.
"""

from __future__ import annotations

from array import array
from collections.abc import Sequence
from typing import Any

import qdrant_edge as edge


class Raw:
    """The raw part of an answer while it is being put together."""

    def __init__(self) -> None:
        self.floats = bytearray()

    def dense(self, values: Sequence[float]) -> dict[str, list[int]]:
        """Add a dense vector; return the reference to it."""
        start = len(self.floats)
        self.floats += memoryview(array("f", values)).cast("B")
        return {"@d": [start, len(values)]}

    def sparse(self, vector: edge.SparseVector) -> dict[str, list[int]]:
        """Add a sparse vector; return the reference to it."""
        start = len(self.floats)
        self.floats += memoryview(array("I", vector.indices)).cast("B")
        self.floats += memoryview(array("f", vector.values)).cast("B")
        return {"@s": [start, len(vector.indices)]}

    def any(self, vector: Any) -> Any:
        """Add whatever the engine returned as a point's vector."""
        if isinstance(vector, edge.SparseVector):
            return self.sparse(vector)
        if isinstance(vector, dict):
            return {"@n": {name: self.any(value) for name, value in vector.items()}}
        return self.dense(vector)


def wire_id(value: Any) -> int | str:
    """Return an id as JSON has it."""
    return value if isinstance(value, int) else str(value)
