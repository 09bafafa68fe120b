"""``fm-storage outbox``: delivery of vectors to Qdrant, and agreement of both stores.

Opened without the background drainer, so that ``status`` shows the queue as it
is and only ``drain`` delivers.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from typing import TYPE_CHECKING, TypeVar

import click

from fm_storage.cli.common import (
    SECONDS,
    Settings,
    confirm,
    console,
    json_option,
    plain,
    print_json,
    progress_bar,
    with_errors,
    with_storage,
)
from fm_storage.cli.outbox_text import (
    as_plain,
    show_drained,
    show_quarantined,
    show_rebuilt,
    show_repaired,
    show_status,
    show_verified,
)

if TYPE_CHECKING:
    from fm_storage.manager import StorageManager
    from fm_storage.outbox import RebuildReport, RepairReport, Verification

T = TypeVar("T")

_COLLECTION = click.argument("collection", required=False)


@click.group(
    epilog=(
        "\b\nExamples:\n"
        "  fm-storage outbox status            how far the vector store is behind\n"
        "  fm-storage outbox drain             deliver what is due, now\n"
        "  fm-storage outbox verify            compare both stores, exactly\n"
        "  fm-storage outbox repair            repair only what differs\n"
        "  fm-storage outbox rebuild NAME      from PostgreSQL, behind the name\n"
        "  fm-storage outbox quarantine list   points that Qdrant refuses\n"
        "  fm-storage outbox track TABLE NAME --text COLUMN   follow a table\n"
    )
)
def outbox() -> None:
    """Deliver vectors to Qdrant, and compare and repair both stores."""


@outbox.command()
@json_option
@click.pass_obj
def status(settings: Settings, *, as_json: bool) -> None:
    """Show how far the vector store is behind, by collection, and why.

    Names rebuilds that were interrupted: how far they came, and how to go on.
    Exit code 1 if points are set aside, or if deliveries fail.
    """
    found = _with(settings, lambda storage: storage.outbox.status())
    if as_json:
        print_json(as_plain(found))
    else:
        show_status(found)
    if found.quarantined or any(one.failing for one in found.collections):
        raise click.exceptions.Exit(1)


@outbox.command()
@click.option(
    "--timeout",
    type=SECONDS,
    default=60.0,
    show_default=True,
    help="Maximum number of seconds.",
)
@json_option
@click.pass_obj
def drain(settings: Settings, *, timeout: float, as_json: bool) -> None:
    """Deliver everything that is due; what waits after a failure is tried at once.

    Names the collections that cannot be written, and the remedy. Points whose vectors
    are made by the application's own vectorizer wait for the application. Exit
    code 1 if something is left or set aside.
    """
    with progress_bar("delivering", quiet=as_json) as report:
        done = _with_catalogue(
            settings,
            lambda storage: storage.outbox.drain(timeout=timeout, progress=report),
        )
    if as_json:
        print_json(as_plain(done))
    else:
        show_drained(done)
    if done.remaining or done.quarantined:
        raise click.exceptions.Exit(1)


@outbox.command()
@_COLLECTION
@json_option
@click.pass_obj
def verify(settings: Settings, *, collection: str | None, as_json: bool) -> None:
    """Compare both stores: ids, versions, payloads. Changes nothing.

    Exact also while the application writes. Exit code 1 if they differ, or if
    points are set aside: those differ until they are retried or discarded.
    """
    with progress_bar("comparing", quiet=as_json) as report:

        async def job(storage: StorageManager) -> Verification:
            await _known(storage, collection)
            return await storage.outbox.verify(collection, progress=report)

        found = _with(settings, job)
    if as_json:
        print_json({"agrees": found.agrees, **as_plain(found)})
    else:
        show_verified(found)
    if not found.agrees:
        raise click.exceptions.Exit(1)


@outbox.command()
@_COLLECTION
@click.option(
    "--timeout",
    type=SECONDS,
    default=60.0,
    show_default=True,
    help="Maximum number of seconds to deliver.",
)
@json_option
@click.pass_obj
def repair(
    settings: Settings, *, collection: str | None, timeout: float, as_json: bool
) -> None:
    """Deliver anew what verify would find, and nothing else.

    Exit code 1 if something is left, or if points are set aside.
    """
    with progress_bar("comparing", quiet=as_json) as report:

        async def job(storage: StorageManager) -> RepairReport:
            await _known(storage, collection)
            return await storage.outbox.repair(
                collection, drain=timeout, progress=report
            )

        done = _with_catalogue(settings, job)
    if as_json:
        print_json(as_plain(done))
    else:
        show_repaired(done)
    drained = done.drained
    left = drained is not None and (drained.remaining or drained.quarantined)
    if left or done.verification.quarantined:
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

    with progress_bar("copying", quiet=as_json) as report:

        async def job(storage: StorageManager) -> list[RebuildReport]:
            for name in collections:
                await _known(storage, name)
            if adopt:
                await storage.outbox.adopt()
            names = (
                await storage.outbox.collections() if everything else list(collections)
            )
            return [
                await storage.outbox.rebuild(name, progress=report) for name in names
            ]

        done = _with_catalogue(settings, job)
    if as_json:
        print_json([as_plain(one) for one in done])
        return
    if adopt:
        console().print("the configured vector store is this database's now")
    for one in done:
        show_rebuilt(one)


@outbox.command()
@click.argument("table")
@click.argument("collection")
@click.option("--text", multiple=True, required=True, help="Column to embed.")
@click.option("--payload", multiple=True, help="Column that the points carry.")
@click.option("--key", default="id", show_default=True, help="Key column.")
@click.option("--sql", is_flag=True, help="Print the migration; change nothing.")
@json_option
@click.pass_obj
def track(
    settings: Settings,
    *,
    table: str,
    collection: str,
    text: Sequence[str],
    payload: Sequence[str],
    key: str,
    sql: bool,
    as_json: bool,
) -> None:
    """Have the rows of TABLE be points of COLLECTION, for every writer.

    Makes triggers, which takes the owner of the table. Rows from before are brought
    by 'backfill'; the application embeds them, see Outbox.track(). --text and
    --payload may be repeated.
    """

    async def job(storage: StorageManager) -> tuple[str, str] | bool:
        made = storage.outbox
        if sql:
            return await made.track_script(
                table, collection, text=text, payload=payload, key=key
            )
        return await made.track(table, collection, text=text, payload=payload, key=key)

    done = _with(settings, job)
    if as_json:
        if isinstance(done, tuple):
            print_json({"up": done[0], "down": done[1]})
        else:
            print_json({"changed": done})
        return
    if isinstance(done, tuple):
        click.echo(f"-- Follows {table} as {collection}.\n\n{done[0]}")
        click.echo(f"-- Its rollback:\n\n{done[1]}")
        return
    what = "is followed from now on" if done else "was followed already"
    console().print(
        plain(f"{table} {what}; 'fm-storage outbox backfill {collection}' brings rows")
    )


@outbox.command()
@click.argument("collection")
@json_option
@click.pass_obj
def untrack(settings: Settings, *, collection: str, as_json: bool) -> None:
    """Stop following the table of COLLECTION; its points stay as they are."""
    if not _with(settings, lambda storage: storage.outbox.untrack(collection)):
        raise click.ClickException(f"no table is followed as {collection}")
    if as_json:
        print_json({"changed": True})
        return
    console().print(plain(f"no table is followed as {collection} any more"))


@outbox.command()
@click.argument("collection")
@click.option(
    "--batch-size", default=2000, show_default=True, help="Rows of one transaction."
)
@json_option
@click.pass_obj
def backfill(
    settings: Settings, *, collection: str, batch_size: int, as_json: bool
) -> None:
    """Make points of the rows that a tracked table had before it was tracked.

    Interrupted, the same command goes on where it was.
    """
    with progress_bar("reading", quiet=as_json) as report:
        count = _with(
            settings,
            lambda storage: storage.outbox.backfill(
                collection, batch_size=batch_size, progress=report
            ),
        )
    _counted(count, "rows read", as_json=as_json)


@outbox.group()
def quarantine() -> None:
    """Points that the vector store refuses on their own."""


@quarantine.command("list")
@_COLLECTION
@click.option(
    "--limit", default=100, show_default=True, help="Maximum number of points."
)
@json_option
@click.pass_obj
def list_(
    settings: Settings, *, collection: str | None, limit: int, as_json: bool
) -> None:
    """List what is set aside, and why. Exit code 1 if anything is."""
    found = _with(
        settings,
        lambda storage: storage.outbox.quarantine_list(collection, limit=limit),
    )
    if as_json:
        print_json([as_plain(one) for one in found])
    else:
        show_quarantined(found)
    if found:
        raise click.exceptions.Exit(1)


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
@click.option("--yes", is_flag=True, help="Skip the confirmation.")
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
    what = f"{len(ids)} points" if ids else "every set-aside point"
    if not yes and not confirm(f"Give up {what}?", "gives them up"):
        raise click.Abort
    count = _with(
        settings,
        lambda storage: storage.outbox.quarantine_discard(collection, _ids(ids)),
    )
    _counted(count, "given up", as_json=as_json)


def _with(settings: Settings, job: Callable[[StorageManager], Awaitable[T]]) -> T:
    still = settings.load().outbox.model_copy(update={"drain": False})
    return with_storage(settings, job, outbox=still)


def _with_catalogue(
    settings: Settings, job: Callable[[StorageManager], Awaitable[T]]
) -> T:
    """Do as ``_with()``, able to make the vectors of recorded errors."""
    still = settings.load().outbox.model_copy(update={"drain": False})
    return with_errors(settings, lambda storage, _: job(storage), outbox=still)


async def _known(storage: StorageManager, collection: str | None) -> None:
    """Refuse a name that the outbox never wrote to, which is a misspelling."""
    names = await storage.outbox.collections()
    if collection is not None and collection not in names:
        raise click.BadParameter(
            f"nothing was ever written to {collection!r} through the outbox; "
            f"known: {', '.join(names) or 'none'}",
            param_hint="COLLECTION",
        )


def _ids(given: Sequence[str]) -> list[int | str] | None:
    return [int(one) if one.isdecimal() else one for one in given] or None


def _counted(count: int, what: str, *, as_json: bool) -> None:
    if as_json:
        print_json({"count": count})
    else:
        console().print(f"{count:,} {what}")
