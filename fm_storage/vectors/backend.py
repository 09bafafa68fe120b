"""What the store asks of an engine, and which one a configuration means.

Apart from both sides, so that neither imports the other, and so that the
client of a server is not loaded where the engine is embedded.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from fm_storage.config import QdrantConfig
from fm_storage.errors import ConfigurationInvalid
from fm_storage.vectors.points import ScoredPoint
from fm_storage.vectors.request.points import Encoded

__all__ = ["Backend", "backend_for"]

Json = Mapping[str, Any]
Ids = Sequence[int | str]


class Backend(Protocol):
    """One engine. Everything handed in has been checked; errors are ours.

    Attributes:
        kind: ``embedded``, ``server`` or ``memory``.
        retries: Whether failed attempts may be repeated by the store.
        restarts: Times an embedded engine was started anew.
        native: The client below, if there is one.
    """

    kind: str
    retries: bool
    restarts: int
    native: Any

    @property
    def pid(self) -> int | None:
        """Process of the embedded engine, while one is connected."""

    async def open(self) -> None:
        """Get ready; makes no connection."""

    async def aclose(self) -> None:
        """Close every connection."""

    async def ready(self) -> str:
        """Wait for an answer; say what answered."""

    async def identity(self) -> str:
        """Return the stable id of the store."""

    async def get_marker(self) -> dict[str, Any]:
        """Return what was last noted."""

    async def set_marker(self, marker: Json) -> None:
        """Note something, durably."""

    async def collections(self) -> tuple[list[str], dict[str, str]]:
        """Return names, and aliases with their targets."""

    async def spec(self, collection: str) -> dict[str, Any]:
        """Return a collection's definition."""

    async def info(self, collection: str) -> dict[str, Any]:
        """Return definition and sizes."""

    async def create(self, collection: str, spec: Json) -> bool:
        """Create a collection; False when the name is taken."""

    async def drop(self, collection: str) -> bool:
        """Delete a collection; False when there is none."""

    async def set_aliases(self, targets: Mapping[str, str | None]) -> None:
        """Point aliases at collections, or remove them, all at once."""

    async def exchange(self, name: str, target: str, retired: str) -> None:
        """Let a name mean *target*; a collection of that name becomes *retired*."""

    async def create_index(self, collection: str, field: str, schema: Any) -> None:
        """Index a payload field."""

    async def delete_index(self, collection: str, field: str) -> None:
        """Drop a payload index."""

    async def upsert(
        self, collection: str, batch: Sequence[Encoded], *, newer_by: str | None
    ) -> None:
        """Write one batch."""

    async def delete(
        self,
        collection: str,
        *,
        ids: Ids | None,
        chosen: Json | None,
        newer_by: str | None,
        up_to: Sequence[int] | None,
    ) -> None:
        """Delete points by id or filter."""

    async def set_payload(
        self,
        collection: str,
        payload: bytes,
        *,
        ids: Ids | None,
        chosen: Json | None,
        key: str | None,
        overwrite: bool,
    ) -> None:
        """Merge into, or replace, payloads."""

    async def delete_payload(
        self,
        collection: str,
        keys: Sequence[str],
        *,
        ids: Ids | None,
        chosen: Json | None,
    ) -> None:
        """Remove fields from payloads."""

    async def query(self, collection: str, request: Json) -> list[ScoredPoint]:
        """Answer one query."""

    async def retrieve(
        self, collection: str, ids: Ids, request: Json
    ) -> list[ScoredPoint]:
        """Return points by id, in the order asked for."""

    async def scroll(
        self, collection: str, request: Json
    ) -> tuple[list[ScoredPoint], int | str | None]:
        """Return one page and the offset of the next."""

    async def count(self, collection: str, chosen: Json | None) -> int:
        """Count matching points."""


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
