"""``fm-storage errors resolve``, ``mute``, ``reopen``, ``split`` and ``watchers``."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
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
    from fm_storage.catalog import ErrorGroup, ErrorManager, GroupMember
    from fm_storage.manager import StorageManager

_WHAT = (
    "ID is a group (see 'errors groups'), or the id of one of its errors or its "
    "beginning."
)


def _of_group(
    *parameters: Callable[[Callable[..., None]], Callable[..., None]],
) -> Callable[[Callable[..., None]], click.Command]:
    """Make a command of a function that does something to the group of ID."""

    def decorate(function: Callable[..., None]) -> click.Command:
        text = f"{function.__doc__}\n\n{_WHAT}"
        function = json_option(click.pass_obj(function))
        for one in (*reversed(parameters), click.argument("identity", metavar="ID")):
            function = one(function)
        return click.command(help=text)(function)

    return decorate


@_of_group()
def resolve(settings: Settings, *, identity: str, as_json: bool) -> None:
    """Call the group of ID resolved; an error after that makes it regressed."""
    _change(settings, identity, "resolved", as_json=as_json)


@_of_group(
    click.option(
        "--until",
        type=AHEAD,
        help="End: 2h or 7d from now, or a time; without it, until 'errors reopen'.",
    ),
)
def mute(
    settings: Settings, *, identity: str, until: datetime | None, as_json: bool
) -> None:
    """Mute the group of ID; its errors are recorded and counted as before."""
    _change(settings, identity, "muted", until, as_json=as_json)


@_of_group()
def reopen(settings: Settings, *, identity: str, as_json: bool) -> None:
    """Make the group of ID open again, whatever it was."""
    _change(settings, identity, "open", as_json=as_json)


@_of_group(click.argument("members", metavar="[MEMBER]...", nargs=-1))
def split(
    settings: Settings, *, identity: str, members: tuple[str, ...], as_json: bool
) -> None:
    """Make MEMBERs of the group of ID a group of their own; without any, list them.

    It is for good: they are not merged again. Both groups keep the state.
    """

    async def job(
        storage: StorageManager, errors: ErrorManager
    ) -> list[GroupMember] | ErrorGroup:
        group = await _group(storage, identity)
        if members:
            return await errors.split_group(group, members)
        return await errors.group_members(group)

    found = with_errors(settings, job, qdrant=None)
    if not isinstance(found, list):
        _print_group(found, as_json=as_json)
    elif as_json:
        print_json([dataclasses.asdict(one) for one in found])
    else:
        for one in found:
            text = plain(f"{one.module}: {one.template}", limit=200).plain
            click.echo(f"{one.fingerprint}\t{text}")


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

    _print_group(with_errors(settings, job, qdrant=None), as_json=as_json)


def _print_group(group: ErrorGroup, *, as_json: bool) -> None:
    if as_json:
        print_json(dataclasses.asdict(group))
        return
    line = f"{group.fingerprint} is {state_text(group).plain}: {group.module}: "
    click.echo(line + plain(group.template, limit=100).plain)


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
