"""One stored field: where it stands in the model and in the table."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from fm_storage.errors import InvalidRecord
from fm_storage.repositories.model.scalar_types import ColumnType, Refused


@dataclass(frozen=True, slots=True)
class Stored:
    """One stored field.

    Attributes:
        field: Name in the model.
        column: Name in the table, as it is.
        quoted: The same as an SQL identifier.
        type: What it holds.
        nullable: Whether the model allows None.
        generated: Whether the server gives the value of a new row.
    """

    field: str
    column: str
    quoted: str
    type: ColumnType
    nullable: bool
    generated: bool

    def encode(self, value: Any, index: int | None = None) -> Any:
        """Return *value* as it is stored.

        Raises:
            InvalidRecord: It cannot be stored.
        """
        if value is None:
            if self.nullable:
                return None
            raise self.refusal("is None; give a value", index)
        try:
            return self.type.encode(value)
        except Refused as exc:
            raise self.refusal(str(exc), index) from exc

    def refusal(self, why: str, index: int | None = None) -> InvalidRecord:
        """Return the error about what is wrong with this field's value."""
        at = "" if index is None else f"record {index}: "
        return InvalidRecord(f"{at}{self.field}: {why}", field=self.field, index=index)
