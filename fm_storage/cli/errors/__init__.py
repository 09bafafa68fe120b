"""``fm-storage errors``: look at the catalogue, and put logs into it."""

from __future__ import annotations

import dataclasses
import re
from typing import TYPE_CHECKING, Any
from uuid import UUID

import click
from rich.text import Text

from fm_storage.cli.common import (
    Settings,
    json_option,
    plain,
    print_json,
    with_errors,
    with_storage,
)
from fm_storage.cli.errors.long_running import (
    formats,
    ingest,
    purge,
    report,
    tail,
)
from fm_storage.cli.errors.options import filters, severity_text
from fm_storage.cli.errors.states import mute, reopen, resolve, split, watchers
from fm_storage.cli.errors.tables import (
    Row,
    latest_row,
    print_entry,
    print_rows,
    say_nothing,
    state_text,
    when,
)

if TYPE_CHECKING:
    from fm_storage.catalog import ErrorManager, Origin, SimilarEntry
    from fm_storage.catalog.query.states import GroupState
    from fm_storage.manager import StorageManager
    from fm_storage.repositories import ErrorEntry

__all__ = ["errors"]

_ORIGIN = ("trace_id", "span_id", "release", "environment")

_EQUAL = 500
"""Hits asked for where one of a group is shown: equal errors come together."""

_EPILOG = """\b
Examples:
  fm-storage errors ingest server.log        put a log into the catalogue
  fm-storage errors groups --since 1d        what happened most since yesterday
  fm-storage errors similar 'read timeout'   errors that look like this text
  fm-storage errors list --group 25b9c7e2…   the errors of one group
  fm-storage errors show 01a1ffd8            one error, with its trace
  fm-storage errors resolve 25b9c7e2…        it is repaired; say so if it comes back
  fm-storage errors mute 25b9c7e2… --until 7d
  fm-storage errors tail -f --severity error new errors, as they happen
  fm-storage errors report errors.html       one page for a colleague
  fm-storage errors purge --older-than 90d   forget what is old
"""


@click.group(epilog=_EPILOG)
def errors() -> None:
    """List, show, ingest, group and compare recorded errors."""


for _command in (
    formats,
    ingest,
    mute,
    purge,
    reopen,
    report,
    resolve,
    split,
    tail,
    watchers,
):
    errors.add_command(_command)


@errors.command("list")
@filters
@click.option("--group", metavar="GROUP", help="Only this group (see 'errors groups').")
@json_option
@click.pass_obj
def list_errors(
    settings: Settings,
    /,
    *,
    limit: int,
    group: str | None,
    as_json: bool,
    **filters: Any,
) -> None:
    """List the latest errors, newest first."""
    if group is not None and not _is_group(group):
        raise click.BadParameter(
            "a group has sixteen hexadecimal digits; 'fm-storage errors groups' "
            "shows them",
            param_hint="--group",
        )

    async def job(
        storage: StorageManager,
    ) -> tuple[list[ErrorEntry], list[GroupState | None], dict[UUID, Origin]]:
        from fm_storage.catalog.query.latest import fetch_latest
        from fm_storage.catalog.query.states import fetch_states, groups_of

        found = await fetch_latest(storage.pool, limit=limit, group=group, **filters)
        ids = [entry.id for entry in found]
        groups = await groups_of(storage.pool, ids)
        states = await fetch_states(storage.pool, list(groups.values()))
        return (
            found,
            [states.get(groups.get(one, 0)) for one in ids],
            await _origins(storage, ids),
        )

    found, states, origins = with_storage(settings, job, qdrant=None)
    if as_json:
        print_json(
            [
                {
                    **_as_json(entry, origins),
                    "state": state.state if state else "open",
                }
                for entry, state in zip(found, states, strict=True)
            ]
        )
    elif found:
        titles = ("when", "severity", "module", "message", "id")
        print_rows(titles, map(latest_row, found, states), whole=True)
    else:
        say_nothing(filtered=_filtered(group, **filters))


@errors.command()
@click.argument("error_id", metavar="ID")
@json_option
@click.pass_obj
def show(
    settings: Settings,
    *,
    error_id: str,
    as_json: bool,
) -> None:
    """Show one error with its context and trace.

    ID is the id of an error or its beginning, or a group: of that the worst error
    is shown.
    """

    async def job(
        storage: StorageManager,
    ) -> tuple[list[ErrorEntry], dict[UUID, Origin]]:
        from fm_storage.catalog.query.groups import fetch_groups, number_of
        from fm_storage.catalog.query.latest import fetch_by_prefix

        found = await fetch_by_prefix(storage.pool, error_id)
        if not found and _is_group(error_id):
            only = [number_of(error_id)]
            groups = await fetch_groups(storage.pool, only=only)
            found = [group.example for group in groups]
        return found, await _origins(storage, [entry.id for entry in found])

    try:
        found, origins = with_storage(settings, job, qdrant=None)
    except ValueError:
        raise click.BadParameter(
            f"{error_id!r} is no id, nor four digits or more of its beginning; "
            "'fm-storage errors list' shows ids",
            param_hint="ID",
        ) from None
    if not found:
        raise click.ClickException(
            f"no error has the id {error_id}; 'fm-storage errors list' shows ids"
        )
    if len(found) > 1:
        ids = ", ".join(str(entry.id) for entry in found)
        raise click.ClickException(
            f"the id {error_id} is not clear, give more of it: {ids}, …"
        )
    if as_json:
        print_json(_as_json(found[0], origins))
        return
    print_entry(found[0], origins.get(found[0].id))


@errors.command()
@filters
@click.option(
    "--order",
    type=click.Choice(("count", "severity", "last_seen", "first_seen")),
    default="count",
    show_default=True,
    help="Most frequent, most severe, or newest first.",
)
@click.option(
    "--state",
    type=click.Choice(("open", "resolved", "muted", "regressed")),
    help="Only groups in this state.",
)
@json_option
@click.pass_obj
def groups(
    settings: Settings,
    /,
    *,
    limit: int,
    order: Any,
    state: Any,
    as_json: bool,
    **filters: Any,
) -> None:
    """List groups of equal errors, the commonest first.

    'errors list --group GROUP' lists the errors of one, 'errors show GROUP' shows
    its worst.
    """
    found = with_errors(
        settings,
        lambda _, manager: manager.groups(
            limit=limit, order=order, state=state, **filters
        ),
        replica=True,
        qdrant=None,
    )
    if as_json:
        print_json([dataclasses.asdict(group) for group in found])
        return
    if not found:
        say_nothing(filtered=_filtered(state, **filters))
        return
    widest = max(len(f"{group.count}") for group in found)
    rows: list[Row] = [
        (
            Text(f"{group.count:>{widest}}"),
            severity_text(group.severity),
            plain(group.module),
            plain(group.template),
            Text(f"{group.fingerprint}  {when(group.last_seen)}  ") + state_text(group),
        )
        for group in found
    ]
    print_rows(("count", "severity", "module", "message", "group, last, state"), rows)


@errors.command()
@click.argument("text")
@filters
@click.option("--each", is_flag=True, help="Show every error, not one of each group.")
@json_option
@click.pass_obj
def similar(
    settings: Settings,
    /,
    *,
    text: str,
    limit: int,
    each: bool,
    as_json: bool,
    **filters: Any,
) -> None:
    """List errors like TEXT, which may also be the id of an error.

    Of equal ones (a group) the most similar is shown, with --each all of them.
    """
    each = each or as_json
    if not text.strip():
        raise click.BadParameter("it is empty; give a text or an id", param_hint="TEXT")

    async def job(
        storage: StorageManager, manager: ErrorManager
    ) -> tuple[list[SimilarEntry], int]:
        question: ErrorEntry | str | None = text
        if _is_uuid(text):
            question = await storage.error_entries.find_by_id(UUID(text))
        if question is None:
            raise click.ClickException(
                f"no error has the id {text}; 'fm-storage errors list' shows ids"
            )
        most = limit if each else max(limit, _EQUAL)
        hits = await manager.find_similar(question, most, **filters)
        kept = hits if each else _one_a_group(hits)[:limit]
        return kept, await storage.outbox.pending()

    found, pending = with_errors(settings, job)
    if pending:
        click.echo(
            f"{pending} errors are not searchable yet; run 'fm-storage outbox drain'",
            err=True,
        )
    if as_json:
        print_json([dataclasses.asdict(hit) for hit in found])
        return
    if not found:
        say_nothing(filtered=_filtered(**filters) or bool(pending))
        return
    rows: list[Row] = [
        (
            Text(f"{hit.score:.3f}"),
            severity_text(hit.entry.severity),
            plain(hit.entry.module),
            plain(hit.entry.message),
            Text(str(hit.entry.id)),
        )
        for hit in found
    ]
    print_rows(("score", "severity", "module", "message", "id"), rows, whole=True)


def _one_a_group(hits: list[SimilarEntry]) -> list[SimilarEntry]:
    from fm_storage.catalog.record.fingerprint import fingerprint_of

    found: dict[int, SimilarEntry] = {}
    for hit in hits:
        one = hit.entry
        group = fingerprint_of(
            one.message,
            module=one.module,
            error_code=one.error_code,
            stack_trace=one.stack_trace,
        )
        found.setdefault(group.value, hit)
    return list(found.values())


async def _origins(storage: StorageManager, ids: list[UUID]) -> dict[UUID, Origin]:
    from fm_storage.catalog.record.store import fetch_origins

    return await fetch_origins(storage.pool, ids)


def _as_json(entry: ErrorEntry, origins: dict[UUID, Origin]) -> dict[str, Any]:
    origin = origins.get(entry.id)
    known = {} if origin is None else origin._asdict()
    return {
        **dataclasses.asdict(entry),
        **{name: known.get(name) for name in _ORIGIN},
    }


def _filtered(*more: object, **filters: object) -> bool:
    return any(one is not None for one in (*more, *filters.values()))


def _is_group(text: str) -> bool:
    return re.fullmatch("[0-9a-f]{16}", text) is not None


def _is_uuid(text: str) -> bool:
    try:
        UUID(text)
    except ValueError:
        return False
    return True
