"""The application's hooks before and after an error is stored.

One that fails is logged and passed over, so that no error is lost by it.
"""

from __future__ import annotations

import inspect
import logging
from collections.abc import Awaitable, Callable
from dataclasses import replace

from fm_storage.catalog.record.drafts import Draft
from fm_storage.catalog.record.row import Recorded
from fm_storage.repositories import ErrorEntry

logger = logging.getLogger("fm_storage.catalog")

PreHook = Callable[[ErrorEntry], "ErrorEntry | Awaitable[ErrorEntry | None] | None"]
PostHook = Callable[[Recorded], "Awaitable[object] | object"]


class RecordHooks:
    """The hooks of one manager, in the order in which they were added."""

    def __init__(self) -> None:
        self.before: list[PreHook] = []
        self.after: list[PostHook] = []

    async def changed(self, draft: Draft) -> Draft:
        """Return *draft* as the hooks before recording leave it."""
        if not self.before:
            return draft
        entry = replace(draft.entry)  # the caller's own stays as it is
        for hook in self.before:
            try:
                result = hook(entry)
                if inspect.isawaitable(result):
                    result = await result
            except Exception:  # a hook's fault must not lose an error
                logger.exception("a hook before recording failed; going on without it")
                continue
            entry = result if isinstance(result, ErrorEntry) else entry
        return draft.replaced(entry)

    async def notify(self, recorded: Recorded) -> None:
        """Call the hooks after recording."""
        for hook in self.after:
            try:
                result = hook(recorded)
                if inspect.isawaitable(result):
                    await result
            except Exception:  # a hook's fault is not the recorder's
                logger.exception("a hook after recording failed")
