"""``fm-storage errors resolve``, ``mute``, ``reopen`` and ``watchers``."""

from __future__ import annotations

import dataclasses
from datetime import datetime
from typing import TYPE_CHECKING, Literal

import click

from fm_storage.cli.common import (
    Settings,
    json_option,
    plain,
    print_json,
    with_errors,
)
from fm_storage.cli.errors.options import AHEAD
from fm_storage.cli.errors.tables import state_text

if TYPE_CHECKING:
    from fm_storage.catalog import ErrorGroup, ErrorManager
    from fm_storage.manager import StorageManager

_ID = click.argument("identity", metavar="ID")


@click.command()
@_ID
@json_option
@click.pass_obj
def resolve(settings: Settings, *, identity: str, as_json: bool) -> None:
    """Call the group of ID resolved; an error after that makes it regressed.

    ID is a group (see 'errors groups'), or the id of one of its errors or its
    beginning.
    """
    _change(settings, identity, "resolved", as_json=as_json)


@click.command()
@_ID
@click.option(
    "--until",
    type=AHEAD,
    help="End: 2h or 7d from now, or a time; without it, until 'errors reopen'.",
)
@json_option
@click.pass_obj
def mute(
    settings: Settings, *, identity: str, until: datetime | None, as_json: bool
) -> None:
    """Mute the group of ID; its errors are recorded and counted as before.

    ID is a group (see 'errors groups'), or the id of one of its errors or its
    beginning.
    """
    _change(settings, identity, "muted", until, as_json=as_json)


@click.command()
@_ID
@json_option
@click.pass_obj
def reopen(settings: Settings, *, identity: str, as_json: bool) -> None:
    """Make the group of ID open again, whatever it was.

    ID is a group (see 'errors groups'), or the id of one of its errors or its
    beginning.
    """
    _change(settings, identity, "open", as_json=as_json)


@click.command()
@json_option
@click.pass_obj
def watchers(settings: Settings, *, as_json: bool) -> None:
    """List who is notified of new and regressed groups, and what fails.

    Applications watch with ErrorManager.watch(); each name gets every event.
    """
    found = with_errors(settings, lambda _, errors: errors.watchers(), qdrant=None)
    if as_json:
        print_json([dataclasses.asdict(one) for one in found])
        return
    for one in found:
        state = (
            f"{one.waiting} waiting, {one.failing} failing" if one.waiting else "idle"
        )
        line = f"{plain(one.watcher).plain}: {one.delivered} delivered, {state}"
        if one.last_error is not None:
            line += f"; next attempt {one.due:%H:%M:%S} UTC: {one.last_error}"
        click.echo(plain(line).plain)
    if not found:
        click.echo("nobody watches; ErrorManager.watch() begins", err=True)


def _change(
    settings: Settings,
    identity: str,
    state: Literal["open", "resolved", "muted"],
    until: datetime | None = None,
    *,
    as_json: bool,
) -> None:
    async def job(storage: StorageManager, errors: ErrorManager) -> ErrorGroup:
        group = await _group(storage, identity)
        if state == "resolved":
            return await errors.resolve(group)
        if state == "muted":
            return await errors.mute(group, until)
        return await errors.reopen(group)

    changed = with_errors(settings, job, qdrant=None)
    if as_json:
        print_json(dataclasses.asdict(changed))
        return
    line = f"{changed.fingerprint} is {state_text(changed).plain}: {changed.module}: "
    click.echo(line + plain(changed.template, limit=100).plain)


async def _group(storage: StorageManager, identity: str) -> str:
    """Return the fingerprint of the group that is meant.

    Raises:
        click.ClickException: None is, or more than one.
    """
    from fm_storage.catalog.query.groups import fetch_groups, hex_of, number_of
    from fm_storage.catalog.query.latest import fetch_by_prefix
    from fm_storage.catalog.query.states import group_of, groups_of

    wanted = identity.strip().lower()
    if len(wanted) == 16 and "-" not in wanted:
        try:
            number = await group_of(storage.pool, number_of(wanted))
            if await fetch_groups(storage.pool, only=[number]):
                return hex_of(number)
        except ValueError:
            pass  # reported below, with what an id looks like
    try:
        entries = await fetch_by_prefix(storage.pool, wanted, limit=20)
    except ValueError:
        raise click.BadParameter(
            f"{identity!r} is neither a group nor an id, nor four digits or more of "
            "its beginning; 'fm-storage errors groups' shows groups",
            param_hint="ID",
        ) from None
    found = {*(await groups_of(storage.pool, [one.id for one in entries])).values()}
    if not found:
        raise click.ClickException(
            f"no group and no error has the id {identity}; 'fm-storage errors groups' "
            "shows groups"
        )
    if len(found) > 1:
        names = ", ".join(sorted(map(hex_of, found)))
        raise click.ClickException(
            f"the id {identity} is not clear, give more of it, or one of the groups "
            f"{names}"
        )
    return hex_of(found.pop())
