"""Time-ordered identifiers (UUID version 7), which Python 3.11 does not make.

Keys in order of time keep a b-tree's newest page hot; random ones touch every
page.
"""

from __future__ import annotations

import os
import threading
import time
from uuid import UUID

_VERSION = 0x7 << 76
_VARIANT = 0x2 << 62
_RANDOM = (1 << 62) - 1

_lock = threading.Lock()
_last = [0]  # changed only under _lock


def uuid7() -> UUID:
    """Return a new identifier, greater than every one made before in this process.

    Milliseconds since 1970 (48 bits), their fraction (12 bits), chance (62 bits).

    See https://www.rfc-editor.org/rfc/rfc9562#name-uuid-version-7.
    """
    milliseconds, rest = divmod(time.time_ns(), 1_000_000)
    tick = milliseconds << 12 | (rest << 12) // 1_000_000
    with _lock:
        # A clock that stands still or steps back continues from the last tick.
        _last[0] = tick = max(tick, _last[0] + 1)
    chance = int.from_bytes(os.urandom(8)) & _RANDOM
    return UUID(
        int=(tick >> 12) << 80 | _VERSION | (tick & 0xFFF) << 64 | _VARIANT | chance
    )
