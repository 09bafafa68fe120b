"""Recording of what a block, a function or a web application raises.

Every exception is let through.
"""

from __future__ import annotations

import functools
import inspect
import logging
from collections.abc import Awaitable, Callable, Mapping, MutableMapping
from typing import TYPE_CHECKING, Any, Protocol, Self, TypeVar, cast

if TYPE_CHECKING:
    from types import TracebackType

    from fm_storage.catalog.record.row import Recorded

logger = logging.getLogger("fm_storage.catalog")

Function = TypeVar("Function", bound=Callable[..., Any])
Scope = MutableMapping[str, Any]
AsgiCall = Callable[..., Awaitable[Any]]

_SEEN = "__fm_storage_recorded__"


def _is_new(exc: BaseException) -> bool:
    """Return whether no capture has recorded the error *exc* yet, and mark it."""
    if not isinstance(exc, Exception | BaseExceptionGroup):
        return False  # cancellation, KeyboardInterrupt, SystemExit, GeneratorExit
    if isinstance(exc, BaseExceptionGroup) and exc.split(Exception)[0] is None:
        return False
    if getattr(exc, _SEEN, False):
        return False
    try:
        setattr(exc, _SEEN, True)
    except Exception:  # slots, or a hostile __setattr__
        logger.debug("%s cannot be marked as recorded", type(exc))
    return True


class Capture:
    """An async context manager and a decorator; see ``ErrorManager.capture()``.

    One object may be entered many times, also at once.

    Attributes:
        recorded: What became of the latest exception of a block; None if there
            was none or it could not be recorded.
    """

    def __init__(
        self,
        record: Callable[[BaseException], Awaitable[Recorded]],
        hand_in: Callable[[BaseException], None],
    ) -> None:
        self._record = record
        self._hand_in = hand_in
        self.recorded: Recorded | None = None

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if exc is None or not _is_new(exc):
            return
        try:
            self.recorded = await self._record(exc)
        except Exception:  # the block's own error goes on
            logger.exception("an error could not be recorded")

    def __call__(self, function: Function) -> Function:
        """Wrap *function*: coroutine, asynchronous generator, or plain function."""
        if inspect.iscoroutinefunction(function):

            @functools.wraps(function)
            async def in_loop(*args: Any, **kwargs: Any) -> Any:
                async with self:
                    return await function(*args, **kwargs)

            return cast("Function", in_loop)
        if inspect.isasyncgenfunction(function):

            @functools.wraps(function)
            async def generating(*args: Any, **kwargs: Any) -> Any:
                async with self:
                    async for item in function(*args, **kwargs):
                        yield item

            return cast("Function", generating)

        @functools.wraps(function)
        def plain(*args: Any, **kwargs: Any) -> Any:
            try:
                return function(*args, **kwargs)
            except BaseException as exc:  # seen, and passed on
                if _is_new(exc):
                    try:
                        self._hand_in(exc)
                    except Exception:  # the function's own error goes on
                        logger.exception("an error could not be recorded")
                raise

        return cast("Function", plain)


class Recording(Protocol):
    """What the middleware needs of an error manager."""

    async def record(
        self,
        error: BaseException,
        /,
        *,
        module: str | None = None,
        context: Mapping[str, Any] | None = None,
    ) -> Recorded:
        """Store an exception."""
        ...


class CatalogMiddleware:
    """ASGI middleware that records what an application raises, and re-raises it.

    Method, path, route and client go into the context; headers, bodies and query
    strings, where secrets live, do not. Works with any ASGI framework::

        app.add_middleware(CatalogMiddleware, errors=lambda: app.state.errors)

    Args:
        app: The application below.
        errors: The error manager, or a function that gives it at each request
            (it is made in the application's lifespan, after the middleware).
        module: Module of the entries; by default the one that raised.
    """

    def __init__(
        self,
        app: AsgiCall,
        *,
        errors: Recording | Callable[[], Recording],
        module: str | None = None,
    ) -> None:
        self._app = app
        self._errors = errors
        self._module = module

    async def __call__(self, scope: Scope, receive: AsgiCall, send: AsgiCall) -> None:
        """Serve one request, connection or lifespan."""
        if scope["type"] not in {"http", "websocket"}:
            await self._app(scope, receive, send)
            return
        try:
            await self._app(scope, receive, send)
        except BaseException as exc:  # seen, and passed on
            if _is_new(exc):
                await self._record(exc, scope)
            raise

    async def _record(self, exc: BaseException, scope: Scope) -> None:
        try:
            errors = self._errors if hasattr(self._errors, "record") else self._errors()
            await errors.record(exc, module=self._module, context=_context(scope))
        except Exception:  # the request's own error goes on
            logger.exception("an error could not be recorded")


def _context(scope: Scope) -> dict[str, Any]:
    client = scope.get("client")
    route = getattr(scope.get("route"), "path", None)
    found = {
        "method": scope.get("method"),
        "path": scope.get("path"),
        "route": route,
        "client": client[0] if client else None,
        "http_version": scope.get("http_version"),
        "type": scope["type"],
    }
    return {"request": {key: value for key, value in found.items() if value}}
