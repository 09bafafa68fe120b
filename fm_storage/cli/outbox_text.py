"""Output of ``fm-storage outbox``, as text and as JSON."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from datetime import timedelta
from typing import TYPE_CHECKING, Any

from rich.table import Table

from fm_storage.cli.common import ago, console, plain

if TYPE_CHECKING:
    from fm_storage.outbox import (
        DrainReport,
        OutboxStatus,
        Quarantined,
        Rebuilding,
        RebuildReport,
        RepairReport,
        Verification,
    )

_ASIDE = "see 'fm-storage outbox quarantine list'"


def as_plain(value: Any) -> dict[str, Any]:
    """Return a result as JSON takes it; durations in seconds."""
    return {
        field.name: _json(getattr(value, field.name))
        for field in dataclasses.fields(value)
    }


def _json(value: Any) -> Any:
    if isinstance(value, timedelta):
        return value.total_seconds()
    if dataclasses.is_dataclass(value):
        return as_plain(value)
    if isinstance(value, tuple):
        return [_json(one) for one in value]
    return value


def show_status(found: OutboxStatus) -> None:
    """Print the backlog by collection, why a part of it waits, and rebuilds."""
    if found.collections:
        _backlog(found)
    else:
        console().print("the vector store is up to date")
    for one in found.rebuilds:
        console().print(plain(_rebuilding(one)), soft_wrap=True)


def _rebuilding(one: Rebuilding) -> str:
    done = (
        f"{one.copied:,}" if one.total is None else f"{one.copied:,} of {one.total:,}"
    )
    begun = f"{done} points are in {one.target}, begun {ago(one.started_at)}"
    if one.under_way:
        return f"{one.collection} is being rebuilt: {begun}"
    if one.exchanging:
        return (
            f"the rebuild of {one.collection} was interrupted while the name was "
            f"exchanged: {begun}; the next drainer ends it, or "
            f"'fm-storage outbox rebuild {one.collection}'"
        )
    return (
        f"the rebuild of {one.collection} was interrupted: {begun}; "
        f"'fm-storage outbox rebuild {one.collection}' goes on with it"
    )


def _backlog(found: OutboxStatus) -> None:
    out = console()
    table = Table(box=None, pad_edge=False)
    for heading in ("collection", "pending", "failing", "set aside", "oldest"):
        table.add_column(
            heading, justify="left" if heading == "collection" else "right"
        )
    for one in found.collections:
        age = one.oldest_age
        table.add_row(
            plain(one.collection),
            f"{one.pending:,}",
            f"{one.failing:,}",
            f"{one.quarantined:,}",
            "" if age is None else f"{age.total_seconds():,.1f} s",
        )
    out.print(table)
    out.print(
        f"{found.pending:,} pending, {found.quarantined:,} set aside, "
        f"{found.tombstones:,} deletions to be repeated"
    )
    for one in found.collections:
        if one.failing:
            text = f"{one.failing:,} of {one.collection} failed and will be tried again"
            out.print(plain(f"{text}: {one.error}"), soft_wrap=True)
    if found.quarantined:
        out.print(f"{_set_aside(found.quarantined)}; {_ASIDE}")


def show_drained(done: DrainReport) -> None:
    """Print what was delivered, and why the rest was not."""
    out = console()
    out.print(
        f"{done.delivered:,} delivered, {done.quarantined:,} set aside, "
        f"{done.remaining:,} left"
    )
    for collection, why in sorted(done.blocked.items()):
        out.print(plain(f"{collection} waits: {why}"), soft_wrap=True)
    if done.leased:
        end = done.leased_until and f" until {done.leased_until:%H:%M:%S %Z}"
        out.print(
            f"{done.leased:,} of them are another drainer's{end or ''}: one that was "
            "killed keeps what it had taken for so long (outbox.lease)",
            soft_wrap=True,
        )
    if done.remaining and done.problem and done.problem not in done.blocked.values():
        out.print(plain(f"last failure: {done.problem}"), soft_wrap=True)
    if done.quarantined:
        out.print(_ASIDE)


def show_verified(found: Verification) -> None:
    """Print how both stores compare; agreement is claimed only where it is."""
    out = console()
    _compared(found)
    if found.agrees:
        out.print("both stores agree")
    elif found.counts:
        out.print("repair this with 'fm-storage outbox repair'")


def show_repaired(done: RepairReport) -> None:
    """Print what differed, what was queued anew, and what became of it."""
    _compared(done.verification)
    console().print(f"{done.enqueued:,} points queued anew")
    if done.drained is not None:
        show_drained(done.drained)


def show_rebuilt(done: RebuildReport) -> None:
    """Print one rebuilt collection."""
    how = "resumed, " if done.resumed else ""
    text = f"{done.collection}: {how}{done.copied:,} points, now {done.target}"
    if done.repair.enqueued:
        text += f"; {done.repair.enqueued:,} changed meanwhile and are queued"
    console().print(plain(text), soft_wrap=True)


def show_quarantined(found: Sequence[Quarantined]) -> None:
    """Print what is set aside, and why."""
    out = console()
    if not found:
        out.print("nothing is set aside")
        return
    table = Table(box=None, pad_edge=False)
    for heading in ("collection", "id", "version", "since", "error"):
        table.add_column(heading)
    for one in found:
        table.add_row(
            plain(one.collection),
            plain(one.id, limit=40),
            str(one.version),
            ago(one.quarantined_at),
            plain(one.error, limit=100),
        )
    out.print(table)
    out.print(
        "correct the record and write it again, or 'quarantine retry' once the "
        "cause is gone, or 'quarantine discard'",
        soft_wrap=True,
    )


def _compared(found: Verification) -> None:
    out = console()
    counts = sorted(found.counts.items())
    differences = ", ".join(f"{count:,} {kind}" for kind, count in counts)
    out.print(
        f"{found.checked:,} points compared, {found.pending:,} on their way: "
        f"{differences or 'no difference'}"
    )
    for one in found.samples[:20]:
        out.print(
            plain(
                f"  {one.kind:8} {one.collection} {one.id} "
                f"(desired {one.desired}, found {one.found})"
            )
        )
    if found.foreign:
        out.print(f"{found.foreign:,} points there were not written by the outbox")
    for name, count in sorted(found.unknown.items()):
        text = f"not in agreement: {count:,} points of {name} have versions of the "
        out.print(plain(f"{text}outbox, and PostgreSQL knows nothing of them"))
    if found.pending or found.failing:
        out.print(
            f"not yet in agreement: {found.pending:,} points are on their way, "
            f"{found.failing:,} of the queue failed and will be tried again; see "
            "'fm-storage outbox status'",
            soft_wrap=True,
        )
    if found.quarantined:
        out.print(f"not in agreement: {_set_aside(found.quarantined)}; {_ASIDE}")


def _set_aside(count: int) -> str:
    if count == 1:
        return "1 point is set aside, the vector store refuses it"
    return f"{count:,} points are set aside, the vector store refuses them"
