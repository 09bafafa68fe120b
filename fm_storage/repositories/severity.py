"""How bad an error is: separate from its entity, so that a log is read without that."""

from __future__ import annotations

import enum


class Severity(enum.StrEnum):
    """How bad an error is, from least to most."""

    DEBUG = "DEBUG"
    INFO = "INFO"
    WARNING = "WARNING"
    ERROR = "ERROR"
    CRITICAL = "CRITICAL"
