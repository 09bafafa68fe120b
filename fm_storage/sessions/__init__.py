"""Sessions: temporary views that always go, whatever becomes of their process."""

from __future__ import annotations

from fm_storage.sessions.creating import CreateProgress
from fm_storage.sessions.names import TempView
from fm_storage.sessions.reports import CleanupReport, Refusal, SessionInfo, ViewInfo
from fm_storage.sessions.service import SessionService, SessionStatistics
from fm_storage.sessions.session import PostgresSessionManager

__all__ = [
    "CleanupReport",
    "CreateProgress",
    "PostgresSessionManager",
    "Refusal",
    "SessionInfo",
    "SessionService",
    "SessionStatistics",
    "TempView",
    "ViewInfo",
]
