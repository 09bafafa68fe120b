"""The error catalogue: errors recorded, grouped, compared and analysed."""

from __future__ import annotations

from fm_storage.catalog.error_manager import ErrorManager, Origin, Recorded
from fm_storage.catalog.logs.entry import IngestReport
from fm_storage.catalog.query.analyzer import Analyzer
from fm_storage.catalog.query.groups import ErrorGroup
from fm_storage.catalog.query.similarity import SimilarEntry
from fm_storage.catalog.query.splitting import GroupMember
from fm_storage.catalog.record.capture import CatalogMiddleware
from fm_storage.catalog.record.internal import spool_failed_start
from fm_storage.catalog.report.report import Report
from fm_storage.catalog.watch import GroupNotice, WatcherStatus

__all__ = [
    "Analyzer",
    "CatalogMiddleware",
    "ErrorGroup",
    "ErrorManager",
    "GroupMember",
    "GroupNotice",
    "IngestReport",
    "Origin",
    "Recorded",
    "Report",
    "SimilarEntry",
    "WatcherStatus",
    "spool_failed_start",
]
