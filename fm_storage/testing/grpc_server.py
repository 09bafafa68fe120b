"""A small gRPC server for the test double, with faults on real connections.

Connections are cut below gRPC: every byte goes through a forwarder of our own,
which can reset the connection that a request came on.
"""

from __future__ import annotations

import asyncio
import socket
import struct
from collections.abc import Awaitable, Callable
from contextlib import suppress
from typing import Any, Self

import grpc

from fm_storage.testing import app as rest
from fm_storage.testing.app import QdrantApp
from fm_storage.testing.double import refusal_for
from fm_storage.testing.faults import Fault, Faults, Seen
from fm_storage.testing.grpc_face import SERVICES, GrpcFace

_NO_LINGER = struct.pack("ii", 1, 0)
_CODES = {
    400: grpc.StatusCode.INVALID_ARGUMENT,
    401: grpc.StatusCode.UNAUTHENTICATED,
    403: grpc.StatusCode.PERMISSION_DENIED,
    404: grpc.StatusCode.NOT_FOUND,
    408: grpc.StatusCode.DEADLINE_EXCEEDED,
    409: grpc.StatusCode.ALREADY_EXISTS,
    413: grpc.StatusCode.RESOURCE_EXHAUSTED,
    422: grpc.StatusCode.INVALID_ARGUMENT,
    429: grpc.StatusCode.RESOURCE_EXHAUSTED,
    503: grpc.StatusCode.UNAVAILABLE,
    504: grpc.StatusCode.DEADLINE_EXCEEDED,
}


class QdrantGrpcServer:
    """Serves the collections of a ``QdrantApp`` over gRPC, and misbehaves on request.

    Usually made by ``QdrantTestServer(grpc=True)``, whose script of faults it
    shares. The path of a request is its method's, ``/qdrant.Points/Upsert``.

    Args:
        app: Whose collections and key.
        faults: The script of what goes wrong.
        seen: Where requests are noted.
    """

    def __init__(
        self,
        app: QdrantApp | None = None,
        *,
        faults: Faults | None = None,
        seen: list[Seen] | None = None,
    ) -> None:
        self.app = app or QdrantApp()
        self.faults = Faults() if faults is None else faults
        self.seen: list[Seen] = [] if seen is None else seen
        self.port = 0
        self._face = GrpcFace(self.app.double, version=lambda: rest.VERSION)
        self._server: Any = None
        self._closing = asyncio.Event()
        self._forwarder = _Forwarder()

    async def open(self) -> None:
        """Start to listen; the port stays the same when opened again."""
        self._closing.clear()
        self._server = grpc.aio.server(
            options=[
                ("grpc.max_receive_message_length", -1),
                ("grpc.max_send_message_length", -1),
            ]
        )
        for name, base, register in SERVICES:
            service = base()
            for method in [key for key in vars(base) if key[0].isupper()]:
                setattr(service, method, self._handler(f"/{name}/{method}"))
            register(service, self._server)
        behind = self._server.add_insecure_port("127.0.0.1:0")
        await self._server.start()
        self.port = await self._forwarder.open(self.port, behind)

    async def aclose(self) -> None:
        """Stop to listen and end every connection."""
        server, self._server = self._server, None
        if server is None:
            return
        self._closing.set()  # ends stalls
        await self._forwarder.aclose()
        await server.stop(None)

    async def __aenter__(self) -> Self:
        await self.open()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.aclose()

    def _handler(self, path: str) -> Callable[[Any, Any], Awaitable[Any]]:
        async def handle(request: Any, context: Any) -> Any:
            return await self._one(path, request, context)

        return handle

    async def _one(
        self,
        path: str,
        request: Any,
        context: Any,
    ) -> Any:
        size = request.ByteSize()
        peer = context.peer()
        fault = self.faults.next("POST", path)
        kind = fault.kind if fault is not None else ""
        if fault is not None and kind == "reset":
            return await self._cut(path, size, peer, context)
        if fault is not None and kind == "stall":
            with suppress(TimeoutError):
                await asyncio.wait_for(self._closing.wait(), fault.seconds)
        if fault is not None and kind == "status":
            return await self._fail(path, size, peer, context, fault)
        key = dict(context.invocation_metadata() or ()).get("api-key")
        if self.app.api_key is not None and key != self.app.api_key:
            denied = Fault("status", 401, text="Must provide an API key")
            return await self._fail(path, size, peer, context, denied)
        try:
            answer = await self._face.answer(path, request)
        except NotImplementedError:
            return await context.abort(
                grpc.StatusCode.UNIMPLEMENTED, f"no method {path}"
            )
        except Exception as exc:  # becomes the answer
            refusal = refusal_for(exc)
            refused = Fault("status", refusal.status, text=str(refusal))
            return await self._fail(path, size, peer, context, refused)
        if kind in {"late_reset", "half"}:
            return await self._cut(path, size, peer, context)
        self._note(path, size, 200, peer)
        return answer

    async def _fail(
        self,
        path: str,
        size: int,
        peer: str,
        context: Any,
        fault: Fault,
    ) -> Any:
        self._note(path, size, fault.status, peer)
        trailer = tuple((name.lower(), value) for name, value in fault.headers)
        code = _CODES.get(fault.status, grpc.StatusCode.INTERNAL)
        too_large = fault.status == 413
        text = f"Received message larger than max ({size})" if too_large else fault.text
        await context.abort(code, text, trailer)

    async def _cut(self, path: str, size: int, peer: str, context: Any) -> Any:
        self._note(path, size, 0, peer)
        self._forwarder.reset(peer)
        await context.abort(grpc.StatusCode.UNAVAILABLE, "the line was cut")

    def _note(self, path: str, size: int, status: int, peer: str) -> None:
        number = self._forwarder.number(peer)
        self.seen.append(Seen("POST", path, size, status, number))


class _Forwarder:
    """Carries bytes to the server behind; can cut the line of one client."""

    def __init__(self) -> None:
        self._server: asyncio.Server | None = None
        self._behind = 0
        # By the port that the server behind sees: the client's writer, a number.
        self._lines: dict[int, tuple[asyncio.StreamWriter, int]] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._count = 0

    async def open(self, port: int, behind: int) -> int:
        """Listen on *port*, or on a free one for 0; return which."""
        self._behind = behind
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", port)
        return int(self._server.sockets[0].getsockname()[1])

    async def aclose(self) -> None:
        """Stop, and cut every line."""
        server, self._server = self._server, None
        assert server is not None
        server.close()
        for writer, _ in list(self._lines.values()):
            writer.transport.abort()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await server.wait_closed()

    def number(self, peer: str) -> int:
        """Return the number of a client's connection; 0 when it has gone."""
        found = self._lines.get(int(peer.rpartition(":")[2]))
        return 0 if found is None else found[1]

    def reset(self, peer: str) -> None:
        """Cut the line that the server behind knows as *peer*."""
        found = self._lines.get(int(peer.rpartition(":")[2]))
        if found is not None:
            sock = found[0].get_extra_info("socket")
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _NO_LINGER)
            found[0].transport.abort()

    async def _serve(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        self._count += 1
        try:
            back, forth = await asyncio.open_connection("127.0.0.1", self._behind)
            port = forth.get_extra_info("sockname")[1]
            self._lines[port] = writer, self._count
            try:
                await asyncio.gather(_carry(reader, forth), _carry(back, writer))
            finally:
                del self._lines[port]
        finally:
            self._tasks.discard(task)


async def _carry(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Carry bytes until either side ends, and then end the other."""
    with suppress(ConnectionError):
        while data := await reader.read(256 * 1024):
            writer.write(data)
            await writer.drain()
    with suppress(ConnectionError, RuntimeError):
        writer.close()
