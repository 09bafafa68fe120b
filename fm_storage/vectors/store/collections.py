"""Calls on whole collections: made, described, indexed, named otherwise, deleted."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from fm_storage.config import CollectionConfig
from fm_storage.errors import CollectionMismatch, CollectionNotFound
from fm_storage.vectors.points import CollectionInfo
from fm_storage.vectors.request.definitions import (
    differences,
    missing_indexes,
    schema_type,
    spec_of,
)
from fm_storage.vectors.store.call import StoreCalls, check_name

__all__ = ["CollectionCalls"]

META_COLLECTION = "fm_storage_meta"


class CollectionCalls(StoreCalls):
    """Calls on whole collections."""

    async def ensure_collection_exists(
        self,
        name: str,
        vector_size: int | CollectionConfig | None = None,
        distance: str = "Cosine",
        *,
        add_indexes: bool = True,
        **options: Any,
    ) -> bool:
        """Create a collection unless it is there; return whether it was created.

        Any number of tasks and processes may ask at once. Nothing is ever
        deleted to make a definition fit.

        Args:
            name: Name of the collection.
            vector_size: Size of its one unnamed vector, or a whole
                ``CollectionConfig``.
            distance: ``Cosine``, ``Euclid``, ``Dot`` or ``Manhattan``.
            add_indexes: Create payload indexes that the definition names and an
                existing collection lacks.
            **options: Fields of ``CollectionConfig``.

        Raises:
            CollectionMismatch: It exists with another definition; the error
                names each field.
            ConfigurationInvalid: The definition is wrong.
            InvalidName: The name is empty, too long, or holds ``/``.
        """
        check_name(name)
        if isinstance(vector_size, CollectionConfig):
            definition = vector_size
        else:
            if vector_size is not None:
                options["size"] = vector_size
            definition = CollectionConfig(distance=distance, **options)
        asked = spec_of(definition)
        created = await self._call(
            "ensure_collection_exists",
            name,
            lambda: self._ensure(name, asked, add_indexes=add_indexes),
        )
        self._defined(name, definition)
        return created

    async def _ensure(
        self, name: str, asked: dict[str, Any], *, add_indexes: bool
    ) -> bool:
        try:
            found = await self._backend.spec(name)
        except CollectionNotFound:
            if await self._backend.create(name, asked):
                self._specs[name] = asked
                return True
            found = await self._backend.spec(name)
        wrong = differences(asked, found)
        missing = missing_indexes(asked, found)
        if not add_indexes:
            wrong |= {
                f"payload_indexes.{field}": (schema_type(schema), None)
                for field, schema in missing.items()
            }
        if wrong:
            raise CollectionMismatch(name, wrong)
        for field, schema in missing.items():
            await self._backend.create_index(name, field, schema)
        self._specs[name] = found
        return False

    async def list_collections(self) -> list[str]:
        """Return the names of all collections, sorted; aliases are not among them."""
        names, _ = await self._call(
            "list_collections", None, self._backend_().collections
        )
        return sorted(name for name in names if name != META_COLLECTION)

    async def collection_info(self, name: str) -> CollectionInfo:
        """Return definition and sizes of a collection, or of an alias' target.

        Raises:
            CollectionNotFound: There is none.
        """
        found = await self._call(
            "collection_info", name, lambda: self._backend.info(name)
        )
        spec = found["spec"]
        return CollectionInfo(
            name=found["name"],
            points=found["points"],
            indexed=found["indexed"],
            total=found["total"],
            vectors=spec["vectors"],
            sparse_vectors=spec["sparse_vectors"],
            payload_indexes={
                field: schema_type(schema)
                for field, schema in spec["payload_indexes"].items()
            },
            status=found["status"],
            aliases=tuple(found["aliases"]),
        )

    async def delete_collection(self, name: str) -> bool:
        """Delete a collection, its points and aliases; False when there is none."""
        self._specs.clear()
        return await self._call(
            "delete_collection", name, lambda: self._backend.drop(name)
        )

    async def create_payload_index(
        self, collection: str, field: str, schema: str | Mapping[str, object]
    ) -> None:
        """Index a payload field; harmless when it is indexed already.

        Args:
            collection: Name of an existing collection.
            field: Payload field (``a.b`` reaches into objects).
            schema: ``keyword``, ``integer``, ``float``, ``bool``, ``datetime``,
                ``uuid``, ``geo`` or ``text``, or Qdrant's options with ``type``.

        Raises:
            CollectionNotFound: There is no such collection.
            InvalidRecord: The schema is not known.
        """
        plain = schema if isinstance(schema, str) else dict(schema)
        await self._call(
            "create_payload_index",
            collection,
            lambda: self._backend.create_index(collection, field, plain),
        )
        self._specs.pop(collection, None)

    async def delete_payload_index(self, collection: str, field: str) -> None:
        """Drop the index of a payload field; harmless when there is none."""
        await self._call(
            "delete_payload_index",
            collection,
            lambda: self._backend.delete_index(collection, field),
        )
        self._specs.pop(collection, None)

    async def list_aliases(self) -> dict[str, str]:
        """Return ``{alias: collection}``."""
        _, aliases = await self._call(
            "list_aliases", None, self._backend_().collections
        )
        return dict(aliases)

    async def set_aliases(self, targets: Mapping[str, str | None]) -> None:
        """Point aliases at collections, or remove them (None), all at once.

        Readers of an alias see its old target or its new one, never neither.

        Raises:
            CollectionNotFound: A target does not exist; nothing was changed.
            InvalidName: An alias is the name of a collection.
        """
        for alias in targets:
            check_name(alias)
        await self._call(
            "set_aliases", None, lambda: self._backend.set_aliases(targets)
        )
        self._specs.clear()

    async def exchange(self, name: str, target: str, *, retired: str) -> None:
        """Let *name*, an alias or a collection's own, mean *target* from now on.

        A collection of that name is called *retired* afterwards in the embedded
        engine, at one stroke; a server cannot rename, so there it is deleted, and
        for a moment the name means nothing. An alias changes at one stroke on both.

        Raises:
            CollectionNotFound: There is no *target*.
            InvalidName: *retired* is taken.
        """
        check_name(retired)
        await self._call(
            "exchange", name, lambda: self._backend.exchange(name, target, retired)
        )
        self._specs.clear()
