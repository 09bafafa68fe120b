"""Typed rows: repositories of models, and the entity of the error catalogue."""

from __future__ import annotations

from fm_storage.repositories.changes import Change
from fm_storage.repositories.error_entries import (
    ErrorEntry,
    ErrorEntryRepository,
    Severity,
)
from fm_storage.repositories.filters import Filter, where
from fm_storage.repositories.identifiers import uuid7
from fm_storage.repositories.models import Column
from fm_storage.repositories.ordering import Order, asc, desc
from fm_storage.repositories.paging import Page
from fm_storage.repositories.repository import Repository

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
