"""Functions that are called for each group of errors that is new or came back.

What is to be delivered is a row, written by the process that looks first and marked
when the function has returned. An advisory lock lets one process call at a time; it
ends with the transaction that holds it, and so with its process.
"""

from __future__ import annotations

import asyncio
import inspect
import logging
from collections.abc import Awaitable, Callable, Mapping
from contextlib import AsyncExitStack
from dataclasses import dataclass
from datetime import datetime
from typing import TYPE_CHECKING, Literal, NoReturn

from fm_storage.catalog.query.groups import ErrorGroup, fetch_groups, hex_of
from fm_storage.catalog.query.states import MEMBERS, STATES
from fm_storage.catalog.query.tail import open_waiter
from fm_storage.catalog.record.redact import mask_text
from fm_storage.catalog.record.render import text_of, type_name
from fm_storage.concurrency.backoff import Backoff
from fm_storage.errors import InvalidRecord, StorageError
from fm_storage.postgres import Sql
from fm_storage.postgres.arguments import seconds

if TYPE_CHECKING:
    from fm_storage.postgres import Pool, Record

logger = logging.getLogger("fm_storage.catalog")

Event = Literal["new", "regressed"]
OnGroup = Callable[["GroupNotice"], Awaitable[object]]

_RETRY = Backoff(1.0, 300.0)
_OUTAGE = (0.1, 5.0)
_GRACE = 10.0
"""Seconds after a call's timeout at which the server ends a frozen process's turn."""
_AT_ONCE = 100

_BEGIN = Sql(
    "INSERT INTO fm_storage.group_watchers (watcher, since) VALUES ($1, $2) "
    "ON CONFLICT (watcher) DO NOTHING"
)
# A group counts as known when it is older than the watcher; so an old log that is
# read tomorrow is no news. It gets its row all the same, and is not looked at again.
_NOTE = """INSERT INTO fm_storage.group_notices
  (watcher, group_id, event, occasion, due_at, delivered_at)
SELECT w.watcher, g.group_id, '{event}', {occasion}, clock_timestamp(),
  CASE WHEN first.at < w.since THEN clock_timestamp() END
FROM fm_storage.group_watchers AS w CROSS JOIN ({groups}) AS g
CROSS JOIN LATERAL (
  SELECT min(f.timestamp) AS at FROM fm_storage.error_fingerprints AS f
  WHERE f.fingerprint IN ({members}) AND {later}
) AS first
WHERE w.watcher = $1 AND first.at IS NOT NULL AND NOT EXISTS (
  SELECT FROM fm_storage.group_notices AS n WHERE n.watcher = w.watcher
    AND n.group_id = g.group_id AND n.event = '{event}' AND n.occasion = {occasion})
ON CONFLICT DO NOTHING"""
_NOTES: Mapping[Event, Sql] = {
    "new": Sql(
        _NOTE.format(
            event="new",
            occasion="0",
            # Only what merging has placed: others may be siblings of a known one.
            groups="SELECT DISTINCT group_id FROM fm_storage.group_members "
            "WHERE version > 0",
            members=MEMBERS.format("g.group_id"),
            later="TRUE",
        )
    ),
    "regressed": Sql(
        _NOTE.format(
            event="regressed",
            occasion="(extract(epoch FROM g.since) * 1000000)::bigint",
            groups=STATES.format("TRUE") + " AND state = 'regressed'",
            members=MEMBERS.format("g.group_id"),
            later="f.timestamp > g.since",
        )
    ),
}
_DUE = Sql(
    """SELECT group_id, event, occasion, attempts FROM fm_storage.group_notices
WHERE watcher = $1 AND event = ANY($2) AND delivered_at IS NULL
  AND due_at <= clock_timestamp()
ORDER BY due_at, group_id LIMIT $3"""
)
_OF_ONE = "WHERE watcher = $1 AND group_id = $2 AND event = $3 AND occasion = $4"
# Tried and never waited for: a blocking advisory lock deadlocks with CREATE INDEX
# CONCURRENTLY. The setting lets go of a process that is stopped and not dead.
_TURN = Sql(
    """SELECT pg_catalog.pg_try_advisory_xact_lock(
    hashtext('fm_storage.watch'), hashtext($1)),
  pg_catalog.set_config('idle_in_transaction_session_timeout', $2, TRUE)"""
)
_STILL_DUE = Sql(
    f"SELECT due_at <= clock_timestamp() FROM fm_storage.group_notices {_OF_ONE} "
    "AND delivered_at IS NULL"
)
_DELIVERED = Sql(
    f"UPDATE fm_storage.group_notices SET delivered_at = clock_timestamp() {_OF_ONE}"
)
_FAILED = Sql(
    "UPDATE fm_storage.group_notices SET attempts = attempts + 1, last_error = $5, "
    f"due_at = clock_timestamp() + make_interval(secs => $6) {_OF_ONE}"
)
_STATUS = Sql(
    """SELECT w.watcher, w.since, count(n.delivered_at) AS delivered,
  count(n.group_id) - count(n.delivered_at) AS waiting,
  count(*) FILTER (WHERE n.attempts > 0 AND n.delivered_at IS NULL) AS failing,
  (array_agg(n.last_error ORDER BY n.due_at)
    FILTER (WHERE n.attempts > 0 AND n.delivered_at IS NULL))[1] AS last_error,
  min(n.due_at) FILTER (WHERE n.delivered_at IS NULL) AS due
FROM fm_storage.group_watchers AS w LEFT JOIN fm_storage.group_notices AS n
  USING (watcher)
GROUP BY w.watcher ORDER BY w.watcher"""
)


@dataclass(frozen=True, slots=True)
class GroupNotice:
    """What a function of ``ErrorManager.watch()`` is called with.

    Attributes:
        key: The same whenever this event of this group is delivered again, by
            whichever process; give it to what must not happen twice.
        event: ``new`` or ``regressed``.
        group: The group, as it is now.
        attempt: 1, and one more after each call that failed.
    """

    key: str
    event: Event
    group: ErrorGroup
    attempt: int


@dataclass(frozen=True, slots=True)
class WatcherStatus:
    """How far a watcher has got.

    Attributes:
        watcher: Name given to ``ErrorManager.watch()``.
        since: When the first watch by that name began.
        delivered: Events that are done, or were older than the watcher.
        waiting: Events that are still to be delivered.
        failing: Those among them of which a call has failed.
        last_error: Why, of the one that is tried next; None if none fails.
        due: When the next of them is tried; None if none waits.
    """

    watcher: str
    since: datetime
    delivered: int
    waiting: int
    failing: int
    last_error: str | None
    due: datetime | None


class Watch:
    """Finds events of groups, and calls a function for each until it has returned.

    Args:
        pool: Where the catalogue is.
        name: Watchers of one name share the work; each name gets every event.
        functions: The function of each event that is wanted.
        since: Groups that are older are not new, if the name is.
        timeout: Seconds after which a call has failed.

    Raises:
        InvalidRecord: No function is given, or one is not ``async``.
    """

    def __init__(
        self,
        pool: Pool,
        name: str,
        functions: Mapping[Event, OnGroup | None],
        *,
        since: datetime,
        timeout: float,
    ) -> None:
        wanted = {event: one for event, one in functions.items() if one is not None}
        if not wanted:
            raise InvalidRecord(
                "watch: no function is given; give new= or regressed=", field="new"
            )
        for event, function in wanted.items():
            method = type(function).__call__ if callable(function) else None
            if not any(map(inspect.iscoroutinefunction, (function, method))):
                raise InvalidRecord(
                    f"watch: {event}={function!r} is not async; give an 'async def' "
                    "that takes a GroupNotice",
                    field=event,
                )
        if not name or seconds(timeout) <= 0:
            raise InvalidRecord(
                f"watch: name is {name!r} and timeout {timeout!r}; give a name, and "
                "seconds above 0",
                field="timeout" if name else "name",
            )
        self._pool = pool
        self._name = name
        self._functions = wanted
        self._since = since
        self._timeout = timeout

    async def run(self) -> NoReturn:
        """Deliver for ever; a server that is away is waited for.

        Raises:
            StorageError: One that is not retryable.
        """
        pause = Backoff(*_OUTAGE)
        async with AsyncExitStack() as stack:
            waiter = await open_waiter(self._pool, stack)
            while True:
                try:
                    done = await self._round()
                except StorageError as exc:
                    if not exc.retryable:
                        raise
                    logger.info("watch %r waits: %s", self._name, exc)
                    await pause.sleep()
                else:
                    pause.reset()
                    if not done:
                        await waiter.wait()

    async def _round(self) -> int:
        """Note what has happened, deliver what is due; return how many that were."""
        # Brings the groups up to date: an error whose sibling is known is not new.
        await fetch_groups(self._pool, only=())
        await self._pool.execute(_BEGIN, self._name, self._since)
        for event in self._functions:
            await self._pool.execute(_NOTES[event], self._name)
        due = await self._pool.fetch(_DUE, self._name, list(self._functions), _AT_ONCE)
        done = 0
        for row in due:
            # Asked outside of the turn, which holds one connection and needs no other.
            found = await fetch_groups(self._pool, only=[row["group_id"]])
            if not await self._deliver(row, found[0] if found else None):
                break
            done += 1
        return done

    async def _deliver(self, row: Record, group: ErrorGroup | None) -> bool:
        """Call the function of one event; return False if it is another's turn."""
        one = (self._name, row["group_id"], row["event"], row["occasion"])
        rest = f"{self._timeout + _GRACE:.0f}s"
        async with self._pool.transaction() as tx:
            turn = await tx.fetchrow(_TURN, self._name, rest)
            assert turn is not None
            if not turn[0]:
                return False
            if not await tx.fetchval(_STILL_DUE, *one):
                return True  # another process was faster
            failure = None
            if group is not None:  # its errors may be purged
                key = "-".join((row["event"], hex_of(one[1]), str(one[3])))
                attempt = row["attempts"] + 1
                failure = await self._call(
                    GroupNotice(key, row["event"], group, attempt)
                )
            if failure is None:
                await tx.execute(_DELIVERED, *one)
            else:
                pause = _RETRY.after(row["attempts"])
                await tx.execute(_FAILED, *one, failure, pause)
        return True

    async def _call(self, notice: GroupNotice) -> str | None:
        """Call the function; return what went wrong."""
        task = asyncio.current_task()
        assert task is not None
        try:
            async with asyncio.timeout(self._timeout):
                await self._functions[notice.event](notice)
        except (Exception, asyncio.CancelledError) as exc:
            if isinstance(exc, asyncio.CancelledError) and task.cancelling():
                raise  # we are cancelled, not something inside of the function
            text = mask_text(f"{type_name(exc)}: {text_of(exc)}")[:500]
            failure = text.replace("\0", "\ufffd").encode("utf-8", "replace").decode()
            logger.warning(
                "watch %r: %s failed, attempt %d (%s)",
                self._name,
                notice.key,
                notice.attempt,
                failure,
            )
            return failure
        return None


async def fetch_watchers(pool: Pool) -> list[WatcherStatus]:
    """Return how far each watcher has got, by name."""
    return [WatcherStatus(*row) for row in await pool.fetch(_STATUS)]
