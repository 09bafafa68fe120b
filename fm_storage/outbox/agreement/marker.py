"""Which vector store belongs to which database, and whether either was restored.

Two records are compared before the first delivery, after each change of PostgreSQL's
timeline, and before the marker is written: PostgreSQL keeps the store's
identity, and the store keeps a marker of PostgreSQL (installation, system
identifier, timeline, position in the log, greatest version). A log that is
shorter than the marker says, another timeline or another system mean that
PostgreSQL was restored or replaced: versions already given out would be given
out again, and the store would refuse them. A store of another database is
refused, for repairing it would delete that database's points.

The marker is written at most once a second and when the queue has emptied; a
restore that falls into that second is found by ``verify()`` only.
"""

from __future__ import annotations

import asyncio
import enum
import time
from dataclasses import asdict, dataclass, fields
from typing import TYPE_CHECKING, Any

from fm_storage.errors import ConfigurationInvalid
from fm_storage.outbox.delivery.queue import TIMELINE
from fm_storage.postgres import Executor, Sql

if TYPE_CHECKING:
    from fm_storage.vectors import QdrantStore

_INTERVAL = 1.0

_BELIEVED = 2**52
"""A version that no database comes to: at a million writes a second it takes 142
years. A marker with it was written by another program."""

_POSITION = Sql(f"""
SELECT v.installation::text AS installation,
  c.system_identifier::text || '/' || d.oid::text AS system,
  {TIMELINE} AS timeline,
  (pg_current_wal_insert_lsn() - '0/0'::pg_lsn)::bigint AS log,
  s.last_value AS version, v.identity, v.location
FROM fm_storage.vector_store AS v, fm_storage.vector_version AS s,
  pg_control_system() AS c, pg_database AS d
WHERE d.datname = current_database()""")

_FRESH = Sql(
    "SELECT coalesce(attached_at > now() - interval '10 seconds', false) "
    "FROM fm_storage.vector_store"
)
_FIRST_MARKER = 2.0
"""Seconds in which a process that has made a store its database's writes the marker."""

_ADOPT = Sql("""
UPDATE fm_storage.vector_store
SET identity = $1, location = $2, attached_at = now()
WHERE identity IS NOT DISTINCT FROM $3""")


class Standing(enum.Enum):
    """What the comparison of the two records says."""

    FIRST = "first"
    KNOWN = "known"
    RESTORED = "restored"
    EMPTIED = "emptied"


@dataclass(frozen=True, slots=True)
class Position:
    """Where PostgreSQL is, as the marker keeps it."""

    installation: str
    system: str
    timeline: int
    log: int
    version: int

    def follows(self, marker: Position) -> bool:
        """Whether this server has gone on from *marker* without a restore."""
        return (
            self.system == marker.system
            and self.timeline == marker.timeline
            and self.log >= marker.log
            and self.version >= marker.version
        )


class Marker:
    """The two records, and the one rule for comparing them."""

    def __init__(self, executor: Executor, store: QdrantStore, location: str) -> None:
        self._executor = executor
        self._store = store
        self._location = location
        self._dirty = False
        self._saved = 0.0
        self._compared: int | None = None  # timeline, by compare()
        self.timeline: int | None = None  # the same, once what follows was done

    async def compare(self) -> tuple[Standing, Position | None]:
        """Compare both records; return what to do and the marker that was found.

        A store that is new, or that was emptied, is this database's from now on.
        A server that has gone over to another timeline since the last comparison
        counts as restored whatever the marker says: another process may have
        written it since, and this one's last deliveries may be unknown there.

        Raises:
            ConfigurationInvalid: The store belongs to another database, or the
                database to another store; nothing was changed.
        """
        standing, found, position, identity, known = await self._judged()
        if known != identity:
            await self._executor.execute(_ADOPT, identity, self._location, known)
        self._compared = position.timeline
        moved = self.timeline not in {None, position.timeline}
        if standing is Standing.KNOWN and moved:
            standing = Standing.RESTORED
        return standing, found

    async def judge(self) -> None:
        """Do as ``compare()`` and change nothing.

        Raises:
            ConfigurationInvalid: As ``compare()``.
            VectorStoreUnavailable: It does not answer, or is too old for
                conditional writes.
        """
        await self._judged()

    async def _judged(
        self,
    ) -> tuple[Standing, Position | None, Position, str, str | None]:
        """Return what to do, the marker, our position, the store and the known one."""
        # A server that is too old takes the condition of a write for nothing, and
        # an older version would replace a newer one.
        await self._store.ready()
        identity = await self._store.identity()
        found = _read(await self._store.get_marker())
        position, known, location = await self._position()
        if found is not None and found.installation != position.installation:
            raise ConfigurationInvalid(
                "qdrant.url",
                f"the vector store at {self._location} belongs to another database "
                f"(installation {found.installation}, this one is "
                f"{position.installation}); name this database's store, or give it "
                "an empty one",
            )
        if known is None:
            standing = Standing.FIRST if found is None else Standing.RESTORED
        elif known != identity:
            if found is not None or location != self._location:
                raise ConfigurationInvalid(
                    "qdrant.url",
                    f"the vector store at {self._location} is not the one this "
                    f"database writes to (that was {known} at {location}); name "
                    "that store, or run 'fm-storage outbox rebuild --adopt' to "
                    "move to this one",
                )
            standing = Standing.EMPTIED
        elif found is None:
            if await self._is_begun():
                return await self._judged()
            standing = Standing.EMPTIED
        else:
            followed = position.follows(found)
            standing = Standing.KNOWN if followed else Standing.RESTORED
        return standing, found, position, identity, known

    async def _is_begun(self) -> bool:
        """Whether another process writes the first marker meanwhile.

        As when several workers start for the first time; for one it is emptied.
        """
        until = time.monotonic() + _FIRST_MARKER
        while await self._executor.fetchval(_FRESH) and time.monotonic() < until:
            await asyncio.sleep(_FIRST_MARKER / 40)
            if _read(await self._store.get_marker()) is not None:
                return True
        return False

    async def adopt(self) -> None:
        """Make the configured store this database's, whatever was recorded."""
        identity = await self._store.identity()
        _, known, _ = await self._position()
        await self._executor.execute(_ADOPT, identity, self._location, known)
        position, _, _ = await self._position()
        self.timeline = position.timeline
        await self._write(position)

    def note(self) -> None:
        """Remember that something was delivered since the marker was written."""
        self._dirty = True

    async def save_if_due(self, *, idle: bool) -> bool:
        """Write the marker if deliveries made it old.

        Returns whether both records still agree; if not, nothing was written.
        """
        due = idle or time.monotonic() - self._saved >= _INTERVAL
        if not (self._dirty and due):
            return True
        # The marker first: what it says was true before our position is read.
        found = _read(await self._store.get_marker())
        position, _, _ = await self._position()
        strange = found is not None and not position.follows(found)
        if strange or position.timeline != self.timeline:
            return False
        await self._write(position)
        return True

    async def save(self) -> bool:
        """Write where PostgreSQL is now, after what followed from ``compare()``.

        Returns whether the comparison still holds; if not, nothing was written.
        """
        position, _, _ = await self._position()
        if position.timeline != self._compared:
            return False
        await self._write(position)
        self.timeline = position.timeline
        return True

    async def _write(self, position: Position) -> None:
        self._dirty = False
        self._saved = time.monotonic()
        await self._store.set_marker(asdict(position))

    async def _position(self) -> tuple[Position, str | None, str | None]:
        record = await self._executor.fetchrow(_POSITION)
        if record is None:
            raise ConfigurationInvalid(
                "postgres.dsn",
                "table fm_storage.vector_store is empty; run 'fm-storage migrate'",
            )
        *values, identity, location = record
        return Position(*values), identity, location


async def marked_version(store: QdrantStore) -> int:
    """Return the greatest version that the store's marker speaks of; 0 without one."""
    found = _read(await store.get_marker())
    return 0 if found is None else found.version


def _read(marker: Any) -> Position | None:
    """Return what a marker says; one that cannot be ours says nothing."""
    if not marker:
        return None
    try:
        found = Position(
            **{field.name: marker[field.name] for field in fields(Position)}
        )
    except (KeyError, TypeError):
        return None
    numbers = (found.timeline, found.log, found.version)
    if not all(type(number) is int and number >= 0 for number in numbers):
        return None
    return found if found.version < _BELIEVED else None
