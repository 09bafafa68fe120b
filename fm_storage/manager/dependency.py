"""The storage manager of a web application, for its handlers."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from fm_storage.errors import ConfigurationInvalid
from fm_storage.hooks.hosts import STATE
from fm_storage.manager.storage import StorageManager

if TYPE_CHECKING:
    from starlette.requests import HTTPConnection
else:
    try:  # FastAPI reads the annotation; any other caller does not need it
        from starlette.requests import HTTPConnection
    except ImportError:
        HTTPConnection = Any


def storage_of(connection: HTTPConnection) -> StorageManager:
    """Return the manager that the application of this request opened.

    A dependency of FastAPI: ``storage: Annotated[StorageManager,
    Depends(storage_of)]``; it works in WebSocket handlers as well, and as a plain
    function with a request of Starlette. The application has its manager from
    ``FastAPI(lifespan=storage.lifespan)``, from ``storage.asgi(app)``, or from
    ``app.state.fm_storage = storage``.

    Raises:
        ConfigurationInvalid: The application has no manager.
    """
    scope = connection.scope
    found = (scope.get("state") or {}).get(STATE)
    if found is None:
        found = getattr(getattr(scope.get("app"), "state", None), STATE, None)
    if not isinstance(found, StorageManager):
        raise ConfigurationInvalid(
            f"app.state.{STATE}",
            "is not set; open the manager with FastAPI(lifespan=storage.lifespan), or "
            f"set app.state.{STATE} = storage in a lifespan of your own",
        )
    return found
