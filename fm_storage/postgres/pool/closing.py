"""How a pool ends: bounded, naming who still holds a connection."""

from __future__ import annotations

from time import monotonic
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from fm_storage.postgres.pool.core import PoolCore
    from fm_storage.postgres.pool.maintenance import Maintenance

_LAST_MOMENT = 0.3


async def close(core: PoolCore, maintenance: Maintenance, limit: float) -> None:
    """Close all connections within *limit* seconds and a moment."""
    deadline = monotonic() + limit
    core.begin_closing()
    if not await core.wait_emptied(max(0.0, deadline - monotonic())):
        core.cut_borrowers()
    await maintenance.cancel(_LAST_MOMENT)
    core.end()
