"""``fm-storage outbox``: the vectors on their way to Qdrant, and both stores' peace.

Opened without the background drainer, so that ``status`` shows the queue as it
is and only ``drain`` delivers.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta
from typing import TYPE_CHECKING, Any, TypeVar

import click
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn
from rich.table import Table

from fm_storage.cli.common import (
    Settings,
    ago,
    console,
    json_option,
    plain,
    print_json,
    with_storage,
)

if TYPE_CHECKING:
    from fm_storage._typing import Progress as Report
    from fm_storage.manager import StorageManager
    from fm_storage.outbox import DrainReport, OutboxStatus, Verification

__all__ = ["outbox"]

T = TypeVar("T")

_COLLECTION = click.argument("collection", required=False)


@click.group(
    epilog=(
        "\b\nExamples:\n"
        "  fm-storage outbox status            how far the vector store is behind\n"
        "  fm-storage outbox drain             deliver what is due, now\n"
        "  fm-storage outbox verify            compare both stores, exactly\n"
        "  fm-storage outbox repair            mend only what differs\n"
        "  fm-storage outbox rebuild errors    from PostgreSQL, behind the name\n"
        "  fm-storage outbox quarantine list   points that Qdrant refuses\n"
    )
)
def outbox() -> None:
    """Look after the vectors on their way to Qdrant."""


@outbox.command()
@json_option
@click.pass_obj
def status(settings: Settings, *, as_json: bool) -> None:
    """Say how far the vector store is behind, by collection.

    Exit code 1 if points are set aside.
    """
    found = _with(settings, lambda storage: storage.outbox.status())
    if as_json:
        print_json(_plain(found))
    else:
        _show_status(found)
    if found.quarantined:
        raise click.exceptions.Exit(1)


@outbox.command()
@click.option(
    "--timeout", default=60.0, show_default=True, help="Seconds to go on at most."
)
@json_option
@click.pass_obj
def drain(settings: Settings, *, timeout: float, as_json: bool) -> None:
    """Deliver everything that is due; what waits after a failure is tried at once.

    Points whose vectors are made by the application's own vectorizer wait for it.
    Exit code 1 if something is left.
    """
    with _progress("delivering", quiet=as_json) as report:
        done = _with(
            settings,
            lambda storage: storage.outbox.drain(timeout=timeout, progress=report),
        )
    if as_json:
        print_json(_plain(done))
    else:
        _show_drained(done)
    if done.remaining or done.quarantined:
        raise click.exceptions.Exit(1)


@outbox.command()
@_COLLECTION
@json_option
@click.pass_obj
def verify(settings: Settings, *, collection: str | None, as_json: bool) -> None:
    """Compare both stores: ids, versions, payloads. Changes nothing.

    Exact also while the application writes. Exit code 1 if they differ.
    """
    with _progress("comparing", quiet=as_json) as report:
        found = _with(
            settings,
            lambda storage: storage.outbox.verify(collection, progress=report),
        )
    if as_json:
        print_json({"agrees": found.agrees, **_plain(found)})
    else:
        _show_verified(found)
    if not found.agrees:
        raise click.exceptions.Exit(1)


@outbox.command()
@_COLLECTION
@click.option(
    "--timeout", default=60.0, show_default=True, help="Seconds to deliver at most."
)
@json_option
@click.pass_obj
def repair(
    settings: Settings, *, collection: str | None, timeout: float, as_json: bool
) -> None:
    """Deliver anew what verify would find, and nothing else."""
    with _progress("comparing", quiet=as_json) as report:
        done = _with(
            settings,
            lambda storage: storage.outbox.repair(
                collection, drain=timeout, progress=report
            ),
        )
    if as_json:
        print_json(_plain(done))
    else:
        _show_verified(done.verification)
        console().print(f"{done.enqueued:,} points queued anew")
        if done.drained is not None:
            _show_drained(done.drained)
    if done.drained is not None and done.drained.remaining:
        raise click.exceptions.Exit(1)


@outbox.command()
@click.argument("collections", nargs=-1)
@click.option("--all", "everything", is_flag=True, help="Every collection.")
@click.option(
    "--adopt",
    is_flag=True,
    help="First make the configured vector store this database's (a move).",
)
@json_option
@click.pass_obj
def rebuild(
    settings: Settings,
    *,
    collections: Sequence[str],
    everything: bool,
    adopt: bool,
    as_json: bool,
) -> None:
    """Recreate collections from PostgreSQL, behind their names, while writes go on.

    No embedder is called. Interrupted, the same command goes on where it was.
    """
    if bool(collections) == everything and not adopt:
        raise click.UsageError("name collections, or give --all")

    with _progress("copying", quiet=as_json) as report:

        async def job(storage: StorageManager) -> list[Any]:
            if adopt:
                await storage.outbox.adopt()
            names = (
                await storage.outbox.collections() if everything else list(collections)
            )
            return [
                await storage.outbox.rebuild(name, progress=report) for name in names
            ]

        done = _with(settings, job)
    if as_json:
        print_json([_plain(one) for one in done])
        return
    if adopt:
        console().print("the configured vector store is this database's now")
    for one in done:
        how = "resumed, " if one.resumed else ""
        console().print(
            plain(f"{one.collection}: {how}{one.copied:,} points, now {one.target}")
        )


@outbox.group()
def quarantine() -> None:
    """Points that the vector store refuses on their own."""


@quarantine.command("list")
@_COLLECTION
@click.option("--limit", default=100, show_default=True, help="Points at most.")
@json_option
@click.pass_obj
def list_(
    settings: Settings, *, collection: str | None, limit: int, as_json: bool
) -> None:
    """List what is set aside, and why."""
    found = _with(
        settings,
        lambda storage: storage.outbox.quarantine_list(collection, limit=limit),
    )
    if as_json:
        print_json([_plain(one) for one in found])
        return
    if not found:
        console().print("nothing is set aside")
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
    console().print(table)


@quarantine.command()
@_COLLECTION
@click.option("--id", "ids", multiple=True, help="Only this point; may be repeated.")
@json_option
@click.pass_obj
def retry(
    settings: Settings, *, collection: str | None, ids: Sequence[str], as_json: bool
) -> None:
    """Deliver set-aside points once more; all, unless some are named."""
    count = _with(
        settings,
        lambda storage: storage.outbox.quarantine_retry(collection, _ids(ids)),
    )
    _counted(count, "will be tried again", as_json=as_json)


@quarantine.command()
@_COLLECTION
@click.option("--id", "ids", multiple=True, help="Only this point; may be repeated.")
@click.option("--yes", is_flag=True, help="Do not ask.")
@json_option
@click.pass_obj
def discard(
    settings: Settings,
    *,
    collection: str | None,
    ids: Sequence[str],
    yes: bool,
    as_json: bool,
) -> None:
    """Give set-aside points up: they go from both stores, their records stay."""
    if not yes:
        what = f"{len(ids)} points" if ids else "every set-aside point"
        click.confirm(f"Give up {what}?", abort=True, err=True)
    count = _with(
        settings,
        lambda storage: storage.outbox.quarantine_discard(collection, _ids(ids)),
    )
    _counted(count, "given up", as_json=as_json)


def _with(settings: Settings, job: Callable[[StorageManager], Awaitable[T]]) -> T:
    still = settings.load().outbox.model_copy(update={"drain": False})
    return with_storage(settings, job, outbox=still)


def _ids(given: Sequence[str]) -> list[int | str] | None:
    return [int(one) if one.isdecimal() else one for one in given] or None


def _plain(value: Any) -> dict[str, Any]:  # noqa: ANN401 - any result
    """Return a result as JSON takes it; durations in seconds."""
    return {
        field.name: _json(getattr(value, field.name))
        for field in dataclasses.fields(value)
    }


def _json(value: Any) -> Any:  # noqa: ANN401 - any field
    if isinstance(value, timedelta):
        return value.total_seconds()
    if dataclasses.is_dataclass(value):
        return _plain(value)
    if isinstance(value, tuple):
        return [_json(one) for one in value]
    return value


@contextmanager
def _progress(what: str, *, quiet: bool) -> Iterator[Report | None]:
    """Show a bar on standard error, if a person looks at it."""
    stderr = Console(stderr=True)
    if quiet or not stderr.is_terminal:
        yield None
        return
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn())
    with Progress(*columns, console=stderr, transient=True) as bar:
        task = bar.add_task(what, total=None)
        yield lambda done, total: bar.update(task, completed=done, total=total)


def _counted(count: int, what: str, *, as_json: bool) -> None:
    if as_json:
        print_json({"count": count})
    else:
        console().print(f"{count:,} {what}")


def _seconds(age: timedelta | None) -> str:
    return "" if age is None else f"{age.total_seconds():,.1f} s"


def _show_status(found: OutboxStatus) -> None:
    if not found.collections:
        console().print("the vector store is up to date")
        return
    table = Table(box=None, pad_edge=False)
    for heading in ("collection", "pending", "failing", "set aside", "oldest"):
        table.add_column(
            heading, justify="left" if heading == "collection" else "right"
        )
    for one in found.collections:
        table.add_row(
            plain(one.collection),
            f"{one.pending:,}",
            f"{one.failing:,}",
            f"{one.quarantined:,}",
            _seconds(one.oldest_age),
        )
    console().print(table)
    console().print(
        f"{found.pending:,} pending, {found.quarantined:,} set aside, "
        f"{found.tombstones:,} deletions to be repeated"
    )


def _show_drained(done: DrainReport) -> None:
    console().print(
        f"{done.delivered:,} delivered, {done.quarantined:,} set aside, "
        f"{done.remaining:,} left"
    )
    if done.problem and done.remaining:
        console().print(plain(done.problem))


def _show_verified(found: Verification) -> None:
    said = ", ".join(
        f"{count:,} {kind}" for kind, count in sorted(found.counts.items())
    )
    console().print(
        f"{found.checked:,} points compared, {found.pending:,} on their way: "
        f"{said or 'both stores agree'}"
    )
    for one in found.samples[:20]:
        console().print(
            plain(
                f"  {one.kind:8} {one.collection} {one.id} "
                f"(desired {one.desired}, found {one.found})"
            )
        )
