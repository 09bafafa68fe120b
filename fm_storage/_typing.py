"""Names that every room may use to describe values; no behaviour lives here."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeAlias

__all__ = ["Json", "JsonObject", "Progress"]

Json: TypeAlias = "bool | int | float | str | list[Json] | dict[str, Json] | None"
JsonObject: TypeAlias = "dict[str, Json]"

Progress: TypeAlias = Callable[[int, int | None], None]
"""Called as ``progress(done, total)``; *total* is None while it is unknown."""
