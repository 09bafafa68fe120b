"""What the store asks of an engine, and which one a configuration means.

The client of a server is not loaded where the engine is embedded.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Protocol

from fm_storage.config import QdrantConfig
from fm_storage.errors import ConfigurationInvalid
from fm_storage.vectors.request.operations import Request


class Backend(Protocol):
    """One engine.

    Attributes:
        kind: ``embedded``, ``server`` or ``memory``.
        retries: Whether failed attempts may be repeated by the store.
        restarts: Times an embedded engine was started anew.
        native: The client below, if there is one.
        page_bytes: Bytes of points that one answer should have at most.
        number_bytes: As how many bytes a number of a vector counts.
    """

    kind: str
    retries: bool
    restarts: int
    native: Any
    page_bytes: int
    number_bytes: int

    @property
    def pid(self) -> int | None:
        """Process of the embedded engine, while one is connected."""

    async def open(self) -> None:
        """Get ready; makes no connection."""

    async def aclose(self) -> None:
        """Close every connection."""

    async def call(
        self, operation: str, collection: str | None, request: Request | None
    ) -> Any:
        """Carry out one operation; its request has been checked.

        Operations without a request: ``ready`` (a line that says what answered),
        ``identity`` (the stable id of the store), ``marker`` (what was last
        noted), ``collections`` (names, and aliases with their targets), ``spec``
        and ``info`` (a collection's definition; definition and sizes), ``drop``
        (False when there is no such collection).

        Raises:
            StorageError: Whatever went wrong, as one of our errors.
        """


def backend_for(config: QdrantConfig, folder: Path | None) -> Backend:
    """Return the engine that a configuration means; nothing is opened.

    Raises:
        ConfigurationInvalid: An embedded engine without a folder.
    """
    if config.embedded:
        from fm_storage.vectors.embedded.client import EmbeddedEngine

        named = config.url.removeprefix("embedded:")
        if folder is None and not named:
            raise ConfigurationInvalid(
                "qdrant.url",
                "is embedded and no data folder was given; write embedded:PATH",
            )
        place = folder if folder is not None else Path(named).expanduser()
        return EmbeddedEngine(
            place / "qdrant",
            durability=config.durability,
            index_threshold=config.index_threshold,
        )
    from fm_storage.vectors.server.engine import ServerEngine

    return ServerEngine(config)
