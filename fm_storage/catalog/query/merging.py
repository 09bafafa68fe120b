"""Groups above fingerprints: siblings are merged, older fingerprints are followed.

Recording knows nothing of it. Before a question about groups is answered, the
fingerprints that are new since the last one get their place, in batches, under one
advisory lock, so that all processes agree. A group bears the fingerprint of its
oldest member, and the older of two groups that merge gives its name.

A fingerprint made by an older release becomes another name of the one that its errors
have now: the group stays what it was, and the errors are moved in small batches.
"""

from __future__ import annotations

import asyncio
import logging
from collections import defaultdict
from collections.abc import Awaitable, Callable, Iterable, Sequence
from hashlib import blake2b
from time import monotonic
from typing import TYPE_CHECKING, TypeAlias

from fm_storage.catalog.query.siblings import pieces_of, shape_of, siblings
from fm_storage.catalog.record.fingerprint import (
    VERSION,
    Fingerprint,
    code_that_counts,
    fingerprints_of,
)
from fm_storage.catalog.record.frames import place_of
from fm_storage.concurrency.backoff import Backoff
from fm_storage.postgres import Sql

if TYPE_CHECKING:
    from fm_storage.postgres import Executor, Pool, Record

Step: TypeAlias = "Callable[[Executor], Awaitable[bool]]"

logger = logging.getLogger("fm_storage.catalog")

BUDGET = 2.0
"""Seconds that one question spends on merging; the next one goes on."""

_BATCH = 2000
_PATIENCE = 2.0  # for another process that is at it
_MOST = 5000  # templates of one structure that are compared
_SCAN_TIMEOUT = 300.0
_LEFT = -1  # version of another name whose errors are still to be moved
_NEW = 0

_PENDING = Sql(
    f"""SELECT EXISTS (
  SELECT FROM fm_storage.fingerprints AS g WHERE NOT EXISTS (
    SELECT FROM fm_storage.group_members AS m WHERE m.fingerprint = g.fingerprint)
) OR EXISTS (SELECT FROM fm_storage.group_members WHERE version < {VERSION})"""
)
# Never waited for in the server: a blocking advisory lock deadlocks with CREATE
# INDEX CONCURRENTLY.
_TRY_LOCK = Sql(
    "SELECT pg_catalog.pg_try_advisory_xact_lock(hashtext('fm_storage.merging'))"
)
# Those without errors wait: what they are is seen by an example.
_ARRIVE = Sql(
    f"""INSERT INTO fm_storage.group_members (fingerprint, group_id, version)
SELECT g.fingerprint, g.fingerprint, {_NEW} FROM fm_storage.fingerprints AS g
JOIN LATERAL (
  SELECT timestamp FROM fm_storage.error_fingerprints AS f
  WHERE f.fingerprint = g.fingerprint ORDER BY timestamp LIMIT 1
) AS first ON TRUE
WHERE NOT EXISTS (
  SELECT FROM fm_storage.group_members AS m WHERE m.fingerprint = g.fingerprint)
ORDER BY first.timestamp, g.fingerprint
ON CONFLICT (fingerprint) DO NOTHING"""
)
_EXAMPLES = Sql(
    f"""SELECT m.fingerprint, m.group_id, m.version, e.message, e.module, e.error_code,
  e.stack_trace
FROM (
  SELECT fingerprint, group_id, version, place FROM fm_storage.group_members
  WHERE version >= {_NEW} AND version < {VERSION} ORDER BY place LIMIT $1
) AS m
LEFT JOIN LATERAL (
  SELECT error_id FROM fm_storage.error_fingerprints AS f
  WHERE f.fingerprint = m.fingerprint ORDER BY timestamp LIMIT 1
) AS f ON TRUE
LEFT JOIN project_errors AS e ON e.id = f.error_id
ORDER BY m.place"""
)
# What lost its errors meanwhile arrives again when it has some.
_GONE = Sql(
    "DELETE FROM fm_storage.group_members WHERE fingerprint = ANY($1::bigint[])"
)
_FOLLOW = Sql(
    f"""WITH src AS MATERIALIZED (
  SELECT * FROM unnest($1::bigint[], $2::bigint[], $3::text[], $4::text[], $5::text[])
    WITH ORDINALITY AS src (older, fingerprint, module, code, template, at)
), grp AS (
  INSERT INTO fm_storage.fingerprints (fingerprint, module, error_code, template)
  SELECT DISTINCT ON (fingerprint) fingerprint, module, code, template FROM src
  ORDER BY fingerprint
  ON CONFLICT (fingerprint) DO NOTHING
), old AS (
  UPDATE fm_storage.group_members AS m SET version = {_LEFT}, shape = NULL FROM src
  WHERE m.fingerprint = src.older
  RETURNING m.fingerprint, m.group_id
)
INSERT INTO fm_storage.group_members (fingerprint, group_id, version)
SELECT DISTINCT ON (src.fingerprint) src.fingerprint, old.group_id, {_NEW}
FROM src JOIN old ON old.fingerprint = src.older ORDER BY src.fingerprint, src.at
ON CONFLICT (fingerprint) DO NOTHING"""
)
_GROUPS_OF = Sql(
    "SELECT fingerprint, group_id FROM fm_storage.group_members "
    "WHERE fingerprint = ANY($1::bigint[])"
)
_PLACE = Sql(
    f"""UPDATE fm_storage.group_members AS m SET shape = src.shape, version = {VERSION}
FROM unnest($1::bigint[], $2::bigint[]) AS src (fingerprint, shape)
WHERE m.fingerprint = src.fingerprint"""
)
_OF_SHAPES = Sql(
    """SELECT m.shape, m.fingerprint, m.group_id, g.template
FROM fm_storage.group_members AS m JOIN fm_storage.fingerprints AS g USING (fingerprint)
WHERE m.shape = ANY($1::bigint[]) AND NOT m.pinned ORDER BY m.shape, m.place"""
)
_AGES = Sql(
    "SELECT group_id, min(place) FROM fm_storage.group_members "
    "WHERE group_id = ANY($1::bigint[]) GROUP BY group_id"
)
_MERGE = Sql(
    """UPDATE fm_storage.group_members AS m SET group_id = src.kept
FROM unnest($1::bigint[], $2::bigint[]) AS src (merged, kept)
WHERE m.group_id = src.merged RETURNING src.merged, src.kept, m.fingerprint"""
)
_RECORD = Sql(
    """INSERT INTO fm_storage.group_merges (kept, merged, members)
VALUES ($1::bigint, $2::bigint, $3::bigint[])"""
)
_LEFT_ERRORS = Sql(
    f"""SELECT f.error_id, e.message, e.module, e.error_code, e.stack_trace
FROM fm_storage.group_members AS m
JOIN fm_storage.error_fingerprints AS f USING (fingerprint)
JOIN project_errors AS e ON e.id = f.error_id
WHERE m.version = {_LEFT} ORDER BY f.error_id LIMIT $1 FOR KEY SHARE OF e"""
)
_MOVE = Sql(
    """WITH src AS MATERIALIZED (
  SELECT * FROM unnest($1::uuid[], $2::bigint[], $3::text[], $4::text[], $5::text[])
    AS src (id, fingerprint, module, code, template)
), grp AS (
  INSERT INTO fm_storage.fingerprints (fingerprint, module, error_code, template)
  SELECT DISTINCT ON (fingerprint) fingerprint, module, code, template FROM src
  ORDER BY fingerprint
  ON CONFLICT (fingerprint) DO NOTHING
)
UPDATE fm_storage.error_fingerprints AS f SET fingerprint = src.fingerprint
FROM src WHERE f.error_id = src.id"""
)
_ALL_MOVED = Sql(
    f"UPDATE fm_storage.group_members SET version = {VERSION} WHERE version = {_LEFT}"
)


async def merge_groups(pool: Pool) -> None:
    """Give the fingerprints that are new their groups; for about *BUDGET* seconds.

    In short transactions; what was committed before a cancellation stays. Where
    another process is at it for longer than two seconds, its work is not waited for.
    """
    if not await pool.fetchval(_PENDING, timeout=_SCAN_TIMEOUT):
        return
    deadline = monotonic() + BUDGET
    for step in (_arrive, _place_some, _move_some, _arrive, _place_some):
        while await locked(pool, step):
            if monotonic() > deadline:
                logger.info("merging of groups goes on with the next question")
                return


async def locked(pool: Pool, step: Step) -> bool:
    """Run *step* in a transaction that holds the lock; return what it returns.

    False, too, if another process has held the lock for two seconds.
    """
    patience, pause = monotonic() + _PATIENCE, Backoff(0.01, 0.1)
    while monotonic() < patience:
        async with pool.transaction() as tx:
            if await tx.fetchval(_TRY_LOCK):
                return await step(tx)
        await pause.sleep()
    return False


async def _arrive(tx: Executor) -> bool:
    await tx.execute(_ARRIVE, timeout=_SCAN_TIMEOUT)
    return False


async def _place_some(tx: Executor) -> bool:
    """Place the members of one batch; return whether there may be more."""
    every = await tx.fetch(_EXAMPLES, _BATCH)
    rows = [row for row in every if row["message"] is not None]
    if len(rows) < len(every):
        await tx.execute(_GONE, [row[0] for row in every if row["message"] is None])
    if not rows:
        return bool(every)
    found = await asyncio.to_thread(fingerprints_of, rows)
    now = {row["fingerprint"]: one for row, one in zip(rows, found, strict=True)}
    pairs: list[tuple[int, int]] = []
    if older := [row for row in rows if now[row[0]].value != row[0]]:
        await tx.execute(
            _FOLLOW, [row[0] for row in older], *_columns(older, now.__getitem__)
        )
        names = {one for row in older for one in (row[0], now[row[0]].value)}
        group_of: dict[int, int] = dict(
            map(tuple, await tx.fetch(_GROUPS_OF, sorted(names)))
        )
        pairs = [(group_of[row[0]], group_of[now[row[0]].value]) for row in older]
    shapes = [_shape(row, now[row[0]]) for row in rows]
    await tx.execute(_PLACE, [now[row[0]].value for row in rows], shapes)
    members = await tx.fetch(_OF_SHAPES, sorted(set(shapes)))
    pairs += await asyncio.to_thread(_same, members)
    new = {row["group_id"] for row in rows if row["version"] == _NEW}
    await _unite(tx, pairs, new)
    return bool(older) or len(every) == _BATCH


async def _move_some(tx: Executor) -> bool:
    """Give errors with an older release's fingerprint the one of today."""
    rows = await tx.fetch(_LEFT_ERRORS, _BATCH)
    if not rows:
        await tx.execute(_ALL_MOVED)
        return False
    found = dict(
        zip(
            [row["error_id"] for row in rows],
            await asyncio.to_thread(fingerprints_of, rows),
            strict=True,
        )
    )
    await tx.execute(_MOVE, list(found), *_columns(rows, found.__getitem__))
    return True


def _columns(
    rows: Sequence[Record], now: Callable[[object], Fingerprint]
) -> list[list[object]]:
    """Return the columns of fingerprints that ``_FOLLOW`` and ``_MOVE`` take."""
    return [
        [now(row[0]).value for row in rows],
        [row["module"] for row in rows],
        [row["error_code"] for row in rows],
        [now(row[0]).template for row in rows],
    ]


def _shape(row: Record, now: Fingerprint) -> int:
    """Return what members have in common that may be one group.

    An odd number: those are one group, whatever their modules. An even one: their
    templates have to be compared.
    """
    trace = row["stack_trace"]
    place, enough = ("", False) if trace is None else place_of(trace)
    signs = ("",) if enough else shape_of(now.template)
    text = "\x1f".join((code_that_counts(row["error_code"], trace), place, *signs))
    digest = blake2b(text.encode("utf-8", "replace"), digest_size=8).digest()
    number = int.from_bytes(digest, "big", signed=True)
    return number | 1 if enough else number & ~1


def _same(members: Sequence[Record]) -> list[tuple[int, int]]:
    """Return pairs of groups that are one, among members with equal shapes."""
    by_shape: defaultdict[int, list[Record]] = defaultdict(list)
    for member in members:
        by_shape[member["shape"]].append(member)
    pairs: list[tuple[int, int]] = []
    for shape, ours in by_shape.items():
        if shape & 1:
            pairs += [(ours[0]["group_id"], one["group_id"]) for one in ours]
            continue
        some = ours[-_MOST:]
        pieces = [pieces_of(one["template"]) for one in some]
        firsts = siblings([words for words, _ in pieces], pieces[0][1])
        pairs += [
            (some[first]["group_id"], one["group_id"])
            for one, first in zip(some, firsts, strict=True)
        ]
    return pairs


async def _unite(tx: Executor, pairs: Iterable[tuple[int, int]], new: set[int]) -> None:
    """Make groups that are one, by *pairs*, the oldest of them; record those merges.

    Of *new* groups, which nobody has seen, there is nothing to record.
    """
    parents: dict[int, int] = {}

    def first(group: int) -> int:
        while parents.setdefault(group, group) != group:
            group = parents[group]
        return group

    for one, other in pairs:
        if one != other:
            parents[first(other)] = first(one)
    if not parents:
        return
    ages: dict[int, int] = dict(map(tuple, await tx.fetch(_AGES, sorted(parents))))
    sets: defaultdict[int, list[int]] = defaultdict(list)
    for group in parents:
        sets[first(group)].append(group)
    kept = {
        group: min(groups, key=ages.__getitem__)
        for groups in sets.values()
        for group in groups
    }
    merged = sorted(group for group in kept if kept[group] != group)
    rows = await tx.fetch(_MERGE, merged, [kept[group] for group in merged])
    moved: defaultdict[int, list[int]] = defaultdict(list)
    for row in rows:
        moved[row["merged"]].append(row["fingerprint"])
    for group in merged:
        if group not in new:
            await tx.execute(_RECORD, kept[group], group, moved[group])
