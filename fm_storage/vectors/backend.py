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
from fm_storage.vectors.encoding import Encoded
from fm_storage.vectors.points import ScoredPoint

__all__ = ["Backend", "backend_for"]

Json = Mapping[str, Any]
Ids = Sequence[int | str]


class Backend(Protocol):  # each method means what the store's of like name says
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
    def pid(self) -> int | None: ...
    async def open(self) -> None: ...
    async def aclose(self) -> None: ...
    async def ready(self) -> str: ...
    async def identity(self) -> str: ...
    async def get_marker(self) -> dict[str, Any]: ...
    async def set_marker(self, marker: Json) -> None: ...
    async def collections(self) -> tuple[list[str], dict[str, str]]: ...
    async def info(self, collection: str) -> dict[str, Any]: ...
    async def create(self, collection: str, spec: Json) -> bool: ...
    async def drop(self, collection: str) -> bool: ...
    async def set_aliases(self, targets: Mapping[str, str | None]) -> None: ...
    async def create_index(self, collection: str, field: str, schema: Any) -> None: ...  # noqa: ANN401 - text or object
    async def delete_index(self, collection: str, field: str) -> None: ...
    async def upsert(
        self, collection: str, batch: Sequence[Encoded], *, newer_by: str | None
    ) -> None: ...
    async def delete(
        self,
        collection: str,
        *,
        ids: Ids | None,
        chosen: Json | None,
        newer_by: str | None,
        up_to: Sequence[int] | None,
    ) -> None: ...
    async def set_payload(
        self,
        collection: str,
        payload: bytes,
        *,
        ids: Ids | None,
        chosen: Json | None,
        key: str | None,
        overwrite: bool,
    ) -> None: ...
    async def delete_payload(
        self,
        collection: str,
        keys: Sequence[str],
        *,
        ids: Ids | None,
        chosen: Json | None,
    ) -> None: ...
    async def query(self, collection: str, request: Json) -> list[ScoredPoint]: ...
    async def retrieve(
        self, collection: str, ids: Ids, request: Json
    ) -> list[ScoredPoint]: ...
    async def scroll(
        self, collection: str, request: Json
    ) -> tuple[list[ScoredPoint], int | str | None]: ...
    async def count(self, collection: str, chosen: Json | None) -> int: ...


def backend_for(config: QdrantConfig, folder: Path | None) -> Backend:
    """Return the engine that a configuration means; nothing is opened.

    Raises:
        ConfigurationInvalid: An embedded engine without a folder.
    """
    if config.embedded:
        from fm_storage.vectors.embedded import EmbeddedEngine  # noqa: PLC0415 - lazy

        named = config.url.removeprefix("embedded:")
        if folder is None and not named:
            raise ConfigurationInvalid(
                "qdrant.url",
                "is embedded and no data folder was given; write embedded:PATH",
            )
        place = folder if folder is not None else Path(named).expanduser()
        return EmbeddedEngine(place / "qdrant", durability=config.durability)
    from fm_storage.vectors.server import ServerEngine  # noqa: PLC0415 - loads a client

    return ServerEngine(config)
