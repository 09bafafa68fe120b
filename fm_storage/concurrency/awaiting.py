"""Which tasks a task waits for: what asyncio knows, and does not tell before 3.14."""

from __future__ import annotations

import asyncio
import inspect
from typing import Any


def awaited_by(task: asyncio.Task[Any] | None) -> set[asyncio.Task[Any]]:
    """Return the tasks without which *task* does not go on, theirs as well.

    It knows ``await task``, ``gather()``, and the end of a ``TaskGroup``. What waits in
    another way, or for the first of several, waits for none.
    """
    found: set[asyncio.Task[Any]] = set()
    ahead = [task]
    while ahead:
        each = ahead.pop()
        new = _directly(each) - found if each is not None else set()
        found |= new
        ahead.extend(new)
    return found


def _directly(task: asyncio.Task[Any]) -> set[asyncio.Task[Any]]:
    waiter: Any = getattr(task, "_fut_waiter", None)
    if isinstance(waiter, asyncio.Task):
        return {waiter}
    children = getattr(waiter, "_children", None)  # of gather()
    if children is None:
        inner: Any = task.get_coro()
        while inspect.iscoroutine(getattr(inner, "cr_await", None)):
            inner = inner.cr_await
        frame = getattr(inner, "cr_frame", None)
        group = frame.f_locals.get("self") if frame is not None else None
        is_group = isinstance(group, asyncio.TaskGroup)
        children = vars(group)["_tasks"] if is_group else ()
    return {each for each in children if isinstance(each, asyncio.Task)}
