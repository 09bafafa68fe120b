"""Calls that read points: searched, fused, recommended, by id, page by page."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterable, Mapping, Sequence
from typing import Any

from fm_storage.errors import InvalidRecord, InvalidVector, RecordNotFound
from fm_storage.vectors.points import (
    RESERVED_ID,
    PointId,
    ScoredPoint,
    to_wire_id,
)
from fm_storage.vectors.request.filters import Filter, normal_filter
from fm_storage.vectors.request.queries import (
    ids_in,
    normal_prefetch,
    normal_query,
    query_parameters,
)
from fm_storage.vectors.store.call import StoreCalls

__all__ = ["ReadingCalls"]

_PAGE = 500


class ReadingCalls(StoreCalls):
    """Calls that read points."""

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
        limit, offset = query_parameters(limit, offset)
        chosen = normal_filter(filter)

        def request_for(spec: dict[str, Any]) -> dict[str, Any]:
            request: dict[str, Any] = {
                "limit": limit,
                "offset": offset,
                "using": using,
                "with_payload": payload_selector(with_payload),
                "with_vector": vector_selector(with_vectors),
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
            try:
                return await self._backend.query(collection, request)
            except RecordNotFound as exc:
                # The engine knows the id that it was given, not the caller's.
                asked = ids_in(query, prefetch).get(str(exc.key), exc.key)
                raise RecordNotFound(collection, asked) from exc

        return await self._call(operation, collection, ask)

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
        if not (hasattr(embedding, "dense") and hasattr(embedding, "sparse")):
            raise InvalidRecord(
                f"collection {collection!r}: search_hybrid() takes an Embedding, not a "
                f"{type(embedding).__name__}; write [embedding] = await "
                "vectorizer.embed([text]), or search() for a single vector",
                field="embedding",
            )
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
            "with_payload": payload_selector(with_payload),
            "with_vector": vector_selector(with_vectors),
        }
        return await self._call(
            "retrieve",
            collection,
            lambda: self._backend.retrieve(collection, numbers, request),
        )

    async def count(self, collection: str, filter: Filter = None) -> int:
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
        limit, _ = query_parameters(limit, 0)
        request = {
            "limit": limit,
            "offset": None if offset is None else to_wire_id(offset)[0],
            "filter": normal_filter(filter),
            "with_payload": payload_selector(with_payload),
            "with_vector": vector_selector(with_vectors),
            "order_by": dict(order_by) if isinstance(order_by, Mapping) else order_by,
        }
        return await self._call(
            "scroll", collection, lambda: self._backend.scroll(collection, request)
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


def payload_selector(given: bool | Sequence[str]) -> bool | list[str]:
    # The kept id of a string-named point lives in the payload.
    if given is True:
        return True
    return [*given, RESERVED_ID] if given else [RESERVED_ID]


def vector_selector(given: bool | Sequence[str]) -> bool | list[str]:
    return given if isinstance(given, bool) else list(given)
