"""A small HTTP/1.1 server for the test double, with faults on real sockets.

Separate from the application, because resets, stalls and half-closed connections
happen below HTTP, where no ASGI server can be reached.
"""

from __future__ import annotations

import asyncio
import socket
import struct
from contextlib import suppress
from http import HTTPStatus
from typing import TYPE_CHECKING, Self
from urllib.parse import urlsplit

import orjson

from fm_storage.testing.app import QdrantApp
from fm_storage.testing.faults import Fault, Faults, Seen

if TYPE_CHECKING:
    from fm_storage.testing.grpc_server import QdrantGrpcServer

_NO_LINGER = struct.pack("ii", 1, 0)


class QdrantTestServer:
    """Serves a ``QdrantApp`` on 127.0.0.1, and misbehaves on request.

    ::

        async with QdrantTestServer() as server:
            store = QdrantStore(QdrantConfig(url=server.url))
            server.faults.add(Fault.too_many(retry_after=1))

    With ``grpc=True`` the same collections are served over gRPC too, with the same
    script of faults; ``QdrantConfig(url=server.url, prefer_grpc=True,
    grpc_port=server.grpc_port)`` leads there.

    Everything runs on the caller's event loop; closing ends every connection.

    Args:
        app: What to serve; an empty ``QdrantApp`` by default.
        port: Port to listen on; a free one by default.
        grpc: Serve gRPC as well, on a free port.

    Attributes:
        faults: The script of what goes wrong.
        seen: Every request that arrived.
    """

    def __init__(
        self, app: QdrantApp | None = None, *, port: int = 0, grpc: bool = False
    ) -> None:
        self.app = app or QdrantApp()
        self.faults = Faults()
        self.seen: list[Seen] = []
        self._port = port
        self._server: asyncio.Server | None = None
        self._connections: set[asyncio.StreamWriter] = set()
        self._tasks: set[asyncio.Task[None]] = set()
        self._closing = asyncio.Event()
        self._count = 0
        self._with_grpc = grpc
        self._grpc: QdrantGrpcServer | None = None

    @property
    def url(self) -> str:
        """Address for ``qdrant.url``."""
        return f"http://127.0.0.1:{self._port}"

    @property
    def grpc_port(self) -> int:
        """Port for ``qdrant.grpc_port``; 0 unless gRPC is served."""
        return 0 if self._grpc is None else self._grpc.port

    async def open(self) -> None:
        """Start to listen."""
        self._closing.clear()
        self.app.double.keep()
        if self._with_grpc:
            if self._grpc is None:
                from fm_storage.testing.grpc_server import (
                    QdrantGrpcServer,
                )

                self._grpc = QdrantGrpcServer(
                    self.app, faults=self.faults, seen=self.seen
                )
            await self._grpc.open()
        self._server = await asyncio.start_server(
            self._serve, "127.0.0.1", self._port, limit=1024 * 1024
        )
        self._port = self._server.sockets[0].getsockname()[1]

    async def aclose(self) -> None:
        """Stop to listen and end every connection; may be opened again."""
        server, self._server = self._server, None
        if server is None:
            return
        server.close()
        if self._grpc is not None:
            await self._grpc.aclose()
        for writer in list(self._connections):
            writer.transport.abort()
        self._closing.set()  # ends stalls
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await self.app.double.aclose()
        await server.wait_closed()

    async def __aenter__(self) -> Self:
        await self.open()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.aclose()

    async def _serve(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        self._connections.add(writer)
        self._count += 1
        number = self._count
        try:
            while await self._one(reader, writer, number):
                pass
        except (ConnectionError, asyncio.IncompleteReadError, TimeoutError):
            pass
        finally:
            self._tasks.discard(task)
            self._connections.discard(writer)
            with suppress(ConnectionError, RuntimeError):
                writer.close()

    async def _one(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, number: int
    ) -> bool:
        """Answer one request; False when the connection is done."""
        try:
            head = await reader.readuntil(b"\r\n\r\n")
        except asyncio.IncompleteReadError:
            return False
        lines = head.decode("latin-1").split("\r\n")
        method, target, _ = lines[0].split(" ", 2)
        headers = {
            name.strip().lower(): value.strip()
            for name, _, value in (line.partition(":") for line in lines[1:] if line)
        }
        body = await reader.readexactly(int(headers.get("content-length", "0")))
        path = urlsplit(target).path
        fault = self.faults.next(method, path)
        if fault is not None and fault.kind == "reset":
            self._note(method, path, body, 0, number)
            return self._reset(writer)
        if fault is not None and fault.kind == "stall":
            with suppress(TimeoutError):
                await asyncio.wait_for(self._closing.wait(), fault.seconds)
        if fault is not None and fault.kind == "status":
            status, given, answer = self._fault_answer(fault)
        else:
            status, given, answer = await self.app.handle(method, path, headers, body)
        if fault is not None and fault.kind == "late_reset":
            self._note(method, path, body, 0, number)
            return self._reset(writer)
        self._note(method, path, body, status, number)
        given = {**given, "content-length": str(len(answer))}
        top = f"HTTP/1.1 {status} {HTTPStatus(status).phrase}\r\n"
        top += "".join(f"{name}: {value}\r\n" for name, value in given.items())
        whole = top.encode("latin-1") + b"\r\n" + answer
        if fault is not None and fault.kind == "half":
            writer.write(whole[: len(whole) - len(answer) // 2 - 1])
            await writer.drain()
            return False
        writer.write(whole)
        await writer.drain()
        return headers.get("connection", "").lower() != "close"

    @staticmethod
    def _fault_answer(fault: Fault) -> tuple[int, dict[str, str], bytes]:
        return (
            fault.status,
            {"content-type": "application/json", **dict(fault.headers)},
            orjson.dumps({"status": {"error": fault.text}, "time": 0.0}),
        )

    @staticmethod
    def _reset(writer: asyncio.StreamWriter) -> bool:
        sock = writer.get_extra_info("socket")
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _NO_LINGER)
        writer.transport.abort()
        return False

    def _note(
        self, method: str, path: str, body: bytes, status: int, number: int
    ) -> None:
        self.seen.append(Seen(method, path, len(body), status, number))
