"""What the first line of a log entry says, in whichever format it is written."""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

__all__ = ["Header"]


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
