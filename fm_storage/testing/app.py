"""Qdrant's REST API as an ASGI application: one face of the test double.

It can also be mounted in an application's own tests. Bodies are parsed by the
client's models, which are generated from Qdrant's own description of the API, so
that a request which a server would refuse is refused here.
"""

from __future__ import annotations

import re
import time
import warnings
from collections.abc import Awaitable, Callable, Mapping
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import orjson

from fm_storage.testing.double import Double, Refused, jsonable, refusal_for

VERSION = "1.17.0"
_MAX_BODY = 32 * 1024 * 1024

Reply = tuple[int, dict[str, str], bytes]
Handler = Callable[..., Awaitable[Any]]
Scope = Mapping[str, Any]

_JSON = {"content-type": "application/json"}
_DONE: dict[str, Any] = {"operation_id": 0, "status": "completed"}


class QdrantApp:
    """The REST API of an empty Qdrant server; an ASGI application.

    Args:
        api_key: Refuse requests without this key.
        max_body: Bytes of a request at most (Qdrant's own limit by default).
        folder: Folder of an embedded engine that several share; one of its own by
            default.

    Attributes:
        double: The collections behind, which a gRPC face may share.
    """

    def __init__(
        self,
        *,
        api_key: str | None = None,
        max_body: int = _MAX_BODY,
        folder: Path | None = None,
    ) -> None:
        self.api_key = api_key
        self._max_body = max_body
        self.double = Double(folder)
        self._routes: list[tuple[str, re.Pattern[str], Handler]] = [
            (method, re.compile(pattern), handler)
            for method, pattern, handler in self._table()
        ]

    @property
    def client(self) -> Any:
        """The engine below, to look behind the interface by the client's calls."""
        return self.double.client

    async def handle(
        self, method: str, path: str, headers: Mapping[str, str], body: bytes
    ) -> Reply:
        """Answer one request; header names are in lower case."""
        began = time.perf_counter()
        if self.api_key is not None and headers.get("api-key") != self.api_key:
            return _error(401, "Must provide an API key", began)
        if len(body) > self._max_body:
            limit = f"(limit: {self._max_body} bytes)"
            text = f"JSON payload ({len(body)} bytes) is larger than allowed {limit}."
            return _error(400, text, began)
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

    async def _answer(
        self, handler: Handler, found: re.Match[str], body: bytes, began: float
    ) -> Reply:
        from pydantic import ValidationError

        names = [unquote(part) for part in found.groups()]
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # local mode has no payload indexes
                result = await handler(body, *names)
        except ValidationError as exc:
            first = exc.errors(include_url=False)[0]
            text = f"Format error in JSON body: {first['loc']}: {first['msg']}"
            return _error(400, text, began)
        except orjson.JSONDecodeError as exc:
            return _error(400, f"Format error in JSON body: {exc}", began)
        except Exception as exc:  # becomes the answer
            refusal = refusal_for(exc)
            return _error(refusal.status, str(refusal), began)
        answer = {
            "result": jsonable(result),
            "status": "ok",
            "time": time.perf_counter() - began,
        }
        return 200, _JSON, orjson.dumps(answer, option=orjson.OPT_SERIALIZE_NUMPY)

    async def __call__(self, scope: Scope, receive: Any, send: Any) -> None:
        """Serve one ASGI request."""
        if scope["type"] == "lifespan":
            while True:
                message = await receive()
                if message["type"] == "lifespan.startup":
                    self.double.keep()
                else:
                    await self.double.aclose()
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
            ("PUT", points + "/vectors", self._update_vectors),
            ("POST", points + "/vectors/delete", self._delete_vectors),
            ("POST", points + "/query/groups", self._groups),
            ("POST", one + "/facet", self._facet),
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

    # Collections

    async def _list(self, _body: bytes) -> Any:
        return await self.client.get_collections()

    async def _info(self, _body: bytes, name: str) -> dict[str, Any]:
        return await self.double.info(name)

    async def _create(self, body: bytes, name: str) -> bool:
        return await self.double.create(name, _parsed("CreateCollection", body))

    async def _delete(self, _body: bytes, name: str) -> bool:
        return await self.double.drop(name)

    async def _exists(self, _body: bytes, name: str) -> dict[str, bool]:
        return {"exists": await self.client.collection_exists(name)}

    async def _aliases(self, _body: bytes) -> Any:
        return await self.client.get_aliases()

    async def _aliases_of(self, _body: bytes, name: str) -> Any:
        return await self.client.get_collection_aliases(name)

    async def _change_aliases(self, body: bytes) -> bool:
        given = _parsed("ChangeAliasesOperation", body)
        return bool(await self.client.update_collection_aliases(given.actions))

    async def _create_index(self, body: bytes, name: str) -> dict[str, Any]:
        given = _parsed("CreateFieldIndex", body)
        await self.double.create_index(name, given.field_name, given.field_schema)
        return _DONE

    async def _delete_index(
        self, _body: bytes, name: str, field: str
    ) -> dict[str, Any]:
        await self.double.delete_index(name, field)
        return _DONE

    # Points

    async def _upsert(self, body: bytes, name: str) -> dict[str, Any]:
        await self.double.upsert(name, _parsed("PointInsertOperations", body))
        return _DONE

    async def _batch(self, body: bytes, name: str) -> list[dict[str, Any]]:
        given = _parsed("UpdateOperations", body)
        for operation in given.operations:
            await self.double.check_points(name, getattr(operation, "upsert", None))
        await self.client.batch_update_points(name, update_operations=given.operations)
        return [_DONE] * len(given.operations)

    async def _update_vectors(self, body: bytes, name: str) -> dict[str, Any]:
        await self.double.update_vectors(name, _parsed("UpdateVectors", body))
        return _DONE

    async def _delete_vectors(self, body: bytes, name: str) -> dict[str, Any]:
        given = _parsed("DeleteVectors", body)
        await self.client.delete_vectors(
            name, vectors=given.vector, points=_chosen(given)
        )
        return _DONE

    async def _groups(self, body: bytes, name: str) -> Any:
        return await self.double.groups(name, _parsed("QueryGroupsRequest", body))

    async def _facet(self, body: bytes, name: str) -> Any:
        return await self.double.facet(name, _parsed("FacetRequest", body))

    async def _retrieve(self, body: bytes, name: str) -> Any:
        return await self.double.retrieve(name, _parsed("PointRequest", body))

    async def _one(self, _body: bytes, name: str, number: str) -> Any:
        found = await self.client.retrieve(
            name, ids=[int(number) if number.isdigit() else number], with_vectors=True
        )
        if not found:
            raise Refused(404, f"Not found: Point with id {number} does not exists!")
        return found[0]

    async def _delete_points(self, body: bytes, name: str) -> dict[str, Any]:
        await self.client.delete(name, _parsed("PointsSelector", body))
        return _DONE

    async def _set_payload(self, body: bytes, name: str) -> dict[str, Any]:
        given = _parsed("SetPayload", body)
        await self.client.set_payload(
            name, payload=given.payload, points=_chosen(given), key=given.key
        )
        return _DONE

    async def _overwrite_payload(self, body: bytes, name: str) -> dict[str, Any]:
        given = _parsed("SetPayload", body)
        await self.client.overwrite_payload(
            name, payload=given.payload, points=_chosen(given)
        )
        return _DONE

    async def _delete_payload(self, body: bytes, name: str) -> dict[str, Any]:
        given = _parsed("DeletePayload", body)
        await self.client.delete_payload(name, keys=given.keys, points=_chosen(given))
        return _DONE

    async def _clear_payload(self, body: bytes, name: str) -> dict[str, Any]:
        await self.client.clear_payload(name, _parsed("PointsSelector", body))
        return _DONE

    async def _scroll(self, body: bytes, name: str) -> dict[str, Any]:
        found, following = await self.double.scroll(
            name, _parsed("ScrollRequest", body)
        )
        return {"points": found, "next_page_offset": following}

    async def _count(self, body: bytes, name: str) -> Any:
        given = _parsed("CountRequest", body)
        return await self.client.count(name, count_filter=given.filter)

    async def _query(self, body: bytes, name: str) -> Any:
        return await self.double.query(name, _parsed("QueryRequest", body))

    async def _query_batch(self, body: bytes, name: str) -> list[Any]:
        given = _parsed("QueryRequestBatch", body)
        return [await self.double.query(name, search) for search in given.searches]


def _error(status: int, text: str, began: float) -> Reply:
    answer = {"status": {"error": text}, "time": time.perf_counter() - began}
    return status, _JSON, orjson.dumps(answer)


def _parsed(kind: str, body: bytes) -> Any:
    """Return a body as an object of ``qdrant_client.models``."""
    from pydantic import TypeAdapter
    from qdrant_client import models

    adapter = _ADAPTERS.get(kind)
    if adapter is None:
        adapter = _ADAPTERS[kind] = TypeAdapter(getattr(models, kind))
    return adapter.validate_python(orjson.loads(body))


_ADAPTERS: dict[str, Any] = {}


def _chosen(given: Any) -> Any:
    return given.points if given.filter is None else given.filter
