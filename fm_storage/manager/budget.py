"""How many connections processes need, against what their servers allow."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from fm_storage.postgres.pool.replica import ReadPool
from fm_storage.postgres.sql import Sql

if TYPE_CHECKING:
    from fm_storage.config import StorageConfig
    from fm_storage.postgres import Pool, Record

_LIMITS = Sql(
    """SELECT current_setting('max_connections')::int AS max_connections,
  current_setting('superuser_reserved_connections')::int
    + coalesce(current_setting('reserved_connections', true)::int, 0) AS reserved,
  nullif((SELECT rolconnlimit FROM pg_roles WHERE rolname = session_user), -1) AS role,
  nullif((SELECT datconnlimit FROM pg_database WHERE datname = current_database()), -1)
    AS database,
  (SELECT count(*)::int FROM pg_stat_activity WHERE datname IS NOT NULL
    AND NOT starts_with(coalesce(application_name, ''), $1)) AS others,
  pg_postmaster_start_time() AS server"""
)


@dataclass(frozen=True, slots=True)
class Need:
    """Connections of one process for one purpose, at most.

    Attributes:
        server: ``primary``, ``replica``, or ``pooler``, whose limits are not known.
        purpose: What they are for.
        connections: How many.
        held: When they are held.
    """

    server: str
    purpose: str
    connections: int
    held: str


@dataclass(frozen=True, slots=True)
class Server:
    """What one server has to give to all processes together.

    Attributes:
        name: As in ``Need``.
        needed: Connections of all processes, at most.
        allowed: Connections that can be had; None if the server was not asked.
        others: Connections that other programs have now.
        max_connections: The server's setting.
        reserved: Slots kept for superusers and the like.
        remedy: What to do if they do not fit; else empty.
    """

    name: str
    needed: int
    allowed: int | None = None
    others: int | None = None
    max_connections: int | None = None
    reserved: int | None = None
    remedy: str = ""


@dataclass(frozen=True, slots=True)
class Budget:
    """Connections of *processes* equal processes."""

    processes: int
    fits: bool
    servers: tuple[Server, ...]
    needs: tuple[Need, ...]


async def connection_budget(
    config: StorageConfig, pool: Pool, reads: Pool, processes: int
) -> Budget:
    """Add up what processes with *config* need, and ask the servers what they allow.

    Args:
        config: The settings of each process.
        pool: A pool on the primary.
        reads: ``storage.reads``.
        processes: How many processes there are.

    Raises:
        StorageError: The primary did not answer.
    """
    name = pool.config.application_name
    limits = {"primary": await pool.fetchrow(_LIMITS, name)}
    replica = "replica"
    if isinstance(reads, ReadPool) and reads.is_used:
        found = await reads.fetchrow(_LIMITS, name)
        if (
            found
            and limits["primary"]
            and found["server"] == limits["primary"]["server"]
        ):
            replica = "primary"  # or the primary answered in its place
        else:
            limits["replica"] = found
    needs = _needs(config, pool, replica)
    servers = tuple(
        _server(
            one,
            [need.connections for need in needs if need.server == one],
            processes,
            limits.get(one),
            pool.config.max_size,
        )
        for one in dict.fromkeys(need.server for need in needs)
    )
    return Budget(processes, not any(s.remedy for s in servers), servers, tuple(needs))


def _needs(config: StorageConfig, pool: Pool, replica: str) -> list[Need]:
    """Return what one process needs."""
    size, pooled = pool.config.max_size, pool.transaction_pooler
    direct = not pooled or config.session.dsn is not None
    drains = config.qdrant is not None and config.outbox.drain
    needs = [
        Need("pooler" if pooled else "primary", "pool", size, "as callers need them")
    ]
    if direct:
        needs.append(Need("primary", "session lease", 1, "from the first session on"))
    if not pooled:
        needs.append(
            Need("primary", "listener", 1, "while it drains, tails or listens")
        )
    if drains and direct:
        needs.append(Need("primary", "drainer's lock", 1, "while it drains"))
    if config.migrations.auto_apply:
        needs.append(Need("primary", "migrations", 1, "while it starts"))
    if pool.config.read_dsn is not None:
        needs.append(Need(replica, "reads", size, "as callers need them"))
        needs.append(Need(replica, "replica's watch", 1, "always"))
    return needs


def _server(
    name: str, needs: list[int], processes: int, limits: Record | None, size: int
) -> Server:
    each = sum(needs)
    needed = each * processes
    if limits is None:
        return Server(name, needed)
    free = limits["max_connections"] - limits["reserved"] - limits["others"]
    bounds = (free, limits["role"], limits["database"])
    allowed = max(0, min(bound for bound in bounds if bound is not None))
    remedy = ""
    if needed > allowed:
        # Each pool of a process gives up as many; what is no pool takes one.
        pools = len(needs) - needs.count(1) or 1
        fitting = (allowed // processes - (each - pools * size)) // pools
        smaller = f"lower postgres.max_size to {fitting}, " if fitting > 0 else ""
        raised = f"raise max_connections by {needed - allowed}"
        if allowed != free:
            raised = f"raise the role's or database's CONNECTION LIMIT to {needed}"
        remedy = (
            f"{needed} connections do not fit into {allowed}; {smaller}run "
            f"{allowed // each} process(es), {raised}, or put PgBouncer in front"
        )
    return Server(
        name,
        needed,
        allowed,
        limits["others"],
        limits["max_connections"],
        limits["reserved"],
        remedy,
    )
