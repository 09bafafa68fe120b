"""Dropping registered views, for sessions and the reaper alike.

One batch is one transaction
(12,000 drops in one exhaust the lock table); if the server refuses a batch, its
views go one by one, so that one bad view keeps no other. CASCADE is never used
here.
"""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable, Collection, Sequence
from dataclasses import dataclass, field
from itertools import groupby
from typing import Any

from fm_storage.config import SessionConfig
from fm_storage.errors import ConnectionFailed, QueryFailed
from fm_storage.postgres import (
    Connection,
    Record,
    Sql,
    Transaction,
    quote_qualified,
)
from fm_storage.sessions.names import TempView, shown_qualified
from fm_storage.sessions.registry import tag
from fm_storage.sessions.reports import CleanupReport, Refusal
from fm_storage.sessions.source import Source

logger = logging.getLogger("fm_storage.sessions")

_KINDS = {"view": "v", "materialized view": "m", "table": "r"}
_SINGLE_WAIT = 0.25
"""Seconds one view waits for its lock once its batch has been refused."""
_NOT_OURS = "its owner, kind or mark is not what the registry holds"
_FOREIGN = "it belongs to role {role!r}; that role, or a superuser, drops it"

# The row is locked, so that two droppers share the work; the relation is looked
# up by oid: what is called like a view of ours need not be one.
_ROWS = (
    "SELECT b.id, b.owner_id, b.session_id, b.schema_name::text AS schema_name,"
    " b.name::text AS name, b.kind, b.oid, b.adopted, b.refused_times,"
    " c.oid IS NOT NULL AS exists, n.nspname::text AS now_schema,"
    " c.relname::text AS now_name, c.relkind::text AS relkind,"
    " pg_catalog.obj_description(c.oid, 'pg_class') AS tag,"
    " pg_catalog.pg_get_userbyid(c.relowner)::text AS role,"
    " pg_catalog.pg_get_userbyid(c.relowner) = b.created_by AS by_owner,"
    " b.created_by = session_user AS by_us,"
    " coalesce(pg_catalog.pg_has_role(c.relowner, 'USAGE'), false) AS may_drop"
    " FROM fm_storage.session_objects b"
    " LEFT JOIN pg_catalog.pg_class c ON c.oid = b.oid"
    " LEFT JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace"
    " WHERE {which} AND NOT b.id = ANY($2::bigint[])"
    " AND ($4::bigint IS NULL OR b.id = $4)"
    " ORDER BY b.id DESC LIMIT $3 FOR UPDATE OF b SKIP LOCKED"
)
# Only what is really gone loses its row: the count is compared.
_FORGET = Sql(
    "DELETE FROM fm_storage.session_objects b WHERE b.id = ANY($1::bigint[])"
    " AND (b.id = ANY($2::bigint[]) OR NOT EXISTS"
    " (SELECT FROM pg_catalog.pg_class c WHERE c.oid = b.oid))"
)
_NOTE_REFUSAL = Sql(
    "UPDATE fm_storage.session_objects SET refused_sqlstate = $2,"
    " refused_because = $3, refused_times = refused_times + 1 WHERE id = $1"
)


@dataclass
class Claim:
    """Whose views are dropped, and by whose right.

    Attributes:
        which: Condition on ``b`` (the row) with ``$1``, written by the library.
        key: Value of ``$1``.
        own: Whether the session itself drops: only then views that it merely
            registered, and only those whose row it wrote.
        trusted: oids that this process has seen itself create; for them a
            COMMENT that somebody changed does not matter.
        guard: Run first in every transaction; False ends the dropping.
        cascade: Whether dependent objects go, too. Only for a caller's request.
    """

    which: str
    key: Any
    own: bool
    trusted: Collection[int] = ()
    guard: Callable[[Transaction], Awaitable[bool]] | None = None
    cascade: bool = False
    skip: set[int] = field(default_factory=set)


@dataclass
class _Sorted:
    drop: list[Record] = field(default_factory=list)
    gone: list[Record] = field(default_factory=list)
    leave: list[Record] = field(default_factory=list)
    refuse: list[tuple[Record, str, str]] = field(default_factory=list)


async def drop_all(
    source: Source,
    claim: Claim,
    config: SessionConfig,
    *,
    report: Callable[[CleanupReport], None],
) -> None:
    """Drop every view of *claim*; *report* is called after every transaction.

    If cancelled, the transaction under way is rolled back or, if it was just
    committing, may have taken effect; whatever was reported is done, and the rows
    of the rest are still there.

    Raises:
        ConnectionFailed: The connection broke; what was reported is done.
        PoolTimeout: No connection was free.
    """
    batch_size, lock_timeout = config.batch_size, config.lock_timeout
    while True:
        async with source.acquire() as connection:
            try:
                count, done = await _batch(connection, claim, batch_size, lock_timeout)
            except ConnectionFailed:
                raise
            except QueryFailed as exc:
                logger.debug("batch refused (%s), going one by one", exc.sqlstate)
                count, done = await _one_by_one(
                    connection, claim, batch_size, min(lock_timeout, _SINGLE_WAIT)
                )
        report(done)
        if count < batch_size:
            return


_KNOWN = Sql(
    "SELECT n.nspname::text AS now_schema, c.relname::text AS now_name, $3 AS kind"
    " FROM pg_catalog.pg_class c JOIN pg_catalog.pg_namespace n"
    ' ON n.oid = c.relnamespace WHERE c.oid = $1 AND c.relkind = $2::text::"char"'
)


async def drop_known(
    source: Source, views: Sequence[TempView], config: SessionConfig
) -> CleanupReport:
    """Drop *views* by their oids, newest first, where the registry has no row.

    Only this process knows of them now: what is refused is not tried again.
    """
    total = CleanupReport()
    claim = Claim("", None, own=True)
    for view in reversed(views):
        name = str(view)
        async with source.acquire() as connection:
            row = await connection.fetchrow(
                _KNOWN, view.oid, _KINDS[view.kind], view.kind
            )
            if row is None:
                total += CleanupReport(already_gone=(name,))
                continue
            try:
                async with connection.transaction() as transaction:
                    await transaction.execute(
                        _drop_sql([row], claim, config.lock_timeout)
                    )
            except ConnectionFailed:
                raise
            except QueryFailed as exc:
                refusal = Refusal(name, exc.sqlstate or "", str(exc), will_retry=False)
                total += CleanupReport(refused=(refusal,))
            else:
                total += CleanupReport(dropped=(name,))
    return total


async def _batch(
    connection: Connection,
    claim: Claim,
    limit: int,
    lock_timeout: float,
    only: int | None = None,
) -> tuple[int, CleanupReport]:
    """Drop up to *limit* views in one transaction; return how many were seen."""
    async with connection.transaction() as transaction:
        if claim.guard is not None and not await claim.guard(transaction):
            return 0, CleanupReport(complete=False)
        rows = await transaction.fetch(
            Sql(_ROWS.format(which=claim.which)),
            *(claim.key, list(claim.skip), limit, only),
        )
        if not rows:
            return 0, CleanupReport()
        sorted_ = _sort(rows, claim)
        if sorted_.drop:
            await transaction.execute(_drop_sql(sorted_.drop, claim, lock_timeout))
        ids = [row["id"] for row in sorted_.drop + sorted_.gone + sorted_.leave]
        tag_ = await transaction.execute(
            _FORGET, ids, [row["id"] for row in sorted_.gone + sorted_.leave]
        )
        if int(tag_.rpartition(" ")[2]) != len(ids):
            # Renamed between the look and the DROP: what went was not ours.
            raise QueryFailed("session: a view changed its name while it was dropped")
        await _note(transaction, sorted_.refuse)
    claim.skip.update(row["id"] for row, _, _ in sorted_.refuse)
    return len(rows), CleanupReport(
        dropped=tuple(map(_name, sorted_.drop)),
        already_gone=tuple(map(_name, sorted_.gone)),
        forgotten=tuple(map(_name, sorted_.leave)),
        refused=tuple(
            Refusal(_name(row), state, why) for row, state, why in sorted_.refuse
        ),
    )


async def _one_by_one(
    connection: Connection, claim: Claim, limit: int, lock_timeout: float
) -> tuple[int, CleanupReport]:
    """Drop up to *limit* views in a transaction each, newest first."""
    total = CleanupReport()
    rows = await connection.fetch(
        Sql(_ROWS.format(which=claim.which)),
        *(claim.key, list(claim.skip), limit, None),
    )
    for row in rows:
        try:
            _, done = await _batch(connection, claim, 1, lock_timeout, row["id"])
        except ConnectionFailed:
            raise
        except QueryFailed as exc:
            state = exc.sqlstate or ""
            async with connection.transaction() as transaction:
                await _note(transaction, [(row, state, str(exc))])
            done = CleanupReport(refused=(Refusal(_name(row), state, str(exc)),))
        if done.refused:
            claim.skip.add(row["id"])
        total += done
    return len(rows), total


def _sort(rows: Sequence[Record], claim: Claim) -> _Sorted:
    """Decide about every row, without I/O."""
    result = _Sorted()
    for row in rows:
        if not row["exists"] or row["relkind"] != _KINDS[row["kind"]]:
            # Another kind under the same oid: the counter went round; ours is gone.
            result.gone.append(row)
        elif row["adopted"] and not claim.own:
            result.leave.append(row)
        elif not _is_ours(row, claim):
            result.refuse.append((row, "", _NOT_OURS))
        elif not row["may_drop"]:
            result.refuse.append((row, "42501", _FOREIGN.format(role=row["role"])))
        else:
            result.drop.append(row)
    return result


def _is_ours(row: Record, claim: Claim) -> bool:
    """Whether nobody could have forged *row* to have another's view dropped."""
    if not row["by_owner"] or (claim.own and not row["by_us"]):
        return False
    return (
        row["adopted"]
        or row["tag"] == tag(row["owner_id"], row["session_id"])
        or row["oid"] in claim.trusted
    )


def _drop_sql(rows: Sequence[Record], claim: Claim, lock_timeout: float) -> str:
    """Return the DROPs in the order of *rows*: newest first, dependents first."""
    statements = [f"SET LOCAL lock_timeout = {max(1, int(lock_timeout * 1000))}"]
    how = "CASCADE" if claim.cascade else "RESTRICT"
    for kind, run in groupby(rows, key=lambda row: row["kind"]):
        names = ", ".join(
            quote_qualified(row["now_schema"], row["now_name"]) for row in run
        )
        statements.append(f"DROP {kind.upper()} {names} {how}")
    # Nothing stays behind on the connection: SET LOCAL ends with the transaction.
    return Sql("; ".join(statements))


async def _note(
    transaction: Transaction, refusals: Sequence[tuple[Record, str, str]]
) -> None:
    for row, state, why in refusals:
        await transaction.execute(_NOTE_REFUSAL, row["id"], state, why[:1000])


def _name(row: Record) -> str:
    return shown_qualified(row["schema_name"], row["name"])
