"""Errors and groups of errors that resemble a given one."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from typing import TYPE_CHECKING, Any
from uuid import UUID

from fm_storage.catalog.record.drafts import draft_of
from fm_storage.catalog.record.embedding import text_of_entry
from fm_storage.catalog.record.fingerprint import text_for_vector
from fm_storage.catalog.record.redact import mask_text
from fm_storage.catalog.record.row import RANKS
from fm_storage.repositories import ErrorEntry, Severity

if TYPE_CHECKING:
    pass


@dataclass(frozen=True, slots=True)
class SimilarEntry:
    """A stored error and how similar it is; greater is more similar.

    Scores order the hits of one question; they are not comparable between
    questions, nor between vectorizers.
    """

    entry: ErrorEntry
    score: float


def question_of(error: ErrorEntry | BaseException | str) -> tuple[str, UUID | None]:
    """Return the text to ask for, and the id that is not an answer to itself."""
    if isinstance(error, ErrorEntry):
        return text_of_entry(error), error.id
    if isinstance(error, BaseException):
        return text_of_entry(draft_of(error).prepared().entry), None
    return text_for_vector(mask_text(error)), None


def payload_filter(
    *,
    module: str | None = None,
    severity: Severity | None = None,
    since: datetime | None = None,
) -> dict[str, Any] | None:
    """Return the vector store's filter: module, minimum severity, earliest time."""
    made: dict[str, Any] = {}
    if module is not None:
        made["module"] = module
    if severity is not None:
        made["severity"] = {"gte": RANKS[severity]}
    if since is not None:
        made["at"] = {"gte": since.timestamp()}
    return made or None
