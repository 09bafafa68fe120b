"""``QdrantStore``: one interface to vectors, whichever engine holds them.

What must be the same on every engine happens above it, once: checking before
writing, splitting, deadlines, retries, counting. What differs is behind
``Backend.call()``.
"""

from __future__ import annotations

import os
from collections.abc import (
    AsyncIterator,
    Callable,
    Coroutine,
    Iterable,
    Mapping,
    Sequence,
)
from dataclasses import replace
from pathlib import Path
from typing import Any, Self

from fm_storage._typing import JsonObject, Progress
from fm_storage.config import CollectionConfig, QdrantConfig
from fm_storage.errors import (
    ConfigurationInvalid,
    InvalidRecord,
    VectorStoreUnavailable,
)
from fm_storage.vectors.points import (
    CollectionInfo,
    Point,
    PointGroup,
    PointId,
    ScoredPoint,
    VectorStatistics,
)
from fm_storage.vectors.request.definitions import spec_of
from fm_storage.vectors.request.filters import (
    Filter,
    as_json,
    normal_filter,
    payload_path,
)
from fm_storage.vectors.request.operations import (
    Alias,
    Count,
    DeletePayload,
    DeleteVectors,
    Exchange,
    Facet,
    Index,
    Marker,
    Retrieve,
    Scroll,
    SetPayload,
)
from fm_storage.vectors.request.points import (
    encode_payload,
    function,
    listed,
    of_kind,
    to_wire_id,
)
from fm_storage.vectors.request.queries import (
    Asked,
    asked_from,
    hybrid,
    payload_selector,
    query_parameters,
    value_path,
    vector_names,
    vector_selector,
)
from fm_storage.vectors.request.queries import (
    order_by as normal_order,
)
from fm_storage.vectors.store.call import Calls, check_name
from fm_storage.vectors.store.collections import META_COLLECTION, ensure, info_from
from fm_storage.vectors.store.reading import (
    find,
    find_groups,
    find_many,
    page,
    retrieve,
)
from fm_storage.vectors.store.reindex import Embed, ReindexReport, reindex
from fm_storage.vectors.store.writing import (
    OnChosen,
    deletion,
    ids_or_filter_of,
    on_chosen,
    set_payload,
    update_vectors,
    upsert,
    wire_ids,
)

_PAGE = 500


class QdrantStore:
    """Collections of points, in an embedded engine or on a server.

    Opening is cheap: an embedded engine is started by the first call. Every
    call has one deadline, ``qdrant.timeout``, retries included. A call that is
    cancelled, or that fails with a retryable error, may or may not have been
    carried out; ids make a repeat harmless.

    Args:
        config: Where the vectors are, and the bounds of a call.
        folder: Data folder of an embedded engine, which lives in ``qdrant``
            below it; not needed for a server.

    Raises:
        StorageClosed: Any method, before ``open()`` or after ``aclose()``.
        WrongLoop: Any method, from another event loop.
        ForkedProcess: Any method, in a forked child.
        VectorStoreUnavailable: Any method: the engine or server did not answer.
        EmbeddedFailed: Any method: the embedded engine cannot be started.
    """

    def __init__(
        self, config: QdrantConfig, *, folder: str | os.PathLike[str] | None = None
    ) -> None:
        if not isinstance(config, QdrantConfig):
            raise ConfigurationInvalid(
                "config", f"is a {type(config).__name__}; give QdrantConfig(url=…)"
            )
        self.config = config
        self.folder = None if folder is None else Path(folder)
        self._calls = Calls(config, self.folder)
        # Changed by when_defined() only.
        self._listeners: list[Callable[[str, CollectionConfig], None]] = []

    # Life

    async def open(self) -> None:
        """Make the store usable; ensures the configured collections, if any.

        Raises:
            CollectionMismatch: A configured collection exists and differs.
        """
        if not await self._calls.open():
            return
        try:
            for name, definition in self.config.collections.items():
                await self.ensure_collection_exists(name, definition)
        except BaseException:  # close what was opened, then pass it on
            await self.aclose()
            raise

    async def aclose(self) -> None:
        """Let go of the engine; harmless when repeated, or in a forked child."""
        await self._calls.aclose()

    async def __aenter__(self) -> Self:
        await self.open()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.aclose()

    @property
    def native(self) -> Any:
        """The ``AsyncQdrantClient`` below, or None for the embedded engine."""
        self._calls.check()
        return self._calls.backend.native

    async def ready(self, *, timeout: float | None = None) -> str:
        """Wait for an answer; return a line that says what answered.

        Args:
            timeout: Seconds to wait at most; by default ``qdrant.timeout``.

        Raises:
            VectorStoreUnavailable: Nothing answers, or a server too old for
                conditional updates (before 1.16).
        """
        try:
            answer: str = await self._calls.one("ready", None, timeout=timeout)
        except VectorStoreUnavailable as exc:
            if not exc.retryable or self.config.embedded:
                raise
            raise VectorStoreUnavailable(
                f"{str(exc).removesuffix('; try again later')}; is a Qdrant server "
                f"running at {self.config.url}, and is the address right?",
                operation="ready",
            ) from exc
        return answer

    def statistics(self) -> VectorStatistics:
        """Return what this store has done since it opened; no I/O."""
        calls = self._calls
        calls.check()
        return VectorStatistics(
            calls=dict(calls.calls),
            errors=dict(calls.errors),
            retries=calls.retries,
            restarts=calls.backend.restarts,
            engine=calls.backend.kind,
            engine_pid=calls.backend.pid,
        )

    async def identity(self) -> str:
        """Return the stable id of this vector store."""
        return str(await self._calls.one("identity", None))

    async def get_marker(self) -> JsonObject:
        """Return what ``set_marker()`` noted last; empty at first."""
        return dict(await self._calls.one("get_marker", None, "marker"))

    async def set_marker(self, marker: Mapping[str, object]) -> None:
        """Note a small JSON object in the vector store itself, durably."""
        of_kind(marker, Mapping, "marker", "give an object")
        await self._calls.one("set_marker", None, request=Marker(dict(marker)))

    # Collections

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
        created = await self._calls.run(
            "ensure_collection_exists",
            name,
            lambda: ensure(
                self._calls, name, spec_of(definition), add_indexes=add_indexes
            ),
        )
        self._defined(name, definition)
        return created

    def when_defined(self, listener: Callable[[str, CollectionConfig], None]) -> None:
        """Call *listener* on each definition that this store gives to a name.

        Called as ``listener(name, definition)`` when a collection was ensured, and
        when ``reindex()`` has exchanged a name; it must neither wait nor raise.
        """
        self._listeners.append(listener)

    def _defined(self, name: str, definition: CollectionConfig) -> None:
        for listener in self._listeners:
            listener(name, definition)

    async def list_collections(self) -> list[str]:
        """Return the names of all collections, sorted; aliases are not among them."""
        names, _ = await self._calls.one("list_collections", None, "collections")
        return sorted(name for name in names if name != META_COLLECTION)

    async def collection_info(self, name: str) -> CollectionInfo:
        """Return definition and sizes of a collection, or of an alias' target.

        Raises:
            CollectionNotFound: There is none.
        """
        return info_from(await self._calls.one("collection_info", name, "info"))

    async def delete_collection(self, name: str) -> bool:
        """Delete a collection, its points and aliases; False when there is none."""
        self._calls.specs.clear()
        return bool(await self._calls.one("delete_collection", name, "drop"))

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
            InvalidRecord: The schema is not known, or *field* is none.
        """
        request = Index(payload_path(field, "field"), as_json(schema))
        await self._calls.one(
            "create_payload_index", collection, "create_index", request
        )
        self._calls.specs.pop(collection, None)

    async def delete_payload_index(self, collection: str, field: str) -> None:
        """Drop the index of a payload field; harmless when there is none."""
        request = Index(payload_path(field, "field"))
        await self._calls.one(
            "delete_payload_index", collection, "delete_index", request
        )
        self._calls.specs.pop(collection, None)

    async def list_aliases(self) -> dict[str, str]:
        """Return ``{alias: collection}``."""
        _, aliases = await self._calls.one("list_aliases", None, "collections")
        return dict(aliases)

    async def set_aliases(self, targets: Mapping[str, str | None]) -> None:
        """Point aliases at collections, or remove them (None), all at once.

        Readers of an alias see its old target or its new one, never neither.

        Raises:
            CollectionNotFound: A target does not exist; nothing was changed.
            InvalidName: An alias is the name of a collection.
            InvalidRecord: *targets* is no mapping.
        """
        of_kind(targets, Mapping, "targets", "give {alias: collection, or None}")
        for name in (*targets, *targets.values()):
            if name is not None:
                check_name(name)
        await self._calls.one("set_aliases", None, request=Alias(dict(targets)))
        self._calls.specs.clear()

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
        await self._calls.one("exchange", name, request=Exchange(target, retired))
        self._calls.specs.clear()

    async def reindex(
        self,
        collection: str,
        definition: CollectionConfig,
        embed: Embed | None = None,
        *,
        version: str = "",
        progress: Progress | None = None,
    ) -> ReindexReport:
        """Move a collection to a new definition while it is read and written.

        The points are copied into a new collection, then what changed meanwhile,
        until a pass finds nothing new; then the name is exchanged and the
        stragglers follow. If cancelled or killed, the next call with the same
        arguments goes on where this one was. Points written again and again all
        the time must be written through ``newer_by`` to be sure of the last one.

        Args:
            collection: Name that the application uses: an alias, or a
                collection's own name (which is an alias from then on).
            definition: The new definition.
            embed: Returns the new vectors of points; without it they are copied.
            version: Distinguishes two reindexes to the same definition (another
                model of the same size).
            progress: Called as ``progress(copied, total)``.

        Raises:
            CollectionNotFound: There is no such collection.
            InvalidVector: *embed* returns what does not fit; nothing is exchanged.
        """
        if not isinstance(definition, CollectionConfig):
            raise ConfigurationInvalid(
                "definition",
                f"is a {type(definition).__name__}; give a CollectionConfig",
            )
        function(embed, "embed")
        function(progress, "progress")
        return await reindex(
            self,
            collection,
            definition,
            embed,
            version=version,
            progress=progress,
            exchanged=lambda: self._defined(collection, definition),
        )

    # Writing

    async def upsert_points(
        self,
        collection: str,
        points: Iterable[Point],
        *,
        newer_by: str | None = None,
        update_filter: Filter = None,
        progress: Progress | None = None,
    ) -> int:
        """Write points, replacing those with the same id; return how many were given.

        Nothing is sent unless every point fits. Large sets are split by bytes
        and count and sent a few at a time; if one request fails for good, or the
        call is cancelled, others may have been applied.

        Args:
            collection: Name of an existing collection or alias.
            points: ``Point`` objects (``PointStruct`` of the client will do).
            newer_by: Payload field with a number: a stored point is replaced
                only by one whose number is greater.
            update_filter: A stored point is replaced only where it matches; points
                that are not there yet are written in any case.
            progress: Called as ``progress(done, total)`` after each request.

        Raises:
            CollectionNotFound: There is no such collection.
            DimensionMismatch: A vector's length is not the collection's.
            InvalidVector: A vector is unknown, missing, or not finite.
            InvalidRecord: An id or a payload cannot be stored.

        See https://qdrant.tech/documentation/concepts/points/.
        """
        if newer_by is not None:
            payload_path(newer_by, "newer_by")
        function(progress, "progress")
        return await self._calls.run(
            "upsert_points",
            collection,
            lambda: upsert(
                self._calls,
                collection,
                listed(points, "points"),
                newer_by=newer_by,
                update_filter=update_filter,
                progress=progress,
            ),
        )

    async def update_vectors(
        self, collection: str, points: Iterable[Point], *, update_filter: Filter = None
    ) -> None:
        """Replace vectors of stored points; other vectors and payloads stay.

        Args:
            collection: Name of an existing collection or alias.
            points: Ids with the vectors to replace, named ones by name
                (``Point(1, {"title": …})``); payloads are ignored.
            update_filter: Only points that match it are changed.

        Raises:
            CollectionNotFound: There is no such collection.
            RecordNotFound: A point is not there; the others were changed.
            DimensionMismatch: A vector's length is not the collection's.
            InvalidVector: A vector is unknown, or not finite; nothing was sent.
            InvalidRecord: An id or the filter is wrong, or a point has no vector.
        """
        await self._calls.run(
            "update_vectors",
            collection,
            lambda: update_vectors(
                self._calls, collection, listed(points, "points"), update_filter
            ),
        )

    async def delete_vectors(
        self,
        collection: str,
        names: Sequence[str],
        ids_or_filter: Iterable[PointId] | Filter,
    ) -> None:
        """Remove vectors from points chosen by id or filter; the points stay.

        Args:
            collection: Name of an existing collection or alias.
            names: Names of the vectors; ``""`` is the unnamed one.
            ids_or_filter: Ids, or a filter in any form; absent ids are skipped.

        Raises:
            CollectionNotFound: There is no such collection.
            InvalidVector: There is no vector of such a name.
            InvalidRecord: An id, a name or the filter is wrong.
        """
        chosen = ids_or_filter_of(ids_or_filter)
        request = DeleteVectors(vector_names(names), *chosen)
        await self._on_chosen("delete_vectors", collection, request)

    async def delete_points(
        self,
        collection: str,
        ids_or_filter: Iterable[PointId] | Filter,
        *,
        newer_by: str | None = None,
        up_to: Mapping[PointId, int] | None = None,
    ) -> None:
        """Delete points by id, or those that match a filter; absent ones are fine.

        Args:
            collection: Name of an existing collection or alias.
            ids_or_filter: Ids, or a filter in any form.
            newer_by: With *up_to*: payload field with a number.
            up_to: With *newer_by*: a point is deleted only if its number is
                not greater than the one given for its id.

        Raises:
            CollectionNotFound: There is no such collection.
            InvalidRecord: An id or the filter is wrong, or *up_to* lacks an id.
        """
        request = deletion(collection, ids_or_filter, newer_by, up_to)
        await self._on_chosen("delete_points", collection, request, "delete")

    async def set_payload(
        self,
        collection: str,
        payload: Mapping[str, object],
        ids_or_filter: Iterable[PointId] | Filter,
        *,
        key: str | None = None,
        overwrite: bool = False,
    ) -> None:
        """Merge *payload* into that of points chosen by id or filter.

        Args:
            collection: Name of an existing collection or alias.
            payload: Fields to set.
            ids_or_filter: Ids, or a filter in any form; absent ids are skipped.
            key: Path of the payload object to merge into; the top by default.
            overwrite: Replace the whole payload instead, point by point where the
                id is text or the outbox has delivered it.

        Raises:
            CollectionNotFound: There is no such collection.
            InvalidRecord: The payload, an id or the filter is wrong.
        """
        ids, chosen = ids_or_filter_of(ids_or_filter)
        level = 1
        if key is not None:
            key = value_path(key, "key", changed=True)
            level = 2 + key.count(".") + key.count("[")
        text = encode_payload(payload, collection, level=level)
        request = SetPayload(text, ids, chosen, key, overwrite)
        await self._calls.run(
            "set_payload",
            collection,
            lambda: set_payload(self._calls, collection, payload, request),
        )

    async def delete_payload(
        self,
        collection: str,
        keys: Sequence[str],
        ids_or_filter: Iterable[PointId] | Filter,
    ) -> None:
        """Remove fields from the payload of points chosen by id or filter.

        Raises:
            CollectionNotFound: There is no such collection.
            InvalidRecord: A field, an id or the filter is wrong.
        """
        many = [keys] if isinstance(keys, str) else listed(keys, "keys")
        paths = [value_path(path, "keys", changed=True) for path in many]
        request = DeletePayload(paths, *ids_or_filter_of(ids_or_filter))
        await self._on_chosen("delete_payload", collection, request)

    async def _on_chosen(
        self, operation: str, collection: str, request: OnChosen, asked: str = ""
    ) -> None:
        await self._calls.run(
            operation,
            collection,
            lambda: on_chosen(self._calls, asked or operation, collection, request),
        )

    # Reading

    async def search(
        self,
        collection: str,
        vector: Any,
        limit: int = 10,
        filter: Filter = None,
        *,
        using: str = "",
        offset: int = 0,
        score_threshold: float | None = None,
        with_payload: bool | Sequence[str] = True,
        with_vectors: bool | Sequence[str] = False,
        exact: bool = False,
        params: Mapping[str, object] | None = None,
    ) -> list[ScoredPoint]:
        """Return the points nearest to *vector*, best first.

        Args:
            collection: Name of an existing collection or alias.
            vector: A dense or sparse vector, or the id of a stored point, which
                is then left out of the answer.
            limit: How many points at most.
            filter: Only points that match it.
            using: Name of the vector to compare with; ``""`` is the unnamed one.
            offset: How many of the best to skip.
            score_threshold: Only points at least this good.
            with_payload: Whether to return payloads, or which fields.
            with_vectors: Whether to return vectors, or which.
            exact: Compare with every point, without an index.
            params: Qdrant's search parameters (``{"hnsw_ef": 256}``).

        Raises:
            CollectionNotFound: There is no such collection.
            DimensionMismatch: The vector's length is not the collection's.
            InvalidVector: The vector is unknown or not finite.
            InvalidRecord: The filter or a parameter is wrong.
            RecordNotFound: There is no point with the id given as *vector*.
        """
        asked = Asked(
            vector,
            limit=limit,
            filter=filter,
            using=using,
            offset=offset,
            score_threshold=score_threshold,
            with_payload=with_payload,
            with_vectors=with_vectors,
            exact=exact,
            params=params,
        )
        return await self._found("search", collection, asked)

    async def query(
        self,
        collection: str,
        query: Any = None,
        *,
        prefetch: Any = None,
        fusion: str | Mapping[str, object] | None = None,
        limit: int = 10,
        filter: Filter = None,
        using: str = "",
        offset: int = 0,
        score_threshold: float | None = None,
        with_payload: bool | Sequence[str] = True,
        with_vectors: bool | Sequence[str] = False,
        exact: bool = False,
        params: Mapping[str, object] | None = None,
        operation: str = "query",
    ) -> list[ScoredPoint]:
        """Answer a query of several stages, best first.

        Args:
            collection: Name of an existing collection or alias.
            query: A vector, a point's id, or a query in the form of Qdrant's
                REST API or of the client's models (``{"recommend": …}``).
            prefetch: Stages whose results are fused or ranked again: mappings
                with ``query``, ``using``, ``filter``, ``limit``, ``prefetch``.
            fusion: ``rrf`` or ``dbsf``, or ``{"rrf": {"k": …, "weights": …}}``.
            limit: How many points at most.
            filter: Only points that match it.
            using: Name of the vector to compare with.
            offset: How many of the best to skip.
            score_threshold: Only points at least this good.
            with_payload: Whether to return payloads, or which fields.
            with_vectors: Whether to return vectors, or which.
            exact: Compare with every point, without an index.
            params: Qdrant's search parameters.
            operation: Name of the call in errors, statistics and spans.

        Raises:
            CollectionNotFound: There is no such collection.
            DimensionMismatch: A vector's length is not the collection's.
            InvalidVector: A vector is unknown or not finite.
            InvalidRecord: The query, the filter or a parameter is wrong.
            RecordNotFound: There is no point with an id used as an example.
        """
        asked = Asked(
            query,
            prefetch=prefetch,
            fusion=fusion,
            limit=limit,
            filter=filter,
            using=using,
            offset=offset,
            score_threshold=score_threshold,
            with_payload=with_payload,
            with_vectors=with_vectors,
            exact=exact,
            params=params,
        )
        return await self._found(operation, collection, asked)

    def _found(
        self, operation: str, collection: str, asked: Asked
    ) -> Coroutine[Any, Any, list[ScoredPoint]]:
        return self._calls.run(
            operation, collection, lambda: find(self._calls, collection, asked)
        )

    async def query_batch(
        self, collection: str, queries: Sequence[Mapping[str, Any]]
    ) -> list[list[ScoredPoint]]:
        """Answer several queries in one request, in order.

        Args:
            collection: Name of an existing collection or alias.
            queries: Arguments of ``query()``, by name, for each.

        Raises:
            CollectionNotFound: There is no such collection.
            InvalidRecord: A query is wrong; none was asked.
            InvalidVector: A vector in one does not fit; none was asked.
        """
        every = [asked_from(given) for given in listed(queries, "queries")]
        return await self._calls.run(
            "query_batch",
            collection,
            lambda: find_many(self._calls, collection, every),
        )

    async def search_groups(
        self,
        collection: str,
        vector: Any,
        group_by: str,
        limit: int = 10,
        filter: Filter = None,
        *,
        group_size: int = 3,
        using: str = "",
        score_threshold: float | None = None,
        with_payload: bool | Sequence[str] = True,
        with_vectors: bool | Sequence[str] = False,
        exact: bool = False,
        params: Mapping[str, object] | None = None,
    ) -> list[PointGroup]:
        """Return the best hits by groups, the group with the best hit first.

        Args:
            collection: Name of an existing collection or alias.
            vector: As for ``search()``.
            group_by: Payload field with text or integers; a point with a list is in
                several groups, one without a value in none.
            limit: How many groups at most.
            filter: Only points that match it.
            group_size: How many hits of a group at most.
            using: Name of the vector to compare with.
            score_threshold: Only points at least this good.
            with_payload: Whether to return payloads, or which fields.
            with_vectors: Whether to return vectors, or which.
            exact: Compare with every point, without an index.
            params: Qdrant's search parameters.

        Raises:
            CollectionNotFound: There is no such collection.
            InvalidVector: The vector does not fit.
            InvalidRecord: The field, the filter or a parameter is wrong.
            RecordNotFound: There is no point with the id given as *vector*.
        """
        asked = Asked(
            vector,
            limit=limit,
            filter=filter,
            using=using,
            score_threshold=score_threshold,
            with_payload=with_payload,
            with_vectors=with_vectors,
            exact=exact,
            params=params,
        )
        return await self._calls.run(
            "search_groups",
            collection,
            lambda: find_groups(self._calls, collection, asked, group_by, group_size),
        )

    async def facet(
        self,
        collection: str,
        key: str,
        *,
        limit: int = 10,
        filter: Filter = None,
        exact: bool = False,
    ) -> dict[str | int | bool, int]:
        """Count points by the values of a payload field, the commonest first.

        Args:
            collection: Name of an existing collection or alias.
            key: Payload field with a keyword, integer or bool index.
            limit: How many values at most.
            filter: Only points that match it.
            exact: Count exactly; by default a large collection is estimated.

        Raises:
            CollectionNotFound: There is no such collection.
            InvalidRecord: The field has no such index, or an argument is wrong.
        """
        request = Facet(
            value_path(key, "key"),
            query_parameters(limit, 0)[0],
            bool(exact),
            normal_filter(filter),
        )
        return dict(await self._calls.one("facet", collection, request=request))

    async def search_hybrid(
        self,
        collection: str,
        embedding: Any,
        limit: int = 10,
        filter: Filter = None,
        *,
        dense: str = "dense",
        sparse: str = "sparse",
        candidates: int | None = None,
        with_payload: bool | Sequence[str] = True,
    ) -> list[ScoredPoint]:
        """Search by both parts of an embedding, fused by reciprocal rank.

        Args:
            collection: Name of an existing collection or alias.
            embedding: Object with ``dense`` and ``sparse``; either may be None,
                and without both nothing is found.
            limit: How many points at most.
            filter: Only points that match it.
            dense: Name of the dense vector.
            sparse: Name of the sparse vector.
            candidates: Points that each part contributes; five times *limit*,
                and at least 20, by default.
            with_payload: Whether to return payloads, or which fields.

        Raises:
            CollectionNotFound: There is no such collection.
            InvalidVector: The embedding does not fit.
            InvalidRecord: It is no embedding.
        """
        asked = hybrid(
            collection,
            embedding,
            limit=limit,
            filter=filter,
            dense=dense,
            sparse=sparse,
            candidates=candidates,
        )
        if asked is None:
            return []
        asked = replace(asked, with_payload=with_payload)
        return await self._found("search_hybrid", collection, asked)

    async def recommend(
        self,
        collection: str,
        positive: Sequence[Any],
        negative: Sequence[Any] = (),
        *,
        strategy: str = "average_vector",
        limit: int = 10,
        filter: Filter = None,
        using: str = "",
        with_payload: bool | Sequence[str] = True,
        with_vectors: bool | Sequence[str] = False,
    ) -> list[ScoredPoint]:
        """Return points like *positive* and unlike *negative* ones, best first.

        Args:
            collection: Name of an existing collection or alias.
            positive: Ids of stored points, or vectors.
            negative: The same.
            strategy: ``average_vector``, ``best_score`` or ``sum_scores``.
            limit: How many points at most.
            filter: Only points that match it.
            using: Name of the vector to compare with.
            with_payload: Whether to return payloads, or which fields.
            with_vectors: Whether to return vectors, or which.

        Raises:
            CollectionNotFound: There is no such collection.
            RecordNotFound: There is no point with one of the ids.
            InvalidVector: A vector does not fit.
            InvalidRecord: There is no example, or the strategy is not known.
        """
        asked = Asked(
            {
                "recommend": {
                    "positive": listed(positive, "positive"),
                    "negative": listed(negative, "negative"),
                    "strategy": strategy,
                }
            },
            limit=limit,
            filter=filter,
            using=using,
            with_payload=with_payload,
            with_vectors=with_vectors,
        )
        return await self._found("recommend", collection, asked)

    async def retrieve(
        self,
        collection: str,
        ids: Iterable[PointId],
        *,
        with_payload: bool | Sequence[str] = True,
        with_vectors: bool | Sequence[str] = False,
    ) -> list[ScoredPoint]:
        """Return points by id, in the order asked for; absent ones are left out.

        Raises:
            CollectionNotFound: There is no such collection.
            InvalidRecord: An id is wrong.
        """
        request = Retrieve(
            wire_ids(ids),
            payload_selector(with_payload),
            vector_selector(with_vectors),
        )
        return await self._calls.run(
            "retrieve",
            collection,
            lambda: retrieve(self._calls, collection, request),
        )

    async def count(self, collection: str, filter: Filter = None) -> int:
        """Count the points that match, exactly.

        Raises:
            CollectionNotFound: There is no such collection.
            InvalidRecord: The filter is wrong.
        """
        request = Count(normal_filter(filter))
        return int(await self._calls.one("count", collection, request=request))

    async def scroll(
        self,
        collection: str,
        *,
        limit: int = 10,
        offset: PointId | None = None,
        filter: Filter = None,
        with_payload: bool | Sequence[str] = True,
        with_vectors: bool | Sequence[str] = False,
        order_by: str | Mapping[str, object] | None = None,
    ) -> tuple[list[ScoredPoint], int | str | None]:
        """Return one page of points, and the offset of the next or None.

        Pages go by id. With *order_by* (which needs a payload index) there is
        no next page; continue with its ``start_from``.

        Raises:
            CollectionNotFound: There is no such collection.
            InvalidRecord: The filter, offset or order is wrong.
        """
        order = normal_order(order_by)
        if order is not None and offset is not None:
            raise InvalidRecord(
                "scroll: pages in an order go by its start_from; leave offset out",
                field="offset",
            )
        request = Scroll(
            query_parameters(limit, 0)[0],
            None if offset is None else to_wire_id(offset)[0],
            normal_filter(filter),
            payload_selector(with_payload),
            vector_selector(with_vectors),
            order,
        )
        return await self._calls.run(
            "scroll", collection, lambda: page(self._calls, collection, request)
        )

    async def iter_points(
        self,
        collection: str,
        *,
        filter: Filter = None,
        with_payload: bool | Sequence[str] = True,
        with_vectors: bool | Sequence[str] = False,
        page: int = _PAGE,
    ) -> AsyncIterator[ScoredPoint]:
        """Yield every point once, by id, with one page in memory at a time.

        Points written or deleted meanwhile may or may not be seen; every other
        point is seen exactly once.

        Raises:
            CollectionNotFound: There is no such collection.
            InvalidRecord: The filter is wrong.
        """
        offset: int | str | None = None
        while True:
            points, offset = await self.scroll(
                collection,
                limit=page,
                offset=offset,
                filter=filter,
                with_payload=with_payload,
                with_vectors=with_vectors,
            )
            for point in points:
                yield point
            if offset is None:
                return
