"""The inside of objects, for tests that break one part or look at it.

Private attributes are reached here and nowhere else, one function each, so that a
change of the inside is followed in one place.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from fm_storage.catalog import ErrorManager
    from fm_storage.catalog.record.recorder import Recorder

__all__ = ["recorder_of"]


def recorder_of(errors: ErrorManager) -> Recorder:
    """Return what stores the entries: its spool, its replay, its store."""
    return errors._recorder
