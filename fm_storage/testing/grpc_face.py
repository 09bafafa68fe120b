"""Qdrant's gRPC API: the other face of the test double.

The services' bases and the conversions are the client's own, so that a message which
the client cannot write or read is found out here. Loaded together with the client.
"""

from __future__ import annotations

import warnings
from collections.abc import Awaitable, Callable, Sequence
from typing import Any

from qdrant_client import grpc as messages
from qdrant_client import models
from qdrant_client.conversions.conversion import GrpcToRest, RestToGrpc
from qdrant_client.grpc import collections_service_pb2_grpc as collections_service
from qdrant_client.grpc import points_service_pb2_grpc as points_service
from qdrant_client.grpc import qdrant_pb2_grpc as root_service

from fm_storage.testing.double import Double

Method = Callable[[Any], Awaitable[Any]]

SERVICES: list[tuple[str, Any, Callable[[Any, Any], None]]] = [
    (
        "qdrant.Points",
        points_service.PointsServicer,
        points_service.add_PointsServicer_to_server,
    ),
    (
        "qdrant.Collections",
        collections_service.CollectionsServicer,
        collections_service.add_CollectionsServicer_to_server,
    ),
    (
        "qdrant.Qdrant",
        root_service.QdrantServicer,
        root_service.add_QdrantServicer_to_server,
    ),
]
"""The services that the face answers for: name, base, and how it is registered."""


class GrpcFace:
    """Answers messages from the collections of a ``Double``.

    Args:
        double: The collections behind.
        version: Returns the version that a health check answers.
    """

    def __init__(self, double: Double, *, version: Callable[[], str]) -> None:
        self.double = double
        self._version = version
        self.methods: dict[str, Method] = {
            "/qdrant.Qdrant/HealthCheck": self._health,
            "/qdrant.Collections/Get": self._info,
            "/qdrant.Collections/List": self._list,
            "/qdrant.Collections/Create": self._create,
            "/qdrant.Collections/Delete": self._delete,
            "/qdrant.Collections/UpdateAliases": self._change_aliases,
            "/qdrant.Collections/ListCollectionAliases": self._aliases_of,
            "/qdrant.Collections/ListAliases": self._aliases,
            "/qdrant.Collections/CollectionExists": self._exists,
            "/qdrant.Points/Upsert": self._upsert,
            "/qdrant.Points/Delete": self._delete_points,
            "/qdrant.Points/Get": self._retrieve,
            "/qdrant.Points/SetPayload": self._set_payload,
            "/qdrant.Points/OverwritePayload": self._overwrite_payload,
            "/qdrant.Points/DeletePayload": self._delete_payload,
            "/qdrant.Points/ClearPayload": self._clear_payload,
            "/qdrant.Points/CreateFieldIndex": self._create_index,
            "/qdrant.Points/DeleteFieldIndex": self._delete_index,
            "/qdrant.Points/Scroll": self._scroll,
            "/qdrant.Points/Count": self._count,
            "/qdrant.Points/UpdateVectors": self._update_vectors,
            "/qdrant.Points/DeleteVectors": self._delete_vectors,
            "/qdrant.Points/Facet": self._facet,
            "/qdrant.Points/QueryGroups": self._groups,
            "/qdrant.Points/Query": self._query,
            "/qdrant.Points/QueryBatch": self._query_batch,
        }

    async def answer(self, method: str, request: Any) -> Any:
        """Answer one message.

        Raises:
            NotImplementedError: The double has no such method.
            Exception: Whatever ``refusal_for()`` makes a status of.
        """
        handler = self.methods.get(method)
        if handler is None:
            raise NotImplementedError(method)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # local mode has no payload indexes
            return await handler(request)

    async def _health(self, _request: Any) -> Any:
        return messages.HealthCheckReply(
            title="qdrant - vector search engine", version=self._version()
        )

    # Collections

    async def _info(self, request: Any) -> Any:
        plain = await self.double.info(request.collection_name)
        info = models.CollectionInfo.model_validate(plain)
        return messages.GetCollectionInfoResponse(
            result=RestToGrpc.convert_collection_info(info)
        )

    async def _list(self, _request: Any) -> Any:
        found = await self.double.client.get_collections()
        return messages.ListCollectionsResponse(
            collections=[
                messages.CollectionDescription(name=item.name)
                for item in found.collections
            ]
        )

    async def _create(self, request: Any) -> Any:
        converted = {
            "vectors": ("vectors_config", GrpcToRest.convert_vectors_config),
            "sparse_vectors": (
                "sparse_vectors_config",
                GrpcToRest.convert_sparse_vector_config,
            ),
            "hnsw_config": ("hnsw_config", GrpcToRest.convert_hnsw_config_diff),
            "quantization_config": (
                "quantization_config",
                GrpcToRest.convert_quantization_config,
            ),
            "sharding_method": ("sharding_method", GrpcToRest.convert_sharding_method),
            **{
                name: (name, _same)
                for name in (
                    "shard_number",
                    "replication_factor",
                    "write_consistency_factor",
                    "on_disk_payload",
                )
            },
        }
        given = {
            name: convert(getattr(request, field))
            for name, (field, convert) in converted.items()
            if request.HasField(field)
        }
        made = await self.double.create(
            request.collection_name, models.CreateCollection(**given)
        )
        return messages.CollectionOperationResponse(result=made)

    async def _delete(self, request: Any) -> Any:
        gone = await self.double.drop(request.collection_name)
        return messages.CollectionOperationResponse(result=gone)

    async def _change_aliases(self, request: Any) -> Any:
        done = await self.double.client.update_collection_aliases(
            [GrpcToRest.convert_alias_operations(item) for item in request.actions]
        )
        return messages.CollectionOperationResponse(result=bool(done))

    async def _aliases(self, _request: Any) -> Any:
        return _alias_list(await self.double.client.get_aliases())

    async def _aliases_of(self, request: Any) -> Any:
        name = request.collection_name
        return _alias_list(await self.double.client.get_collection_aliases(name))

    async def _exists(self, request: Any) -> Any:
        there = await self.double.client.collection_exists(request.collection_name)
        return messages.CollectionExistsResponse(
            result=messages.CollectionExists(exists=there)
        )

    async def _create_index(self, request: Any) -> Any:
        kind = messages.FieldType.Name(request.field_type)
        schema: Any = kind.removeprefix("FieldType").lower()
        if request.HasField("field_index_params"):
            params = request.field_index_params
            schema = GrpcToRest.convert_payload_schema_params(params)
        await self.double.create_index(
            request.collection_name, request.field_name, schema
        )
        return _done()

    async def _delete_index(self, request: Any) -> Any:
        await self.double.delete_index(request.collection_name, request.field_name)
        return _done()

    # Points

    async def _upsert(self, request: Any) -> Any:
        given = models.PointsList(
            points=[GrpcToRest.convert_point_struct(point) for point in request.points],
            update_filter=_filter(request, "update_filter"),
            update_mode=_given(request, "update_mode", GrpcToRest.convert_update_mode),
        )
        await self.double.upsert(request.collection_name, given)
        return _done()

    async def _update_vectors(self, request: Any) -> Any:
        given = models.UpdateVectors(
            points=[GrpcToRest.convert_point_vectors(each) for each in request.points],
            update_filter=_filter(request, "update_filter"),
        )
        await self.double.update_vectors(request.collection_name, given)
        return _done()

    async def _delete_vectors(self, request: Any) -> Any:
        await self.double.client.delete_vectors(
            request.collection_name,
            vectors=list(request.vectors.names),
            points=GrpcToRest.convert_points_selector(request.points_selector),
        )
        return _done()

    async def _facet(self, request: Any) -> Any:
        given = models.FacetRequest(
            key=request.key,
            limit=_given(request, "limit"),
            filter=_filter(request),
        )
        found = await self.double.facet(request.collection_name, given)
        return messages.FacetResponse(
            hits=[RestToGrpc.convert_facet_value_hit(hit) for hit in found.hits]
        )

    async def _groups(self, request: Any) -> Any:
        given = models.QueryGroupsRequest(
            group_by=request.group_by,
            group_size=_given(request, "group_size"),
            limit=_given(request, "limit"),
            query=_given(request, "query", GrpcToRest.convert_query),
            using=_given(request, "using"),
            filter=_filter(request),
            score_threshold=_given(request, "score_threshold"),
            **_wishes(request),
        )
        found = await self.double.groups(request.collection_name, given)
        groups = [
            messages.PointGroup(
                id=_group_id(group.id),
                hits=[RestToGrpc.convert_scored_point(hit) for hit in group.hits],
            )
            for group in found.groups
        ]
        return messages.QueryGroupsResponse(result=messages.GroupsResult(groups=groups))

    async def _delete_points(self, request: Any) -> Any:
        chosen = GrpcToRest.convert_points_selector(request.points)
        await self.double.client.delete(request.collection_name, chosen)
        return _done()

    async def _set_payload(self, request: Any) -> Any:
        await self.double.client.set_payload(
            request.collection_name,
            payload=GrpcToRest.convert_payload(request.payload),
            points=GrpcToRest.convert_points_selector(request.points_selector),
            key=_given(request, "key"),
        )
        return _done()

    async def _overwrite_payload(self, request: Any) -> Any:
        await self.double.client.overwrite_payload(
            request.collection_name,
            payload=GrpcToRest.convert_payload(request.payload),
            points=GrpcToRest.convert_points_selector(request.points_selector),
        )
        return _done()

    async def _delete_payload(self, request: Any) -> Any:
        await self.double.client.delete_payload(
            request.collection_name,
            keys=list(request.keys),
            points=GrpcToRest.convert_points_selector(request.points_selector),
        )
        return _done()

    async def _clear_payload(self, request: Any) -> Any:
        chosen = GrpcToRest.convert_points_selector(request.points)
        await self.double.client.clear_payload(request.collection_name, chosen)
        return _done()

    async def _retrieve(self, request: Any) -> Any:
        given = models.PointRequest(
            ids=[GrpcToRest.convert_point_id(point) for point in request.ids],
            **_wishes(request),
        )
        found = await self.double.retrieve(request.collection_name, given)
        return messages.GetResponse(result=_records(found))

    async def _scroll(self, request: Any) -> Any:
        given = models.ScrollRequest(
            filter=_filter(request),
            limit=_given(request, "limit"),
            offset=_given(request, "offset", GrpcToRest.convert_point_id),
            order_by=_given(request, "order_by", GrpcToRest.convert_order_by),
            **_wishes(request),
        )
        found, following = await self.double.scroll(request.collection_name, given)
        return messages.ScrollResponse(
            result=_records(found),
            next_page_offset=None
            if following is None
            else RestToGrpc.convert_extended_point_id(following),
        )

    async def _count(self, request: Any) -> Any:
        found = await self.double.client.count(
            request.collection_name, count_filter=_filter(request)
        )
        return messages.CountResponse(result=messages.CountResult(count=found.count))

    async def _query(self, request: Any) -> Any:
        return messages.QueryResponse(result=await self._found(request))

    async def _query_batch(self, request: Any) -> Any:
        return messages.QueryBatchResponse(
            result=[
                messages.BatchResult(result=await self._found(query))
                for query in request.query_points
            ]
        )

    async def _found(self, request: Any) -> list[Any]:
        given = GrpcToRest.convert_query_points(request)
        found = await self.double.query(request.collection_name, given)
        return [RestToGrpc.convert_scored_point(hit) for hit in found.points]


def _same(value: Any) -> Any:
    return value


def _group_id(value: Any) -> Any:
    if isinstance(value, str):
        return messages.GroupId(string_value=value)
    return messages.GroupId(integer_value=value)


def _done() -> Any:
    return messages.PointsOperationResponse(
        result=messages.UpdateResult(
            operation_id=0, status=messages.UpdateStatus.Completed
        )
    )


def _alias_list(found: Any) -> Any:
    return messages.ListAliasesResponse(
        aliases=[RestToGrpc.convert_alias_description(item) for item in found.aliases]
    )


def _given(request: Any, field: str, convert: Callable[[Any], Any] = _same) -> Any:
    """Return a field of a message, converted; None if it is not set."""
    return convert(getattr(request, field)) if request.HasField(field) else None


def _filter(request: Any, field: str = "filter") -> Any:
    return _given(request, field, GrpcToRest.convert_filter)


def _wishes(request: Any) -> dict[str, Any]:
    """Return which parts of points are asked for."""
    payload, vectors = (
        GrpcToRest.convert_with_payload_selector,
        GrpcToRest.convert_with_vectors_selector,
    )
    return {
        "with_payload": _given(request, "with_payload", payload),
        "with_vector": _given(request, "with_vectors", vectors),
    }


def _records(found: Sequence[Any]) -> list[Any]:
    return [RestToGrpc.convert_record(record) for record in found]
