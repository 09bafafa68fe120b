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
        own_code: Packages or folders whose frames are the application's own
            (``["shop", "/srv/jobs"]``) and decide which fault an error is; by
            default all but those of libraries, the language and servers. It holds
            for the process, and should be equal in all that share a catalogue.
    """

    section = "catalog"
    release: str | None = Field(default=None, max_length=200, pattern=_PLAIN)
    environment: str | None = Field(default=None, max_length=200, pattern=_PLAIN)
    group_limit: int | None = Field(default=None, ge=1)
    own_code: tuple[str, ...] = ()
