"""ConfigManager, StorageManager and ErrorManager opened together.

An application with a start-up of its own needs only ``StorageManager``.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Self

from fm_storage.catalog import ErrorManager, spool_failed_start
from fm_storage.concurrency.lifecycle import Lifecycle
from fm_storage.errors import StorageClosed
from fm_storage.manager.storage import StorageManager

if TYPE_CHECKING:
    from fm_storage.config import ConfigManager
    from fm_storage.vectors import Vectorizer


class IntegratedManager(Lifecycle):
    """Open ConfigManager → StorageManager → ErrorManager; close in reverse.

    Await it, or use it in ``async with``. The settings come from *config_manager*
    alone, which is never closed: who handed it in owns it.

    A start that fails is itself catalogued, by the next one that succeeds; what
    goes wrong inside the storage (deliveries, reaps, reconnections) is catalogued
    as it happens.

    Attributes:
        config: The configuration manager that was given.
        storage: The storage manager, open.
        errors: The error manager, open.
    """

    def __init__(
        self, config_manager: ConfigManager, *, vectorizer: Vectorizer | None = None
    ) -> None:
        self.config = config_manager
        self.storage = StorageManager.from_config_manager(config_manager)
        self.errors = ErrorManager(self.storage, vectorizer)

    async def _opened(self) -> Self:
        try:
            await self.storage
        except Exception as exc:  # spooled, and passed on
            if not isinstance(exc, StorageClosed):
                # On disk, from where the next start that succeeds records it.
                await asyncio.to_thread(spool_failed_start, self.storage.config, exc)
            raise
        try:
            await self.errors
            if self.storage.config.postgres is not None:
                self.errors.watch_internal()
        except BaseException:  # close what was opened, then pass it on
            await self.storage.aclose()
            raise
        return self

    async def __aexit__(self, *exc: object) -> None:
        """Close both; what fails is logged, and hides nothing that ended the block."""
        try:
            await self.errors.aclose()
        finally:
            await self.storage.__aexit__(*exc)

    async def aclose(self) -> None:
        """Close the error manager, then the storage manager; twice is fine.

        Raises:
            ExceptionGroup: What failed in hooks or parts, together.
        """
        try:
            await self.errors.aclose()
        finally:
            await self.storage.aclose()
