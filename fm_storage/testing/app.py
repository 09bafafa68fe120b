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
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import orjson

from fm_storage.testing.double import Double, Refused, jsonable, refusal_for

VERSION = "1.17.0"
_MAX_BODY = 32 * 1024 * 1024

Reply = tuple[int, dict[str, str], bytes]
Handler = Callable[..., Awaitable[Any]]
Route = tuple[str, str, str | None, Handler | str]
"""Method, pattern of the path, model of the body if it is read, and what answers.

A name is a call of the client. It is called with the path's groups, then the body;
None is a write that was done.
"""
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
        self._routes = [
            (method, re.compile(pattern), kind, handler)
            for method, pattern, kind, handler in self._table()
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
        for known, pattern, kind, handler in self._routes:
            found = pattern.fullmatch(path)
            if known == method and found is not None:
                names = [unquote(part) for part in found.groups()]
                call = (
                    getattr(self.client, handler)
                    if isinstance(handler, str)
                    else handler
                )
                return await self._answer(kind, call, names, body, began)
        return 404, _JSON, b""

    @staticmethod
    async def _answer(
        kind: str | None, handler: Handler, names: list[str], body: bytes, began: float
    ) -> Reply:
        from pydantic import ValidationError

        try:
            given = () if kind is None else (_parsed(kind, body),)
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # local mode has no payload indexes
                result = await handler(*names, *given)
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
            "result": _DONE if result is None else jsonable(result),
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

    def _table(self) -> list[Route]:
        double = self.double
        one = r"/collections/([^/]+)"
        points = one + "/points"
        return [
            ("GET", "/collections", None, "get_collections"),
            (
                "POST",
                "/collections/aliases",
                "ChangeAliasesOperation",
                lambda given: self.client.update_collection_aliases(given.actions),
            ),
            ("GET", "/aliases", None, "get_aliases"),
            ("GET", one, None, double.info),
            ("PUT", one, "CreateCollection", double.create),
            ("DELETE", one, None, double.drop),
            ("GET", one + "/exists", None, self._exists),
            ("GET", one + "/aliases", None, "get_collection_aliases"),
            (
                "PUT",
                one + "/index",
                "CreateFieldIndex",
                lambda name, given: double.create_index(
                    name, given.field_name, given.field_schema
                ),
            ),
            ("DELETE", one + "/index/([^/]+)", None, double.delete_index),
            ("POST", one + "/facet", "FacetRequest", double.facet),
            ("PUT", points, "PointInsertOperations", double.upsert),
            ("POST", points, "PointRequest", double.retrieve),
            ("POST", points + "/batch", "UpdateOperations", self._batch),
            ("PUT", points + "/vectors", "UpdateVectors", double.update_vectors),
            (
                "POST",
                points + "/vectors/delete",
                "DeleteVectors",
                lambda name, given: self.client.delete_vectors(
                    name, vectors=given.vector, points=_chosen(given)
                ),
            ),
            ("POST", points + "/delete", "PointsSelector", "delete"),
            (
                "POST",
                points + "/payload",
                "SetPayload",
                lambda name, given: self.client.set_payload(
                    name, payload=given.payload, points=_chosen(given), key=given.key
                ),
            ),
            (
                "PUT",
                points + "/payload",
                "SetPayload",
                lambda name, given: self.client.overwrite_payload(
                    name, payload=given.payload, points=_chosen(given)
                ),
            ),
            (
                "POST",
                points + "/payload/delete",
                "DeletePayload",
                lambda name, given: self.client.delete_payload(
                    name, keys=given.keys, points=_chosen(given)
                ),
            ),
            ("POST", points + "/payload/clear", "PointsSelector", "clear_payload"),
            ("POST", points + "/scroll", "ScrollRequest", self._scroll),
            (
                "POST",
                points + "/count",
                "CountRequest",
                lambda name, given: self.client.count(name, count_filter=given.filter),
            ),
            ("POST", points + "/query", "QueryRequest", double.query),
            ("POST", points + "/query/batch", "QueryRequestBatch", self._query_batch),
            ("POST", points + "/query/groups", "QueryGroupsRequest", double.groups),
            ("GET", points + "/([^/]+)", None, self._one),
        ]

    async def _exists(self, name: str) -> dict[str, bool]:
        return {"exists": await self.client.collection_exists(name)}

    async def _batch(self, name: str, given: Any) -> list[dict[str, Any]]:
        for operation in given.operations:
            await self.double.check_points(name, getattr(operation, "upsert", None))
        await self.client.batch_update_points(name, update_operations=given.operations)
        return [_DONE] * len(given.operations)

    async def _one(self, name: str, number: str) -> Any:
        found = await self.client.retrieve(
            name, ids=[int(number) if number.isdigit() else number], with_vectors=True
        )
        if not found:
            raise Refused(404, f"Not found: Point with id {number} does not exists!")
        return found[0]

    async def _scroll(self, name: str, given: Any) -> dict[str, Any]:
        found, following = await self.double.scroll(name, given)
        return {"points": found, "next_page_offset": following}

    async def _query_batch(self, name: str, given: Any) -> list[Any]:
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
    return _in_utc(adapter.validate_python(orjson.loads(body)))


def _in_utc(given: Any) -> Any:
    """Give a zone to the moments that have none: a server takes them for UTC."""
    for model in given if isinstance(given, list) else [given]:
        for name in getattr(model, "model_fields_set", ()):
            value = getattr(model, name)
            if isinstance(value, datetime) and value.tzinfo is None:
                setattr(model, name, value.replace(tzinfo=UTC))
            elif not isinstance(value, list) or hasattr(
                next(iter(value), None), "model_fields_set"
            ):
                _in_utc(value)
    return given


_ADAPTERS: dict[str, Any] = {}


def _chosen(given: Any) -> Any:
    return given.points if given.filter is None else given.filter
