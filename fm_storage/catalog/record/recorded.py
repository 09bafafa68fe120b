"""What became of an error: the answer of ``record()``."""

from __future__ import annotations

from dataclasses import dataclass
from uuid import UUID

from fm_storage.catalog.record.row import Prepared
from fm_storage.repositories import ErrorEntry

__all__ = ["Recorded", "recorded_of"]


@dataclass(frozen=True, slots=True)
class Recorded:
    """What became of an error.

    Attributes:
        entry: The error as it is stored: masked, repaired, with its id.
        durable: True only if PostgreSQL has committed it. False means that it
            lies in the spool on this machine and will be replayed by id.
        repairs: What had to be changed so that it could be stored.
    """

    entry: ErrorEntry
    durable: bool
    repairs: tuple[str, ...] = ()

    @property
    def id(self) -> UUID:
        """Identity of the entry."""
        return self.entry.id


def recorded_of(row: Prepared, *, durable: bool) -> Recorded:
    """Return what a caller is told about *row*."""
    return Recorded(row.entry, durable, row.repairs)
