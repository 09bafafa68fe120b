"""What is read of a log: the first line of an entry, and the counts of the whole."""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import datetime
from typing import Any


@dataclass(slots=True)
class Header:
    """What the first line of an entry says."""

    timestamp: datetime | None
    severity: str | None
    module: str | None
    message: str
    dated: bool = True
    trace: str | None = None
    context: dict[str, Any] = field(default_factory=dict)


@dataclass(slots=True)
class IngestReport:
    """What became of a log.

    Attributes:
        source: Name under which the entries were stored.
        lines: Lines read.
        entries: Entries recognised in them.
        added: Entries that are new in the catalogue.
        skipped: Entries below the least severity asked for.
        unparsed: Lines that belong to no entry; *samples* shows the first ones.
        truncated: Lines or traces too long to be kept whole.
        refused: Entries that the database cannot store, each left out alone;
            *refusals* has the line and the reason of the first ones.
        incomplete: Why the log could be read only in part, if so.
        formats: How many headers each format recognised.
        seconds: Time taken.
    """

    source: str
    lines: int = 0
    bytes: int = 0
    entries: int = 0
    added: int = 0
    skipped: int = 0
    unparsed: int = 0
    truncated: int = 0
    refused: int = 0
    refusals: list[str] = field(default_factory=list)
    incomplete: str | None = None
    samples: list[str] = field(default_factory=list)
    formats: dict[str, int] = field(default_factory=dict)
    seconds: float = 0.0

    def __str__(self) -> str:
        """Return the counts in one line."""
        counts = f"{self.lines} lines, {self.entries} entries"
        parts = [f"{counts}: {self.added} added, {self.duplicates} known before"]
        if self.skipped:
            parts.append(f"{self.skipped} below the severity asked for")
        if self.unparsed:
            parts.append(f"{self.unparsed} lines not recognised")
        if self.truncated:
            parts.append(f"{self.truncated} lines cut")
        if self.refused:
            parts.append(f"{self.refused} refused by the database")
        if self.incomplete:
            parts.append(f"incomplete: {self.incomplete}")
        return ", ".join(parts)

    @property
    def duplicates(self) -> int:
        """Entries that the catalogue held already."""
        return self.entries - self.skipped - self.refused - self.added
