"""Errors and groups of errors that resemble a given one."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from itertools import pairwise
from operator import mul
from typing import TYPE_CHECKING, Any

from fm_storage.catalog.record.drafts import draft_of
from fm_storage.catalog.record.fingerprint import code_that_counts, normalise
from fm_storage.catalog.record.frames import exception_type, weighed_frames
from fm_storage.catalog.record.redact import mask_text
from fm_storage.catalog.record.row import RANKS
from fm_storage.repositories import ErrorEntry, Severity

if TYPE_CHECKING:
    from fm_storage.vectors import Embedding

MORE = 15
"""Hits beyond those asked for that are looked at, for the best to be among them."""

_WORD = re.compile(r"<\w+>|[A-Z]?[^\W\d_A-Z]+|[A-Z]+(?![a-z])")
_PLACEHOLDER, _PAIR, _TYPE, _MODULE = 0.25, 0.5, 2.0, 0.5
_VALUE, _VALUES = 0.1, 50  # what a message says beyond its template
_BESIDE_FRAMES = 0.5  # weight of a message where frames tell more


@dataclass(frozen=True, slots=True)
class SimilarEntry:
    """A stored error and how similar it is.

    Attributes:
        entry: The error.
        score: From 0 to 1, comparable between questions: the mean of how much of
            what either error tells the other tells, too (words, type, frames; the
            innermost of one's own weigh most), and of the cosine of their vectors.
            1 is the same text at the same place, below 0.3 there is hardly a relation.
    """

    entry: ErrorEntry
    score: float


def features_of(entry: ErrorEntry) -> dict[str, float]:
    """Return what an error tells, with its weight."""
    trace = entry.stack_trace
    frames = weighed_frames(trace)
    share = _BESIDE_FRAMES if frames else 1.0
    words = _WORD.findall(normalise(entry.message))
    found: dict[str, float] = {}
    for word in words:
        weight = _PLACEHOLDER if word[0] == "<" else min(len(word), 4) / 4
        found[word.lower()] = weight * share
    for word in entry.message.split(None, _VALUES)[:_VALUES]:
        found.setdefault(f"value {word}", _VALUE * share)
    for first, second in pairwise(words):
        found[f"{first} {second}".lower()] = _PAIR * share
    kind = exception_type(trace) or code_that_counts(entry.error_code, None)
    if kind:
        found[f"type {kind}"] = _TYPE
    found[f"module {entry.module}"] = _MODULE
    for name, weight in frames:
        found[f"frame {name}"] = weight
    return found


def score_of(
    one: Mapping[str, float], other: Mapping[str, float], cosine: float | None
) -> float:
    """Return how similar two errors are, from 0 to 1, by features and vectors."""
    both = sum(min(one[name], other[name]) for name in one.keys() & other.keys())
    either = sum(one.values()) + sum(other.values()) - both
    overlap = both / either if either else 0.0
    return overlap if cosine is None else (overlap + max(0.0, cosine)) / 2


def cosine_of(one: Embedding, other: Embedding) -> float | None:
    """Return the cosine of the dense parts, None where there are none."""
    if one.dense is None or other.dense is None:
        return None
    sizes = math.hypot(*one.dense) * math.hypot(*other.dense)
    return sum(map(mul, one.dense, other.dense)) / sizes if sizes else None


def question_of(error: ErrorEntry | BaseException | str) -> ErrorEntry:
    """Return the error to ask for; of a text no more than that is known."""
    if isinstance(error, ErrorEntry):
        return error
    if isinstance(error, BaseException):
        return draft_of(error).prepared().entry
    return ErrorEntry(
        mask_text(error), "", "", Severity.ERROR, timestamp=datetime.now(UTC)
    )


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
