"""Log files into the catalogue: one batch is read while the one before is stored."""

from __future__ import annotations

import asyncio
import os
import re
import time
from collections.abc import (
    AsyncGenerator,
    AsyncIterable,
    AsyncIterator,
    Awaitable,
    Callable,
    Iterable,
)
from contextlib import aclosing
from datetime import UTC, tzinfo
from functools import partial
from typing import TYPE_CHECKING, Any, TypeAlias

from fm_storage.catalog.logs.entry import IngestReport
from fm_storage.catalog.logs.opening import open_log, source_name
from fm_storage.catalog.logs.reading import LogReader
from fm_storage.catalog.logs.reading_process import (
    ReadingProcess,
    Task,
    worth_a_process,
)
from fm_storage.catalog.record.frames import own_names
from fm_storage.catalog.record.redact import repair_text
from fm_storage.catalog.record.row import columns_of, line_of
from fm_storage.catalog.record.store import write_each
from fm_storage.concurrency.shield import shielded
from fm_storage.errors import InvalidRecord, StorageError
from fm_storage.repositories import Severity

if TYPE_CHECKING:
    from fm_storage._typing import Progress
    from fm_storage.catalog.record.row import Prepared

Log: TypeAlias = (
    "str | os.PathLike[str] | Iterable[str | bytes] | AsyncIterable[str | bytes]"
)
WriteColumns = Callable[[list[list[Any]]], Awaitable[int]]

ASYNC_CHUNK = 1000
_SAMPLES = 5


async def ingest_log(
    log: Log,
    write: WriteColumns,
    *,
    source: str | None = None,
    module: str | None = None,
    least: Severity | None = None,
    zone: tzinfo = UTC,
    format: re.Pattern[str] | None = None,
    batch_size: int = 1000,
    progress: Progress | None = None,
) -> IngestReport:
    """Store the entries of a log; see ``ErrorManager.ingest()``."""
    if source is None:
        source = source_name(log) if isinstance(log, str | os.PathLike) else "lines"
    name, _ = repair_text(source)
    reader_of = partial(
        LogReader, source=name, module=module, least=least, zone=zone, format=format
    )
    if isinstance(log, AsyncIterable):
        reader = reader_of(())
        return await _pump(
            _collected(log, reader, batch_size), reader.report, write, progress, None
        )
    if isinstance(log, str | os.PathLike):
        opened = await asyncio.to_thread(open_log, log)
        try:
            if worth_a_process(opened.weight, zone):
                task = Task(
                    opened.file.fileno(),
                    name,
                    module,
                    least,
                    zone,
                    opened.modified,
                    batch_size,
                    format,
                    own_names(),
                )
                return await _pump_process(task, write, progress, opened.size)
            reader = reader_of(opened.lines(), now=opened.modified)
            report = await _pump_here(
                reader, batch_size, write, progress, total=opened.size
            )
            report.incomplete = opened.broken
            return report
        finally:
            # Cancelled, a thread may still be reading: close behind it.
            await asyncio.to_thread(opened.close)
    return await _pump_here(reader_of(map(_as_bytes, log)), batch_size, write, progress)


async def _pump_here(
    reader: LogReader,
    size: int,
    write: WriteColumns,
    progress: Progress | None,
    *,
    total: int | None = None,
) -> IngestReport:
    """Store what a thread of this process reads."""
    batches = reader.batches(size)

    def following() -> list[list[Any]] | None:
        batch = next(batches, None)
        return None if batch is None else columns_of(batch)

    async with aclosing(_ahead(following)) as columns:
        return await _pump(columns, reader.report, write, progress, total)


async def _pump_process(
    task: Task, write: WriteColumns, progress: Progress | None, total: int | None
) -> IngestReport:
    """Store what another process reads; it ends with this call, however that ends."""
    child = await asyncio.to_thread(ReadingProcess, task)
    try:
        async with aclosing(_ahead(child.next)) as columns:
            return await _pump(columns, child.report, write, progress, total)
    finally:
        await shielded(lambda: asyncio.to_thread(child.close))


async def _pump(
    batches: AsyncIterator[list[list[Any]]],
    report: IngestReport,
    write: WriteColumns,
    progress: Progress | None,
    total: int | None,
) -> IngestReport:
    """Store one batch while the next is being read; report after each."""
    begin = time.perf_counter()
    writing: asyncio.Task[int] | None = None

    def store(columns: list[list[Any]]) -> Awaitable[int]:
        async def refuse(at: int, exc: StorageError) -> None:
            report.refused += 1
            if len(report.refusals) < _SAMPLES:
                report.refusals.append(f"line {line_of(columns, at)}: {exc}")

        return write_each(
            len(columns[0]),
            lambda part: write([column[part] for column in columns]),
            refuse,
        )

    async def settle() -> None:
        nonlocal writing
        if writing is not None:
            task, writing = writing, None
            report.added += await task
            report.seconds = time.perf_counter() - begin
            if progress is not None:
                progress(report.bytes, total)

    try:
        async for columns in batches:
            await settle()
            writing = asyncio.ensure_future(store(columns))
        await settle()
    finally:
        if writing is not None and not writing.done():
            # Cancelled while a batch is on its way: let the server decide, and
            # leave no task behind. What was stored before stays stored.
            writing.cancel()
            await asyncio.gather(writing, return_exceptions=True)
        report.seconds = time.perf_counter() - begin
    if progress is not None:
        progress(report.bytes, total)
    return report


async def _ahead(
    following: Callable[[], list[list[Any]] | None],
) -> AsyncGenerator[list[list[Any]]]:
    """Call *following* in a thread, a batch ahead, until it gives None.

    While one batch is being stored, the next lies ready and the one behind it is
    being read: otherwise whichever is faster waits for the other at each batch.
    Closed early, the thread ends with the batch that it is at.
    """
    reading = asyncio.create_task(asyncio.to_thread(following))
    try:
        while (columns := await reading) is not None:
            reading = asyncio.create_task(asyncio.to_thread(following))
            yield columns
    finally:
        reading.cancel()
        await asyncio.gather(reading, return_exceptions=True)


async def _collected(
    lines: AsyncIterable[str | bytes], reader: LogReader, size: int
) -> AsyncIterator[list[list[Any]]]:
    """Parse lines as they arrive from an asynchronous source."""
    batch: list[Prepared] = []
    waiting: list[bytes] = []

    def parse(chunk: list[bytes], *, last: bool) -> list[Prepared]:
        return list(reader.feed(chunk, last=last))

    async for line in lines:
        waiting.append(_as_bytes(line))
        if len(waiting) >= ASYNC_CHUNK:
            batch += await asyncio.to_thread(parse, waiting, last=False)
            waiting = []
            if len(batch) >= size:
                yield columns_of(batch)
                batch = []
    batch += await asyncio.to_thread(parse, waiting, last=True)
    if batch:
        yield columns_of(batch)


def _as_bytes(line: str | bytes) -> bytes:
    if not isinstance(line, str | bytes):
        raise InvalidRecord(f"log: a line is a {type(line).__name__}; give text")
    data = line.encode("utf-8", "surrogateescape") if isinstance(line, str) else line
    return data if data.endswith(b"\n") else data + b"\n"
