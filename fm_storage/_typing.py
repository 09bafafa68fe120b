"""Names that every room may use to describe values; no behaviour lives here."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol, TypeAlias, runtime_checkable

Json: TypeAlias = "bool | int | float | str | list[Json] | dict[str, Json] | None"
JsonObject: TypeAlias = "dict[str, Json]"

Progress: TypeAlias = Callable[[int, int | None], None]
"""Called as ``progress(done, total)``; *total* is None while it is unknown."""

JSON_DEPTH = 100
"""Levels of objects and arrays in a payload, itself included.

Qdrant's parser stops at 128, of which a batch needs 7; the log of the embedded engine
takes deeper ones, and cannot be read again.
"""


@runtime_checkable
class Relation(Protocol):
    """A table or view by its names, as a session's ``TempView`` is."""

    @property
    def schema(self) -> str:
        """Its schema."""

    @property
    def name(self) -> str:
        """Its name in the schema."""

    @property
    def sql(self) -> str:
        """Both, quoted."""
