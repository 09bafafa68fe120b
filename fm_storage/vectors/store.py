"""``QdrantStore``: one interface to vectors, whichever engine holds them.

Everything that must be the same on every engine happens here, once: the life of
the store, checking before writing, splitting, deadlines, retries, counting.
What differs sits behind it, in ``embedded.py`` and ``server.py``.
"""

from __future__ import annotations

import asyncio
import os
from collections import Counter
from collections.abc import (
    AsyncIterator,
    Awaitable,
    Callable,
    Iterable,
    Mapping,
    Sequence,
)
from enum import Enum
from pathlib import Path
from typing import Any, Self, TypeVar
from uuid import UUID

from fm_storage._typing import JsonObject, Progress
from fm_storage.config import CollectionConfig, QdrantConfig
from fm_storage.errors import (
    CollectionMismatch,
    CollectionNotFound,
    ForkedProcess,
    InvalidName,
    InvalidRecord,
    InvalidVector,
    StorageClosed,
    VectorStoreUnavailable,
    WrongLoop,
)
from fm_storage.vectors.backend import Backend, backend_for
from fm_storage.vectors.encoding import (
    Encoded,
    encode_payload,
    encode_points,
    in_batches,
)
from fm_storage.vectors.filters import Filter, normal_filter
from fm_storage.vectors.points import (
    RESERVED_ID,
    CollectionInfo,
    Point,
    PointId,
    ScoredPoint,
    VectorStatistics,
    to_wire_id,
)
from fm_storage.vectors.queries import normal_prefetch, normal_query, query_parameters
from fm_storage.vectors.retry import Retry, Scope, call_scope
from fm_storage.vectors.specs import (
    differences,
    missing_indexes,
    schema_type,
    spec_of,
)
from fm_storage.vectors.tracing import span

__all__ = ["QdrantStore"]

T = TypeVar("T")

_NAME_LIMIT = 255
_ENCODE_CHUNK = 128
_HERE = 40_000  # numbers: about a millisecond
_PAGE = 500
META_COLLECTION = "fm_storage_meta"
_WITHOUT_COLLECTION = frozenset(
    {
        "ready",
        "identity",
        "get_marker",
        "set_marker",
        "list_collections",
        "list_aliases",
        "set_aliases",
    }
)


class _Life(Enum):
    NEW = "not opened"
    OPEN = "open"
    CLOSED = "closed"


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

    def __init__(self, config: QdrantConfig, *, folder: Path | None = None) -> None:
        self.config = config
        self.folder = folder
        # Changed by open() and aclose() only.
        self._life = _Life.NEW
        self._loop: asyncio.AbstractEventLoop | None = None
        self._pid = 0
        self._backend: Backend
        # Changed by every call.
        self._specs: dict[str, dict[str, Any]] = {}
        self._calls: Counter[str] = Counter()
        self._errors: Counter[str] = Counter()
        self._retry = Retry()

    # Life

    async def open(self) -> None:
        """Make the store usable; ensures the configured collections, if any.

        Raises:
            CollectionMismatch: A configured collection exists and differs.
        """
        if self._life is _Life.OPEN:
            return
        self._backend = backend_for(self.config, self.folder)
        self._loop = asyncio.get_running_loop()
        self._pid = os.getpid()
        await self._backend.open()
        self._life = _Life.OPEN
        try:
            for name, definition in self.config.collections.items():
                await self.ensure_collection_exists(name, definition)
        except BaseException:
            await self.aclose()
            raise

    async def aclose(self) -> None:
        """Let go of the engine; harmless when repeated, or in a forked child."""
        if self._life is not _Life.OPEN:
            return
        self._life = _Life.CLOSED
        if self._pid == os.getpid():
            await self._backend.aclose()

    async def __aenter__(self) -> Self:
        await self.open()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.aclose()

    @property
    def native(self) -> Any:  # noqa: ANN401 - qdrant_client is not imported here
        """The ``AsyncQdrantClient`` below, or None for the embedded engine."""
        self._check()
        return self._backend.native

    async def ready(self) -> str:
        """Wait for an answer; return a line that says what answered.

        Raises:
            VectorStoreUnavailable: Nothing answers, or a server too old for
                conditional updates (before 1.16).
        """
        return await self._call("ready", None, self._backend_().ready)

    def statistics(self) -> VectorStatistics:
        """Return what this store has done since it opened; no I/O."""
        self._check()
        return VectorStatistics(
            calls=dict(self._calls),
            errors=dict(self._errors),
            retries=self._retry.count,
            restarts=self._backend.restarts,
            engine=self._backend.kind,
            engine_pid=self._backend.pid,
        )

    async def identity(self) -> str:
        """Return the stable id of this vector store."""
        return await self._call("identity", None, self._backend_().identity)

    async def get_marker(self) -> JsonObject:
        """Return what ``set_marker()`` noted last; empty at first."""
        return await self._call("get_marker", None, self._backend_().get_marker)

    async def set_marker(self, marker: Mapping[str, object]) -> None:
        """Note a small JSON object in the vector store itself, durably."""
        await self._call(
            "set_marker", None, lambda: self._backend.set_marker(dict(marker))
        )

    # Collections

    async def ensure_collection_exists(
        self,
        name: str,
        vector_size: int | CollectionConfig | None = None,
        distance: str = "Cosine",
        *,
        add_indexes: bool = True,
        **options: Any,  # noqa: ANN401 - CollectionConfig validates
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
        _check_name(name)
        if isinstance(vector_size, CollectionConfig):
            definition = vector_size
        else:
            if vector_size is not None:
                options["size"] = vector_size
            definition = CollectionConfig(distance=distance, **options)
        asked = spec_of(definition)
        return await self._call(
            "ensure_collection_exists",
            name,
            lambda: self._ensure(name, asked, add_indexes=add_indexes),
        )

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
            _check_name(alias)
        await self._call(
            "set_aliases", None, lambda: self._backend.set_aliases(targets)
        )
        self._specs.clear()

    # Writing

    async def upsert_points(
        self,
        collection: str,
        points: Iterable[Point],
        *,
        newer_by: str | None = None,
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
            progress: Called as ``progress(done, total)`` after each request.

        Raises:
            CollectionNotFound: There is no such collection.
            DimensionMismatch: A vector's length is not the collection's.
            InvalidVector: A vector is unknown, missing, or not finite.
            InvalidRecord: An id or a payload cannot be stored.

        See https://qdrant.tech/documentation/concepts/points/.
        """
        return await self._call(
            "upsert_points",
            collection,
            lambda: self._upsert(collection, list(points), newer_by, progress),
            once=True,
        )

    async def _upsert(
        self,
        collection: str,
        points: Sequence[Any],
        newer_by: str | None,
        progress: Progress | None,
    ) -> int:
        try:
            spec = await self._spec(collection)
            await self._upsert_as(spec, collection, points, newer_by, progress)
        except InvalidVector:
            # The definition may have changed since it was last looked up.
            changed = await self._changed_spec(collection)
            if changed is None:
                raise
            await self._upsert_as(changed, collection, points, newer_by, progress)
        return len(points)

    async def _upsert_as(
        self,
        spec: dict[str, Any],
        collection: str,
        points: Sequence[Any],
        newer_by: str | None,
        progress: Progress | None,
    ) -> None:
        encoded = await self._encoded(spec, collection, points, newer_by)
        batches = list(
            in_batches(
                _last_of_each(encoded, by_version=newer_by is not None),
                max_points=self.config.max_batch_points,
                max_bytes=self.config.max_batch_bytes,
            )
        )
        done = 0

        async def send(batch: list[Encoded]) -> None:
            nonlocal done
            await self._retry.run(
                lambda: self._backend.upsert(collection, batch, newer_by=newer_by),
                active=self._backend.retries,
            )
            done += len(batch)
            if progress is not None:
                progress(done, len(encoded))

        await _bounded(batches, send, limit=self.config.max_concurrency)

    async def _encoded(
        self,
        spec: dict[str, Any],
        collection: str,
        points: Sequence[Any],
        newer_by: str | None,
    ) -> list[Encoded]:
        def encode(start: int) -> list[Encoded]:
            return encode_points(
                points[start : start + _ENCODE_CHUNK],
                spec,
                collection,
                start=start,
                limit=self.config.max_batch_bytes,
                newer_by=newer_by,
            )

        numbers = sum(int(v["size"]) for v in spec["vectors"].values()) or 64
        if len(points) <= _ENCODE_CHUNK and len(points) * numbers <= _HERE:
            return encode(0)
        encoded: list[Encoded] = []
        for start in range(0, len(points), _ENCODE_CHUNK):
            encoded += await asyncio.to_thread(encode, start)
        return encoded

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
        ids, chosen = _ids_or_filter(ids_or_filter)
        if ids == []:
            return
        bounds: list[int] | None = None
        if (newer_by is None) != (up_to is None) or (up_to is not None and ids is None):
            raise InvalidRecord(
                f"collection {collection!r}: newer_by and up_to go together, with ids",
                field="up_to",
            )
        if up_to is not None:
            limits = {to_wire_id(key)[0]: value for key, value in up_to.items()}
            try:
                bounds = [limits[number] for number in ids or ()]
            except KeyError as exc:
                raise InvalidRecord(
                    f"collection {collection!r}: up_to has no number for "
                    f"point {exc.args[0]!r}",
                    field="up_to",
                ) from None
        await self._call(
            "delete_points",
            collection,
            lambda: self._backend.delete(
                collection, ids=ids, chosen=chosen, newer_by=newer_by, up_to=bounds
            ),
        )

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
            key: Payload object to merge into; the top by default.
            overwrite: Replace the whole payload instead.

        Raises:
            CollectionNotFound: There is no such collection.
            InvalidRecord: The payload, an id or the filter is wrong.
        """
        ids, chosen = _ids_or_filter(ids_or_filter)
        text = encode_payload(payload, collection)
        if ids == []:
            return
        await self._call(
            "set_payload",
            collection,
            lambda: self._backend.set_payload(
                collection, text, ids=ids, chosen=chosen, key=key, overwrite=overwrite
            ),
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
            InvalidRecord: An id or the filter is wrong.
        """
        ids, chosen = _ids_or_filter(ids_or_filter)
        if ids == []:
            return
        await self._call(
            "delete_payload",
            collection,
            lambda: self._backend.delete_payload(
                collection, keys, ids=ids, chosen=chosen
            ),
        )

    # Reading

    async def search(
        self,
        collection: str,
        vector: Any,  # noqa: ANN401 - any vector; numpy is not imported here
        limit: int = 10,
        filter: Filter = None,  # noqa: A002 - Qdrant's word
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
        return await self.query(
            collection,
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
            operation="search",
        )

    async def query(
        self,
        collection: str,
        query: Any = None,  # noqa: ANN401 - any query
        *,
        prefetch: Any = None,  # noqa: ANN401 - one stage or several
        fusion: str | Mapping[str, object] | None = None,
        limit: int = 10,
        filter: Filter = None,  # noqa: A002 - Qdrant's word
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
        limit, offset = query_parameters(limit, offset)
        chosen = normal_filter(filter)

        def request_for(spec: dict[str, Any]) -> dict[str, Any]:
            request: dict[str, Any] = {
                "limit": limit,
                "offset": offset,
                "using": using,
                "with_payload": _payload_selector(with_payload),
                "with_vector": _vector_selector(with_vectors),
                "filter": chosen,
                "score_threshold": score_threshold,
                "params": {**(params or {}), **({"exact": True} if exact else {})},
                "query": normal_query(query, fusion, spec, collection, using),
                "prefetch": normal_prefetch(prefetch, spec, collection),
            }
            return {k: v for k, v in request.items() if v is not None}

        async def ask() -> list[ScoredPoint]:
            try:
                request = request_for(await self._spec(collection))
            except InvalidVector:
                # The definition may have changed since it was last looked up.
                spec = await self._changed_spec(collection)
                if spec is None:
                    raise
                request = request_for(spec)
            return await self._backend.query(collection, request)

        return await self._call(operation, collection, ask)

    async def search_hybrid(
        self,
        collection: str,
        embedding: Any,  # noqa: ANN401 - an Embedding; vectorizer.py lies beside
        limit: int = 10,
        filter: Filter = None,  # noqa: A002 - Qdrant's word
        *,
        dense: str = "dense",
        sparse: str = "sparse",
        candidates: int | None = None,
        with_payload: bool | Sequence[str] = True,
    ) -> list[ScoredPoint]:
        """Search by both parts of an embedding, fused by reciprocal rank.

        Args:
            collection: Name of an existing collection or alias.
            embedding: Object with ``dense`` and ``sparse``; either may be None.
            limit: How many points at most.
            filter: Only points that match it.
            dense: Name of the dense vector.
            sparse: Name of the sparse vector.
            candidates: Points that each part contributes; five times *limit*,
                and at least 20, by default.
            with_payload: Whether to return payloads, or which fields.

        Raises:
            CollectionNotFound: There is no such collection.
            InvalidVector: The embedding does not fit, or has no part.
        """
        stages = [
            {"query": part, "using": name}
            for part, name in ((embedding.dense, dense), (embedding.sparse, sparse))
            if part is not None and (name == dense or len(part.indices))
        ]
        if len(stages) == 1:
            return await self.query(
                collection,
                stages[0]["query"],
                using=stages[0]["using"],
                limit=limit,
                filter=filter,
                with_payload=with_payload,
                operation="search_hybrid",
            )
        if not stages:
            return []
        take = candidates or max(20, 5 * limit)
        return await self.query(
            collection,
            prefetch=[{**stage, "limit": take, "filter": filter} for stage in stages],
            fusion="rrf",
            limit=limit,
            with_payload=with_payload,
            operation="search_hybrid",
        )

    async def recommend(
        self,
        collection: str,
        positive: Sequence[Any],
        negative: Sequence[Any] = (),
        *,
        strategy: str = "average_vector",
        limit: int = 10,
        filter: Filter = None,  # noqa: A002 - Qdrant's word
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
        return await self.query(
            collection,
            {
                "recommend": {
                    "positive": list(positive),
                    "negative": list(negative),
                    "strategy": strategy,
                }
            },
            limit=limit,
            filter=filter,
            using=using,
            with_payload=with_payload,
            with_vectors=with_vectors,
            operation="recommend",
        )

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
        numbers = list(dict.fromkeys(to_wire_id(value)[0] for value in ids))
        request = {
            "with_payload": _payload_selector(with_payload),
            "with_vector": _vector_selector(with_vectors),
        }
        return await self._call(
            "retrieve",
            collection,
            lambda: self._backend.retrieve(collection, numbers, request),
        )

    async def count(self, collection: str, filter: Filter = None) -> int:  # noqa: A002 - Qdrant's word
        """Count the points that match, exactly.

        Raises:
            CollectionNotFound: There is no such collection.
            InvalidRecord: The filter is wrong.
        """
        chosen = normal_filter(filter)
        return await self._call(
            "count", collection, lambda: self._backend.count(collection, chosen)
        )

    async def scroll(
        self,
        collection: str,
        *,
        limit: int = 10,
        offset: PointId | None = None,
        filter: Filter = None,  # noqa: A002 - Qdrant's word
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
        limit, _ = query_parameters(limit, 0)
        request = {
            "limit": limit,
            "offset": None if offset is None else to_wire_id(offset)[0],
            "filter": normal_filter(filter),
            "with_payload": _payload_selector(with_payload),
            "with_vector": _vector_selector(with_vectors),
            "order_by": dict(order_by) if isinstance(order_by, Mapping) else order_by,
        }
        return await self._call(
            "scroll", collection, lambda: self._backend.scroll(collection, request)
        )

    async def iter_points(
        self,
        collection: str,
        *,
        filter: Filter = None,  # noqa: A002 - Qdrant's word
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

    # Inside

    def _check(self) -> None:
        if self._life is not _Life.OPEN:
            raise StorageClosed(
                f"vector store: it is {self._life.value}; use it inside 'async with' "
                "or between open() and aclose()"
            )
        if self._pid != os.getpid():
            raise ForkedProcess("vector store")

    def _backend_(self) -> Backend:
        self._check()
        return self._backend

    async def _spec(self, collection: str) -> dict[str, Any]:
        spec = self._specs.get(collection)
        if spec is None:
            spec = await self._backend.spec(collection)
            self._specs[collection] = spec
        return spec

    async def _changed_spec(self, collection: str) -> dict[str, Any] | None:
        """Look a definition up again; None when it is what was known."""
        known = self._specs.pop(collection, None)
        spec = await self._spec(collection)
        return None if spec == known else spec

    async def _call(
        self,
        operation: str,
        collection: str | None,
        run: Callable[[], Awaitable[T]],
        *,
        once: bool = False,
    ) -> T:
        """Run one public call: life, loop, deadline, retries, counting, span."""
        self._check()
        if asyncio.get_running_loop() is not self._loop:
            raise WrongLoop("vector store")
        if operation not in _WITHOUT_COLLECTION:
            _check_name(collection)
        self._calls[operation] += 1
        until = self._loop.time() + self.config.timeout
        with (
            span(operation, collection, engine=self._backend.kind),
            call_scope(until) as scope,
        ):
            deadline = asyncio.timeout_at(until)
            try:
                async with deadline:
                    return await self._retry.run(
                        run, active=self._backend.retries and not once
                    )
            except TimeoutError as exc:
                self._errors[operation] += 1
                if not deadline.expired():
                    raise
                raise self._late(operation, collection, scope) from exc
            except Exception:
                self._errors[operation] += 1
                if collection is not None:
                    self._specs.pop(collection, None)
                raise

    def _late(
        self, operation: str, collection: str | None, scope: Scope
    ) -> VectorStoreUnavailable:
        failed = f" (before: {scope.failure})" if scope.failure else ""
        return VectorStoreUnavailable(
            f"vector store: {operation} got no answer within "
            f"{self.config.timeout:g} s{failed}; whether it was carried out is not "
            "known; raise qdrant.timeout",
            operation=operation,
            collection=collection,
        )


def _check_name(name: object) -> None:
    if (
        not isinstance(name, str)
        or not name
        or len(name.encode(errors="replace")) > _NAME_LIMIT
        or name in {".", ".."}
        or any(c in '<>:"/\\|?*' or not c.isprintable() for c in name)
    ):
        raise InvalidName(
            f"{name!r} is no name of a collection; give 1 to {_NAME_LIMIT} bytes "
            'without <>:"/\\|?* and control characters'
        )


def _payload_selector(given: bool | Sequence[str]) -> bool | list[str]:  # noqa: FBT001 - Qdrant's form
    # The kept id of a string-named point lives in the payload.
    if given is True:
        return True
    return [*given, RESERVED_ID] if given else [RESERVED_ID]


def _vector_selector(given: bool | Sequence[str]) -> bool | list[str]:  # noqa: FBT001 - Qdrant's form
    return given if isinstance(given, bool) else list(given)


def _ids_or_filter(
    given: Iterable[PointId] | Filter,
) -> tuple[list[int | str] | None, dict[str, Any] | None]:
    if isinstance(given, Mapping) or hasattr(given, "model_dump"):
        chosen = normal_filter(given)
        if chosen is None:
            raise InvalidRecord(
                "filter: it is empty and would match every point; "
                "use delete_collection(), or name a condition",
                field="filter",
            )
        return None, chosen
    if isinstance(given, str | int | UUID):
        given = [given]
    return list(dict.fromkeys(to_wire_id(value)[0] for value in given)), None


def _last_of_each(points: Sequence[Encoded], *, by_version: bool) -> list[Encoded]:
    """Keep one point per id, as writing them in order would.

    Requests of one call run side by side, so two points of one id must not end
    up in two of them.
    """
    kept: dict[int | str, Encoded] = {}
    for point in points:
        before = kept.get(point.id)
        if before is None or not by_version or point.version > before.version:
            kept[point.id] = point
    return list(kept.values())


async def _bounded(
    items: Sequence[T], work: Callable[[T], Awaitable[None]], *, limit: int
) -> None:
    """Work on *items*, a few at a time; the first failure ends the rest."""
    if len(items) == 1:
        await work(items[0])
        return
    waiting = iter(items)

    async def worker() -> None:
        for item in waiting:
            await work(item)

    try:
        async with asyncio.TaskGroup() as group:
            for _ in range(min(limit, len(items))):
                group.create_task(worker())
    except ExceptionGroup as failures:
        first: BaseException = failures
        while isinstance(first, BaseExceptionGroup):
            first = first.exceptions[0]
        raise first from None
