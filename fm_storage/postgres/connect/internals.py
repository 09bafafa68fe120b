"""What asyncpg does not offer publicly, one function for each use.

asyncpg is pinned below 0.33 for this module and for ``connection/driver.py``,
the only ones that use its private members; ``test_postgres_driver.py`` holds both.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeAlias

import asyncpg
from asyncpg.protocol import NO_TIMEOUT

from fm_storage.concurrency.shield import consume, wait_done
from fm_storage.postgres.errors import FromCaller

if TYPE_CHECKING:
    from collections.abc import (
        AsyncIterator,
        Awaitable,
        Callable,
        Iterable,
        Iterator,
        Sequence,
    )

    from fm_storage.postgres.connect.composites import Composite

    _Base: TypeAlias = asyncpg.Connection[Any]
else:
    _Base = asyncpg.Connection

FIRST_OWN_OID = 16_384
"""Numbers of types below are the server's own."""
_SYNC = b"S\0\0\0\4"
_CANCELLED_WITHIN = 1.0


class DriverConnection(_Base):
    """A connection that remembers what no reset undoes, and knows registered types.

    Attributes:
        changed: Whether a borrower has set what no reset undoes.
        registered: Types of the application's. One is installed when a statement first
            meets it, by its name: also after it was dropped and made again.
    """

    __slots__ = ("changed", "registered")

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self.changed = False
        self.registered: Sequence[Composite] = ()

    async def _introspect_types(self, *args: Any) -> Any:
        inherited: Any = super()
        types, statement = await inherited._introspect_types(*args)
        names = {(found["ns"], found["name"]): found for found in types}
        for each in self.registered:
            if (found := names.get((each.schema, each.name))) is not None:
                each.install(codec_settings(self), types, found)
        return types, statement

    async def set_type_codec(self, *args: Any, **options: Any) -> None:
        """See asyncpg."""
        self.changed = True
        await super().set_type_codec(*args, **options)

    async def set_builtin_type_codec(self, *args: Any, **options: Any) -> None:
        """See asyncpg."""
        self.changed = True
        await super().set_builtin_type_codec(*args, **options)

    async def reset_type_codec(self, *args: Any, **options: Any) -> None:
        """See asyncpg."""
        self.changed = True
        await super().reset_type_codec(*args, **options)

    def add_query_logger(self, callback: Any) -> None:
        """See asyncpg."""
        self.changed = True
        super().add_query_logger(callback)

    def add_termination_listener(self, callback: Any) -> None:
        """See asyncpg."""
        self.changed = True
        super().add_termination_listener(callback)


def register_types(raw: Any, types: Sequence[Composite]) -> None:
    """Let *raw* read and write *types* as they are registered."""
    raw.registered = types


def is_changed(raw: Any) -> bool:
    """Whether codecs, loggers or listeners were set that no reset undoes."""
    return getattr(raw, "changed", False)


def mark_unchanged(raw: Any) -> None:
    """Take what is set now for what belongs there."""
    raw.changed = False


def codec_settings(raw: Any) -> Any:
    """Return the registry of codecs: ``set_type_codec()`` needs round trips."""
    return raw._protocol.get_settings()


def use_statement_cache(raw: Any, size: int) -> None:
    """Set the size of the statement cache, which is fixed at connect otherwise."""
    raw._stmt_cache.set_max_size(size)
    raw._stmt_cache_enabled = size > 0


def forget_statements(raw: Any) -> None:
    """Drop the prepared statements; they are made again when needed."""
    if not raw.is_closed():
        raw._drop_local_statement_cache()


def prepared_count(raw: Any) -> int:
    """Return how many statements the driver keeps prepared."""
    return len(raw._stmt_cache)


def forget_types(raw: Any) -> None:
    """Drop what is known of the users' types; they are looked up when needed."""
    if not raw.is_closed():
        raw._drop_local_type_cache()


def socket_of(raw: Any) -> Any:
    """Return the socket, or None."""
    return raw._transport.get_extra_info("socket")


def server_of(raw: Any) -> dict[str, Any]:
    """Return the server's address in the terms of OpenTelemetry."""
    database, address = raw._params.database, raw._addr
    found = {"db.namespace": database} if database else {}
    if isinstance(address, tuple):
        found["server.address"], found["server.port"] = address[:2]
    elif address:
        found["server.address"] = address
    return found


# -- the state of a connection between two statements ------------------------


async def wait_for_cancellation(raw: Any, timeout: float) -> None:
    """Wait until the server has confirmed a cancellation.

    Before that the transaction status is that of the statement before.
    """
    await raw._protocol._wait_for_cancellation(timeout)


def forget_session(raw: Any) -> None:
    """Drop the driver's own transaction and listeners, as its pool does."""
    raw._top_xact = None
    raw._listeners.clear()
    raw._log_listeners.clear()


def abandon(raw: Any) -> None:
    """Mark *raw* as closed without I/O, or its finaliser would send a goodbye."""
    raw._aborted = True


def set_listener(raw: Any, channel: str, callback: Callable[..., None] | None) -> None:
    """Call *callback* on notifications; ``add_listener()`` has no deadline."""
    if callback is None:
        raw._listeners.pop(channel, None)
    else:
        raw._listeners[channel] = {_Callback(callback)}


@dataclass(frozen=True, slots=True, eq=False)
class _Callback:
    """A listener in the shape that the driver keeps them."""

    cb: Callable[..., None]
    is_async: bool = False


class _Tap:
    """Stands before the driver's protocol until ``stop()``, and sees what arrives."""

    def __init__(self, raw: Any) -> None:
        self._transport = raw._transport
        self._protocol = self._transport.get_protocol()
        self.pause_writing = self._protocol.pause_writing
        self.resume_writing = self._protocol.resume_writing
        self.connection_lost = self._protocol.connection_lost
        self._transport.set_protocol(self)

    def look(self, data: bytes) -> None:
        """Look at what arrived, before the driver does."""

    def data_received(self, data: bytes) -> None:
        """See asyncio."""
        self.look(data)
        self._protocol.data_received(data)

    def eof_received(self) -> bool | None:
        """See asyncio."""
        answer: bool | None = self._protocol.eof_received()
        return answer

    def stop(self) -> None:
        """Leave the connection to the driver again."""
        if self._transport.get_protocol() is self:
            self._transport.set_protocol(self._protocol)


class EndWatch(_Tap):
    """Hears why the server ends a connection on which no statement runs.

    The driver drops that message.

    Attributes:
        error: What the server reported; None if nothing.
    """

    def __init__(self, raw: Any, is_idle: Callable[[], bool]) -> None:
        self.error: asyncpg.PostgresError | None = None
        self._is_idle = is_idle
        super().__init__(raw)

    def look(self, data: bytes) -> None:
        """Note an error that arrives between two statements."""
        if self._is_idle() and data[:1] == b"E":
            fields = bytes(data[5:]).split(b"\0")
            found = {chr(each[0]): each[1:].decode() for each in fields if each}
            self.error = asyncpg.PostgresError.new(found)


class _Refusal(_Tap):
    """Sees whether the server has refused what is still being sent.

    Attributes:
        whole: Whether it has, and is ready for the next statement.
    """

    def __init__(self, raw: Any) -> None:
        self.whole = self._begun = False
        self._rest = b""
        super().__init__(raw)

    def look(self, data: bytes) -> None:
        """Note an error, and the end of the exchange behind it."""
        self._rest += data
        while len(self._rest) > 4:
            kind, size = self._rest[:1], 1 + int.from_bytes(self._rest[1:5])
            if len(self._rest) < size:
                return
            self._begun = self._begun or kind == b"E"
            self.whole = self.whole or (self._begun and kind == b"Z")
            self._rest = self._rest[size:]


# -- statements ---------------------------------------------------------------


async def describe(
    raw: Any, sql: str, timeout: float | None, *, ignore_custom_codec: bool = False
) -> Any:
    """Prepare *sql* anew, to learn its types as they are now."""
    _protocol(raw)
    return await raw._get_statement(
        sql, timeout, use_cache=False, ignore_custom_codec=ignore_custom_codec
    )


def column_types(described: Any) -> list[Any]:
    """Return the types of the columns of a statement that ``describe()`` gave."""
    return [attribute.type for attribute in described._get_attributes()]


def parameter_types(described: Any) -> list[Any]:
    """Return the types of its parameters; none if they were forgotten since."""
    try:
        return list(described._get_parameters())
    except asyncpg.InternalClientError:
        return []


def _protocol(raw: Any) -> Any:
    if raw.is_closed():
        raise asyncpg.InterfaceError("connection is closed")
    return raw._protocol


async def copy_in(
    raw: Any,
    sql: str,
    *,
    blocks: AsyncIterable[bytes] | None = None,
    records: Any = None,
    described: Any = None,
    timeout: float | None,
) -> int:
    """Send *blocks*, or *records* as *described*; return the number of rows."""
    protocol = _protocol(raw)
    async with asyncio.timeout(timeout):
        await protocol._wait_for_cancellation()
        refusal = _Refusal(raw)

        async def wanted(items: AsyncIterable[Any]) -> AsyncIterator[Any]:
            async for item in items:
                if refusal.whole:  # the driver would read all of them first
                    return
                yield item

        if isinstance(records, AsyncIterable):
            records = wanted(records)
        try:
            tag: str = await protocol.copy_in(
                sql, blocks and wanted(blocks), None, records, described, NO_TIMEOUT
            )
        except BaseException:  # whatever ended it is raised again
            if refusal.whole and protocol._is_cancelling():
                # The driver waits for the end of an exchange that has ended.
                raw._transport.write(_SYNC)
            raise
        finally:
            refusal.stop()
    return _row_count(tag)


async def copy_out(
    raw: Any,
    sql: str,
    sink: Callable[[bytes], Awaitable[None]],
    timeout: float | None,
) -> int:
    """Give what the server sends to *sink*; return the number of rows.

    In a task that nothing interrupts but in *sink*: the driver waits for ever for the
    end of what is interrupted when the server has sent everything.
    """
    failed: list[BaseException] = []
    broken = asyncio.Event()
    writing = False

    async def guarded(block: bytes) -> None:
        nonlocal writing
        if not failed:
            writing = True
            try:
                await sink(block)
            except BaseException as exc:  # raised below
                failed.append(exc)
                broken.set()
            writing = False

    copying = asyncio.ensure_future(_protocol(raw).copy_out(sql, guarded, NO_TIMEOUT))
    copying.add_done_callback(consume)
    copying.add_done_callback(lambda _: broken.set())
    try:
        async with asyncio.timeout(timeout):
            await broken.wait()
    except (asyncio.CancelledError, TimeoutError) as exc:
        failed.insert(0, exc)
        if writing:
            copying.cancel()
    if failed:
        raise await _stop(raw, copying) or failed[0]
    return _row_count(copying.result())


async def execute_many(
    raw: Any, sql: str, rows: Iterable[Sequence[Any]], *, timeout: float | None
) -> None:
    """Run *sql* for each of *rows*, in a task that nothing interrupts while it sends.

    The driver loses a cancellation, or another BaseException, between two rows, and
    waits for the end of what it has not sent. So it is stopped by the next row.
    """
    given = _Rows(rows)
    sending = asyncio.ensure_future(raw.executemany(sql, given, timeout=timeout))
    sending.add_done_callback(consume)
    try:
        await asyncio.wait({sending})
    except asyncio.CancelledError:
        given.stopped = True
        if given.exhausted:
            sending.cancel()
        await _stop(raw, sending)
        raise
    failure = sending.exception()
    if failure is not None:
        vars(failure)["rows_taken"] = given.taken
        raise failure


async def _stop(raw: Any, work: asyncio.Future[Any]) -> asyncio.CancelledError | None:
    """Ask the server to end *work*; if it has not ended in a moment, close *raw*.

    Returns:
        A cancellation that arrived meanwhile.
    """
    asked = asyncio.get_running_loop().create_future()
    raw._cancel_current_command(asked)
    first = await wait_done(asked, _CANCELLED_WITHIN)
    second = await wait_done(work, _CANCELLED_WITHIN)
    if not work.done():
        raw.terminate()
    return first or second


def _row_count(tag: str) -> int:
    return int(tag.rpartition(" ")[2])


class _Rows:
    """Rows for the driver.

    Attributes:
        taken: How many it has taken, of which the last may be what it refuses.
        exhausted: Whether it has taken all of them.
        stopped: Whether it gets no more.
    """

    def __init__(self, rows: Iterable[Sequence[Any]]) -> None:
        self._rows = rows
        self.taken = 0
        self.exhausted = self.stopped = False

    def __iter__(self) -> Iterator[Sequence[Any]]:
        source = iter(self._rows)
        while not self.stopped:
            try:
                row = next(source)
            except StopIteration:
                self.exhausted = True
                return
            except BaseException as exc:
                raise FromCaller(exc) from None
            self.taken += 1
            yield row
        raise FromCaller(asyncio.CancelledError())


async def close_portal(raw: Any, cursor: Any, timeout: float | None) -> None:
    """Close *cursor*, unless the end of its transaction did."""
    if raw.is_in_transaction() and cursor._portal_name:
        await cursor._close_portal(timeout)
