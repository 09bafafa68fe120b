"""The caller's own code in a COPY: what it raises is passed through the driver."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterable, AsyncIterator, Iterator
from contextlib import contextmanager
from typing import TypeVar

from fm_storage.postgres.errors import FromCaller

T = TypeVar("T")


@contextmanager
def callers_code() -> Iterator[None]:
    """Carry what the block raises through the driver, as it was raised.

    Not a cancellation of the running task, which the driver must see.
    """
    try:
        yield
    except StopAsyncIteration:
        raise
    except BaseException as exc:
        task = asyncio.current_task()
        if isinstance(exc, asyncio.CancelledError) and task and task.cancelling():
            raise
        raise FromCaller(exc) from None


async def from_caller(items: AsyncIterable[T]) -> AsyncIterator[T]:
    """Yield *items*, whose source is the caller's code."""
    source = aiter(items)
    while True:
        try:
            with callers_code():
                item = await anext(source)
        except StopAsyncIteration:
            return
        yield item
