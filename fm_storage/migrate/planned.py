"""What a call to the migrator reports: plans, results and progress.

Separate from the runner, so that the modules it loads only when something is pending
can make them too.
"""

from __future__ import annotations

from dataclasses import dataclass

THREAD = "fm_storage migrate"
"""Name of the threads in which a Migrator works."""


@dataclass(frozen=True, slots=True)
class Progress:
    """What a call is doing at the moment.

    Attributes:
        what: ``waiting`` (for another process; *name* is which), ``statement``,
            ``blocked`` (a table is locked; it tries again), ``invalid index``
            (an interrupted one is dropped).
        name: The migration, or who holds the lock.
        step: Position of the statement, from 1; 0 where there is none.
        steps: How many statements there are.
        elapsed: Seconds since the call began; reported again every few seconds
            while nothing else changes.
    """

    what: str
    name: str
    step: int
    steps: int
    elapsed: float


@dataclass(frozen=True, slots=True)
class PlannedMigration:
    """One migration that was run, or would be.

    Attributes:
        id: File name without its ending.
        source: Folder or package it comes from.
        sql: The statements, as they are in the file.
        seconds: How long it took; None in a dry run.
    """

    id: str
    source: str
    sql: str
    seconds: float | None = None
