"""The error catalogue: errors recorded, grouped, compared and analysed."""

from __future__ import annotations

from fm_storage.catalog.analyzer import Analyzer
from fm_storage.catalog.capture import CatalogMiddleware
from fm_storage.catalog.error_manager import ErrorManager, Recorded
from fm_storage.catalog.groups import ErrorGroup
from fm_storage.catalog.ingest_report import IngestReport
from fm_storage.catalog.internal import spool_failed_start
from fm_storage.catalog.report import Report
from fm_storage.catalog.similarity import SimilarEntry

__all__ = [
    "Analyzer",
    "CatalogMiddleware",
    "ErrorGroup",
    "ErrorManager",
    "IngestReport",
    "Recorded",
    "Report",
    "SimilarEntry",
    "spool_failed_start",
]
