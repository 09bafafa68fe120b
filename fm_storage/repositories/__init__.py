"""Typed rows: repositories of models, and the entity of the error catalogue."""

from __future__ import annotations

from fm_storage.postgres.typed_rows import use_row_maker
from fm_storage.repositories.error_entries import ErrorEntry, ErrorEntryRepository
from fm_storage.repositories.identifiers import uuid7
from fm_storage.repositories.model.declaration import Column
from fm_storage.repositories.model.result import row_maker, tests_beyond
from fm_storage.repositories.query.filters import Filter, where
from fm_storage.repositories.query.ordering import Order, asc, desc
from fm_storage.repositories.query.paging import Page
from fm_storage.repositories.repository import Repository
from fm_storage.repositories.rows.hooks import Change
from fm_storage.repositories.severity import Severity

__all__ = [
    "Change",
    "Column",
    "ErrorEntry",
    "ErrorEntryRepository",
    "Filter",
    "Order",
    "Page",
    "Repository",
    "Severity",
    "asc",
    "desc",
    "uuid7",
    "where",
]

use_row_maker(row_maker, tests_beyond)
