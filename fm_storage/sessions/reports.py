"""What sessions report: what a clean-up did, and who has which view."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from datetime import datetime
from typing import Literal

from fm_storage.sessions.names import Kind, shown_qualified

Standing = Literal["own", "other", "orphaned", "kept"]


@dataclass(frozen=True, slots=True)
class Refusal:
    """A DROP that was not done.

    Attributes:
        view: Name of the view, as SQL.
        sqlstate: The server's code (``2BP01`` something depends on it, ``42501`` it
            is another role's, ``55P03`` an open reader); ``""`` where we refused.
        message: Why.
        will_retry: Whether it is tried again without anybody's help.
    """

    view: str
    sqlstate: str
    message: str
    will_retry: bool = True


@dataclass(frozen=True, slots=True)
class CleanupReport:
    """What one clean-up did; every view is in exactly one of the lists.

    Attributes:
        dropped: Views that were really dropped.
        already_gone: Views that somebody else had dropped.
        refused: Views that are still there, with the reason.
        forgotten: Views that were only registered, and are left to their maker.
        complete: Whether the clean-up reached its end before its deadline.
    """

    dropped: tuple[str, ...] = ()
    already_gone: tuple[str, ...] = ()
    refused: tuple[Refusal, ...] = ()
    forgotten: tuple[str, ...] = ()
    complete: bool = True

    @property
    def will_be_retried(self) -> tuple[Refusal, ...]:
        """The refusals that are tried again without anybody's help."""
        return tuple(refusal for refusal in self.refused if refusal.will_retry)

    def __add__(self, other: CleanupReport) -> CleanupReport:
        return CleanupReport(
            self.dropped + other.dropped,
            self.already_gone + other.already_gone,
            self.refused + other.refused,
            self.forgotten + other.forgotten,
            self.complete and other.complete,
        )

    @classmethod
    def sum(cls, reports: Iterable[CleanupReport]) -> CleanupReport:
        """Return all *reports* as one."""
        return sum(reports, cls())


@dataclass(frozen=True, slots=True)
class ViewInfo:
    """One registered view, as the server sees it now.

    Attributes:
        size: Bytes on disk, indexes included; None for a plain view, or while
            another session has it locked.
        rows: Rows of a materialized view or table, as far as the server has
            counted them.
        standing: ``own``, ``other`` (of a live owner), ``orphaned``, ``kept``.
        exists: Whether the view is still there.
        refused: SQLSTATE of the last refused DROP, if one was.
    """

    schema: str
    name: str
    kind: Kind
    oid: int
    standing: Standing
    size: int | None
    rows: int | None
    created_at: datetime
    age: float
    owner: str
    session: str
    application_name: str
    host: str
    pid: int
    role: str
    exists: bool = True
    refused: str | None = None

    def __str__(self) -> str:
        """Return the name as SQL."""
        return shown_qualified(self.schema, self.name)


@dataclass(frozen=True, slots=True)
class SessionInfo:
    """Every registered view of the database, by how it stands to the asker.

    Attributes:
        own: Of this session (or of this process, where a service is asked).
        other: Of other live sessions.
        orphaned: Their owner is gone; the reaper has not come yet.
        kept: Left on purpose (automatic clean-up was off).
    """

    own: tuple[ViewInfo, ...] = ()
    other: tuple[ViewInfo, ...] = ()
    orphaned: tuple[ViewInfo, ...] = ()
    kept: tuple[ViewInfo, ...] = ()
    session: str = field(default="", kw_only=True)

    @property
    def views(self) -> tuple[ViewInfo, ...]:
        """All of them."""
        return self.own + self.other + self.orphaned + self.kept

    @property
    def size(self) -> int:
        """Bytes on disk of all of them."""
        return sum(view.size or 0 for view in self.views)
