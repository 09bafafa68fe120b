"""Qdrant's REST API over the client's local mode, as an ASGI application.

Apart from the server that carries it, so that it can also be mounted in an
application's own tests. Bodies are parsed by the client's models, which are
generated from Qdrant's own description of the API, so that a request which a
server would refuse is refused here.

It is a test double for the *interface*: local mode compares with every point,
knows no shards, consistency or strict mode, and is far slower than a server.
"""

from __future__ import annotations

import re
import time
import warnings
from collections.abc import Awaitable, Callable, Mapping
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote

import orjson

if TYPE_CHECKING:
    from qdrant_client import AsyncQdrantClient

__all__ = ["QdrantApp", "Refused"]

VERSION = "1.17.0"
_MAX_BODY = 32 * 1024 * 1024

Reply = tuple[int, dict[str, str], bytes]
Handler = Callable[..., Awaitable[Any]]
Scope = Mapping[str, Any]


class Refused(Exception):
    """A request that is answered with an error status."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status


class QdrantApp:
    """The REST API of an empty Qdrant server; an ASGI application.

    Args:
        api_key: Refuse requests without this key.
        max_body: Bytes of a request at most (Qdrant's own limit by default).
    """

    def __init__(
        self, *, api_key: str | None = None, max_body: int = _MAX_BODY
    ) -> None:
        self._api_key = api_key
        self._max_body = max_body
        self._client: AsyncQdrantClient | None = None
        # What local mode forgets and a server tells again.
        self._indexes: dict[str, dict[str, Any]] = {}
        self._options: dict[str, Any] = {}
        self._routes: list[tuple[str, re.Pattern[str], Handler]] = [
            (method, re.compile(pattern), handler)
            for method, pattern, handler in self._table()
        ]

    @property
    def client(self) -> AsyncQdrantClient:
        """The local mode below, to look behind the interface."""
        if self._client is None:
            from qdrant_client import AsyncQdrantClient  # noqa: PLC0415 - loads a second

            self._client = AsyncQdrantClient(":memory:")
        return self._client

    async def handle(
        self, method: str, path: str, headers: Mapping[str, str], body: bytes
    ) -> Reply:
        """Answer one request; header names are in lower case."""
        began = time.perf_counter()
        if self._api_key is not None and headers.get("api-key") != self._api_key:
            return self._error(401, "Must provide an API key", began)
        if len(body) > self._max_body:
            limit = f"(limit: {self._max_body} bytes)"
            text = f"JSON payload ({len(body)} bytes) is larger than allowed {limit}."
            return self._error(400, text, began)
        if method == "GET" and path == "/":
            about = {"title": "qdrant - vector search engine", "version": VERSION}
            return 200, _JSON, orjson.dumps(about)
        if method == "GET" and path in {"/healthz", "/readyz", "/livez"}:
            return 200, {"content-type": "text/plain"}, b"healthz check passed"
        for known, pattern, handler in self._routes:
            found = pattern.fullmatch(path)
            if known == method and found is not None:
                return await self._answer(handler, found, body, began)
        return 404, _JSON, b""

    async def _answer(  # noqa: PLR0911 - one line per kind of failure
        self, handler: Handler, found: re.Match[str], body: bytes, began: float
    ) -> Reply:
        from pydantic import ValidationError  # noqa: PLC0415 - beside the client

        names = [unquote(part) for part in found.groups()]
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # local mode has no payload indexes
                result = await handler(body, *names)
        except Refused as exc:
            return self._error(exc.status, str(exc), began)
        except ValidationError as exc:
            first = exc.errors(include_url=False)[0]
            text = f"Format error in JSON body: {first['loc']}: {first['msg']}"
            return self._error(400, text, began)
        except orjson.JSONDecodeError as exc:
            return self._error(400, f"Format error in JSON body: {exc}", began)
        except ValueError as exc:
            return self._error(_status_of(str(exc)), f"Wrong input: {exc}", began)
        except KeyError as exc:  # local mode's word for a point that is not there
            text = f"Not found: No point with id {exc.args[0]} found"
            return self._error(404, text, began)
        except Exception as exc:  # noqa: BLE001 - a server never dies of a request
            return self._error(500, f"Service internal error: {exc!r}", began)
        answer = {
            "result": _jsonable(result),
            "status": "ok",
            "time": time.perf_counter() - began,
        }
        return 200, _JSON, orjson.dumps(answer, option=orjson.OPT_SERIALIZE_NUMPY)

    @staticmethod
    def _error(status: int, text: str, began: float) -> Reply:
        answer = {"status": {"error": text}, "time": time.perf_counter() - began}
        return status, _JSON, orjson.dumps(answer)

    async def __call__(self, scope: Scope, receive: Any, send: Any) -> None:  # noqa: ANN401 - ASGI's callables
        """Serve one ASGI request."""
        if scope["type"] == "lifespan":
            while True:
                message = await receive()
                await send({"type": f"{message['type']}.complete"})
                if message["type"] == "lifespan.shutdown":
                    return
        body = b""
        more = True
        while more:
            message = await receive()
            body += message.get("body", b"")
            more = message.get("more_body", False)
        headers = {k.decode().lower(): v.decode() for k, v in scope["headers"]}
        status, given, answer = await self.handle(
            scope["method"], scope["path"], headers, body
        )
        raw = [(k.encode(), v.encode()) for k, v in given.items()]
        await send({"type": "http.response.start", "status": status, "headers": raw})
        await send({"type": "http.response.body", "body": answer})

    # Collections

    def _table(self) -> list[tuple[str, str, Handler]]:
        one = r"/collections/([^/]+)"
        points = one + "/points"
        return [
            ("GET", "/collections", self._list),
            ("POST", "/collections/aliases", self._change_aliases),
            ("GET", "/aliases", self._aliases),
            ("GET", one, self._info),
            ("PUT", one, self._create),
            ("DELETE", one, self._delete),
            ("GET", one + "/exists", self._exists),
            ("GET", one + "/aliases", self._aliases_of),
            ("PUT", one + "/index", self._create_index),
            ("DELETE", one + "/index/([^/]+)", self._delete_index),
            ("PUT", points, self._upsert),
            ("POST", points, self._retrieve),
            ("POST", points + "/batch", self._batch),
            ("POST", points + "/delete", self._delete_points),
            ("POST", points + "/payload", self._set_payload),
            ("PUT", points + "/payload", self._overwrite_payload),
            ("POST", points + "/payload/delete", self._delete_payload),
            ("POST", points + "/payload/clear", self._clear_payload),
            ("POST", points + "/scroll", self._scroll),
            ("POST", points + "/count", self._count),
            ("POST", points + "/query", self._query),
            ("POST", points + "/query/batch", self._query_batch),
            ("GET", points + "/([^/]+)", self._one),
        ]

    async def _list(self, _body: bytes) -> Any:  # noqa: ANN401 - a model
        return await self.client.get_collections()

    async def _info(self, _body: bytes, name: str) -> Any:  # noqa: ANN401 - JSON
        info = await self.client.get_collection(name)
        made = _jsonable(info)
        real = await self._resolve(name)
        self._echo(made["config"], self._options.get(real))
        made["payload_schema"] = {
            field: {"data_type": _type_of(schema), "points": 0}
            for field, schema in self._indexes.get(real, {}).items()
        }
        return made

    @staticmethod
    def _echo(config: dict[str, Any], given: Any) -> None:  # noqa: ANN401 - a model
        """Tell the options of a collection as a server would."""
        if given is None:
            return
        asked = given.model_dump(mode="json", exclude_none=True)
        for key in (
            "shard_number",
            "replication_factor",
            "write_consistency_factor",
            "on_disk_payload",
            "sharding_method",
        ):
            if key in asked:
                config["params"][key] = asked[key]
        config["hnsw_config"] = {
            **config["hnsw_config"],
            **asked.get("hnsw_config", {}),
        }
        if "quantization_config" in asked:
            config["quantization_config"] = asked["quantization_config"]

    async def _resolve(self, name: str) -> str:
        aliases = await self.client.get_aliases()
        targets = {a.alias_name: a.collection_name for a in aliases.aliases}
        return targets.get(name, name)

    async def _create(self, body: bytes, name: str) -> bool:
        from qdrant_client import models  # noqa: PLC0415 - loads a second

        given = models.CreateCollection.model_validate(orjson.loads(body))
        taken = {c.name for c in (await self.client.get_collections()).collections}
        if name in taken or await self._resolve(name) != name:
            raise Refused(409, f"Wrong input: Collection `{name}` already exists!")
        self._options[name] = given
        return bool(
            await self.client.create_collection(
                name,
                vectors_config=given.vectors or {},
                sparse_vectors_config=given.sparse_vectors,
            )
        )

    async def _delete(self, _body: bytes, name: str) -> bool:
        self._indexes.pop(name, None)
        return bool(await self.client.delete_collection(name))

    async def _exists(self, _body: bytes, name: str) -> dict[str, bool]:
        return {"exists": await self.client.collection_exists(name)}

    async def _aliases(self, _body: bytes) -> Any:  # noqa: ANN401 - a model
        return await self.client.get_aliases()

    async def _aliases_of(self, _body: bytes, name: str) -> Any:  # noqa: ANN401 - a model
        return await self.client.get_collection_aliases(name)

    async def _change_aliases(self, body: bytes) -> bool:
        from qdrant_client import models  # noqa: PLC0415 - loads a second

        given = models.ChangeAliasesOperation.model_validate(orjson.loads(body))
        return bool(await self.client.update_collection_aliases(given.actions))

    async def _create_index(self, body: bytes, name: str) -> dict[str, Any]:
        from qdrant_client import models  # noqa: PLC0415 - loads a second

        given = models.CreateFieldIndex.model_validate(orjson.loads(body))
        await self.client.get_collection(name)
        schema = _jsonable(given.field_schema)
        self._indexes.setdefault(await self._resolve(name), {})[given.field_name] = (
            schema
        )
        return _DONE

    async def _delete_index(self, _body: bytes, name: str, field: str) -> Any:  # noqa: ANN401 - JSON
        await self.client.get_collection(name)
        self._indexes.get(await self._resolve(name), {}).pop(field, None)
        return _DONE

    # Points

    async def _sizes(self, name: str) -> dict[str, int]:
        params = (await self.client.get_collection(name)).config.params.vectors
        if params is None:
            return {}
        if isinstance(params, dict):
            return {vector: given.size for vector, given in params.items()}
        return {"": params.size}

    async def _check_points(self, name: str, given: Any) -> None:  # noqa: ANN401 - a model
        """Refuse what local mode would answer with the text of numpy."""
        sizes = await self._sizes(name)
        for point in getattr(given, "points", ()):
            vectors = point.vector
            if not isinstance(vectors, dict):
                vectors = {"": vectors}
            for vector, value in vectors.items():
                if not isinstance(value, list):
                    continue
                if vector not in sizes:
                    raise Refused(
                        400, f"Wrong input: Not existing vector name error: {vector}"
                    )
                if len(value) != sizes[vector]:
                    raise Refused(
                        400,
                        "Wrong input: Vector dimension error: "
                        f"expected dim: {sizes[vector]}, got {len(value)}",
                    )

    async def _upsert(self, body: bytes, name: str) -> dict[str, Any]:
        from pydantic import TypeAdapter  # noqa: PLC0415 - beside the client
        from qdrant_client import models  # noqa: PLC0415 - loads a second

        kind: TypeAdapter[Any] = TypeAdapter(models.PointInsertOperations)
        given = kind.validate_python(orjson.loads(body))
        await self._check_points(name, given)
        await self.client.upsert(
            name,
            points=given.batch
            if isinstance(given, models.PointsBatch)
            else given.points,
            update_filter=given.update_filter,
            update_mode=given.update_mode,
        )
        return _DONE

    async def _batch(self, body: bytes, name: str) -> list[dict[str, Any]]:
        from qdrant_client import models  # noqa: PLC0415 - loads a second

        given = models.UpdateOperations.model_validate(orjson.loads(body))
        for operation in given.operations:
            if isinstance(operation, models.UpsertOperation):
                await self._check_points(name, operation.upsert)
        await self.client.batch_update_points(name, update_operations=given.operations)
        return [_DONE] * len(given.operations)

    async def _retrieve(self, body: bytes, name: str) -> Any:  # noqa: ANN401 - models
        from qdrant_client import models  # noqa: PLC0415 - loads a second

        given = models.PointRequest.model_validate(orjson.loads(body))
        return await self.client.retrieve(
            name,
            ids=given.ids,
            with_payload=True if given.with_payload is None else given.with_payload,
            with_vectors=given.with_vector or False,
        )

    async def _one(self, _body: bytes, name: str, number: str) -> Any:  # noqa: ANN401 - a model
        found = await self.client.retrieve(
            name, ids=[int(number) if number.isdigit() else number], with_vectors=True
        )
        if not found:
            raise Refused(404, f"Not found: Point with id {number} does not exists!")
        return found[0]

    async def _delete_points(self, body: bytes, name: str) -> dict[str, Any]:
        from pydantic import TypeAdapter  # noqa: PLC0415 - beside the client
        from qdrant_client import models  # noqa: PLC0415 - loads a second

        kind: TypeAdapter[Any] = TypeAdapter(models.PointsSelector)
        await self.client.delete(name, kind.validate_python(orjson.loads(body)))
        return _DONE

    async def _payload(self, body: bytes) -> tuple[Any, Any]:
        from qdrant_client import models  # noqa: PLC0415 - loads a second

        given = models.SetPayload.model_validate(orjson.loads(body))
        return given, given.points if given.filter is None else given.filter

    async def _set_payload(self, body: bytes, name: str) -> dict[str, Any]:
        given, points = await self._payload(body)
        await self.client.set_payload(
            name, payload=given.payload, points=points, key=given.key
        )
        return _DONE

    async def _overwrite_payload(self, body: bytes, name: str) -> dict[str, Any]:
        given, points = await self._payload(body)
        await self.client.overwrite_payload(name, payload=given.payload, points=points)
        return _DONE

    async def _delete_payload(self, body: bytes, name: str) -> dict[str, Any]:
        from qdrant_client import models  # noqa: PLC0415 - loads a second

        given = models.DeletePayload.model_validate(orjson.loads(body))
        points: Any = given.points if given.filter is None else given.filter
        await self.client.delete_payload(name, keys=given.keys, points=points)
        return _DONE

    async def _clear_payload(self, body: bytes, name: str) -> dict[str, Any]:
        from pydantic import TypeAdapter  # noqa: PLC0415 - beside the client
        from qdrant_client import models  # noqa: PLC0415 - loads a second

        kind: TypeAdapter[Any] = TypeAdapter(models.PointsSelector)
        await self.client.clear_payload(name, kind.validate_python(orjson.loads(body)))
        return _DONE

    async def _scroll(self, body: bytes, name: str) -> dict[str, Any]:
        from qdrant_client import models  # noqa: PLC0415 - loads a second

        given = models.ScrollRequest.model_validate(orjson.loads(body))
        order = given.order_by
        key = order if isinstance(order, str) or order is None else order.key
        indexes = self._indexes.get(await self._resolve(name), {})
        if key is not None and key not in indexes:
            raise Refused(
                400, f"Bad request: No range index for `order_by` key: `{key}`."
            )
        found, following = await self.client.scroll(
            name,
            scroll_filter=given.filter,
            limit=10 if given.limit is None else given.limit,
            order_by=order,
            offset=given.offset,
            with_payload=True if given.with_payload is None else given.with_payload,
            with_vectors=given.with_vector or False,
        )
        return {"points": found, "next_page_offset": following}

    async def _count(self, body: bytes, name: str) -> Any:  # noqa: ANN401 - a model
        from qdrant_client import models  # noqa: PLC0415 - loads a second

        given = models.CountRequest.model_validate(orjson.loads(body))
        return await self.client.count(name, count_filter=given.filter)

    async def _query(self, body: bytes, name: str) -> Any:  # noqa: ANN401 - a model
        from qdrant_client import models  # noqa: PLC0415 - loads a second

        given = models.QueryRequest.model_validate(orjson.loads(body))
        return await self._queried(name, given)

    async def _query_batch(self, body: bytes, name: str) -> list[Any]:
        from qdrant_client import models  # noqa: PLC0415 - loads a second

        given = models.QueryRequestBatch.model_validate(orjson.loads(body))
        return [await self._queried(name, search) for search in given.searches]

    async def _queried(self, name: str, given: Any) -> Any:  # noqa: ANN401 - models
        from qdrant_client import models  # noqa: PLC0415 - loads a second

        sizes = await self._sizes(name)
        vector = given.query
        if isinstance(vector, models.NearestQuery):
            vector = vector.nearest
        expected = sizes.get(given.using or "")
        if isinstance(vector, list) and expected not in {None, len(vector)}:
            raise Refused(
                400,
                "Wrong input: Vector dimension error: "
                f"expected dim: {expected}, got {len(vector)}",
            )
        return await self.client.query_points(
            name,
            query=given.query,
            using=given.using,
            prefetch=given.prefetch,
            query_filter=given.filter,
            limit=given.limit or 10,
            offset=given.offset,
            with_payload=given.with_payload or False,
            with_vectors=given.with_vector or False,
            score_threshold=given.score_threshold,
        )


_JSON = {"content-type": "application/json"}
_DONE: dict[str, Any] = {"operation_id": 0, "status": "completed"}


def _status_of(text: str) -> int:
    said = text.lower()
    if "already exists" in said:
        return 409
    if "not found" in said and ("collection" in said or "point" in said):
        return 400 if "vector" in said else 404
    return 400


def _type_of(schema: Any) -> str:  # noqa: ANN401 - text or object
    return schema["type"] if isinstance(schema, dict) else str(schema or "keyword")


def _jsonable(value: Any) -> Any:  # noqa: ANN401 - any result
    dump = getattr(value, "model_dump", None)
    if dump is not None:
        return dump(mode="json")
    if isinstance(value, dict):
        return {key: _jsonable(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_jsonable(inner) for inner in value]
    return getattr(value, "value", value)
