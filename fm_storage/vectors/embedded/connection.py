"""One connection to the embedded engine: frames out and in, nothing else."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Mapping
from typing import Any, cast

import orjson

from fm_storage.vectors.embedded.frames import (
    HEADER,
    MAGIC,
    MAX_REPLY,
)

_DECODE_IN_THREAD = 256 * 1024


class Gone(Exception):
    """The connection ended before the answer came."""


_LINES_PAUSE = not (
    (3, 12) <= sys.version_info < (3, 12, 9) or (3, 13) <= sys.version_info < (3, 13, 2)
)
"""Whether ``writelines()`` calls ``pause_writing()`` (CVE-2024-12254 of CPython)."""


class EngineConnection(asyncio.Protocol):
    """One connection: requests by number, answers as futures."""

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._buffer = bytearray()
        self.waiting: dict[int, asyncio.Future[tuple[bytes, int]]] = {}
        self._next = 0
        self.may_write = asyncio.Event()
        self.may_write.set()
        self.closed: asyncio.Future[None] = self._loop.create_future()
        self.transport: asyncio.Transport
        self.pid: int | None = None
        self.identity = ""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Remember where to write."""
        # A stream; uvloop's are no subclass of asyncio.Transport.
        self.transport = cast("asyncio.Transport", transport)

    def pause_writing(self) -> None:
        """Hold requests back: the engine reads too slowly."""
        self.may_write.clear()

    def resume_writing(self) -> None:
        """Let requests through again."""
        self.may_write.set()

    def data_received(self, data: bytes) -> None:
        """Give every whole answer to the call that waits for it."""
        if self._buffer:
            self._buffer += data
        whole = self._buffer or data
        begin = 0
        while len(whole) - begin >= HEADER.size:
            magic, number, meta, raw = HEADER.unpack_from(whole, begin)
            if magic != MAGIC or meta + raw > MAX_REPLY:
                self.transport.abort()
                return
            end = begin + HEADER.size + meta + raw
            if len(whole) < end:
                break
            body = bytes(memoryview(whole)[begin + HEADER.size : end])
            begin = end
            waiter = self.waiting.pop(number, None)
            if waiter is not None and not waiter.done():
                waiter.set_result((body, meta))
        if whole is data:
            self._buffer += data[begin:]
        else:
            del self._buffer[:begin]

    def connection_lost(self, exc: Exception | None) -> None:
        """Fail every call that waits for an answer."""
        del exc
        if not self.closed.done():
            self.closed.set_result(None)
        self.may_write.set()
        waiting, self.waiting = self.waiting, {}
        for waiter in waiting.values():
            if not waiter.done():
                waiter.set_exception(Gone())

    @property
    def open(self) -> bool:
        """Whether requests may be sent."""
        return not self.closed.done()

    async def call(
        self, request: Mapping[str, Any], raw: bytes = b""
    ) -> tuple[Any, memoryview]:
        """Send a request; return its answer.

        If cancelled, the engine may still carry the request out.
        """
        if not self.open:
            raise Gone
        self._next = (self._next + 1) % 2**32
        number = self._next
        waiter: asyncio.Future[tuple[bytes, int]] = self._loop.create_future()
        self.waiting[number] = waiter
        try:
            if not self.may_write.is_set():
                await self.may_write.wait()
            if not self.open:
                raise Gone
            text = orjson.dumps(request)
            header = HEADER.pack(MAGIC, number, len(text), len(raw))
            # Nothing empty: since 3.12 asyncio keeps an empty part that comes last, and
            # calls itself for it, without an end and at full speed.
            parts = (header, text, raw) if raw else (header, text)
            if _LINES_PAUSE:
                self.transport.writelines(parts)
            else:
                for part in parts:
                    self.transport.write(part)
            body, meta = await waiter
        finally:
            self.waiting.pop(number, None)
        if meta > _DECODE_IN_THREAD:
            answer = await asyncio.to_thread(orjson.loads, memoryview(body)[:meta])
        else:
            answer = orjson.loads(memoryview(body)[:meta])
        return answer, memoryview(body)[meta:]
