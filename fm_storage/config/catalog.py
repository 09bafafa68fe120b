"""The settings of the error catalogue."""

from __future__ import annotations

from pydantic import Field

from fm_storage.config.section import Section

_PLAIN = r"^\P{C}+$"  # no control characters, nor halves of one


class CatalogConfig(Section):
    """The error catalogue: what is kept of an error, and how often.

    Attributes:
        release: Release of the application, kept beside each error.
        environment: Where it runs (``production``), kept beside each error.
        group_limit: Errors of one group that a process stores in a minute; those
            beyond it are only counted. None stores all.
    """

    section = "catalog"
    release: str | None = Field(default=None, max_length=200, pattern=_PLAIN)
    environment: str | None = Field(default=None, max_length=200, pattern=_PLAIN)
    group_limit: int | None = Field(default=None, ge=1)
