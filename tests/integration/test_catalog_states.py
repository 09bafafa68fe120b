"""States of groups: who decides, when a group has come back, what a merge keeps."""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta

import pytest
from click.testing import CliRunner

from fm_storage.catalog import ErrorManager
from fm_storage.catalog.query.groups import number_of
from fm_storage.catalog.query.states import fetch_states
from fm_storage.cli import cli
from fm_storage.errors import InvalidRecord, RecordNotFound

pytestmark = pytest.mark.timeout(120)

NOW = datetime.now(UTC)
HOUR = timedelta(hours=1)


class Undone(Exception):
    """Ends a transaction whose work is not to stay."""


@pytest.fixture
async def errors(storage):
    """Give an error manager over real engines."""
    async with ErrorManager(storage) as manager:
        yield manager


async def merge(executor, kept, merged):
    """Merge two groups as merging does: the members move, and it is recorded."""
    await executor.execute(
        "INSERT INTO fm_storage.group_members (fingerprint, group_id, version) "
        "VALUES ($1::bigint, $1, 1), ($2::bigint, $1, 1) "
        "ON CONFLICT (fingerprint) DO UPDATE SET group_id = EXCLUDED.group_id",
        kept,
        merged,
    )
    await executor.execute(
        "INSERT INTO fm_storage.group_merges (kept, merged, members) "
        "VALUES ($1::bigint, $2::bigint, ARRAY[$2::bigint])",
        kept,
        merged,
    )


async def only(errors):
    """Return the only group there is."""
    [group] = await errors.groups()
    return group


async def test_a_resolved_group_comes_back_with_its_next_error(errors):
    """Not with an error that is late: what counts is when it happened."""
    await errors.record("order 1 refused", module="shop")
    group = await only(errors)
    assert (group.state, group.state_since) == ("open", None)
    resolved = await errors.resolve(group)
    assert resolved.state == "resolved"
    assert abs(resolved.state_since - datetime.now(UTC)) < timedelta(minutes=1)
    await errors.record("order 2 refused", module="shop", timestamp=NOW - HOUR)
    assert (await only(errors)).state == "resolved"
    await errors.record("order 3 refused", module="shop")
    assert (await only(errors)).state == "regressed"
    # However the question is narrowed, the state is that of the whole group.
    [early] = await errors.groups(until=NOW - HOUR / 2)
    assert early.state == "regressed"
    assert (await errors.resolve(group.fingerprint)).state == "resolved"
    assert (await errors.reopen(group)).state == "open"


async def test_an_error_with_a_clock_that_is_ahead_does_not_reopen_at_once(errors):
    """Resolving covers what is there, also from a machine minutes ahead."""
    await errors.record("x", module="m", timestamp=datetime.now(UTC) + HOUR)
    assert (await errors.resolve(await only(errors))).state == "resolved"
    await errors.record("x", module="m", timestamp=datetime.now(UTC) + 2 * HOUR)
    assert (await only(errors)).state == "regressed"


async def test_a_mute_ends_by_itself(errors, storage):
    """Muted for a span, until a time, or until it is reopened."""
    await errors.record("x", module="m")
    group = await only(errors)
    assert (await errors.mute(group)).muted_until is None
    muted = await errors.mute(group, timedelta(days=7))
    assert muted.state == "muted"
    assert muted.muted_until > NOW + timedelta(days=6)
    await errors.record("x", module="m")
    assert (await only(errors)).state == "muted"
    await storage.pool.execute("UPDATE fm_storage.group_states SET until = now()")
    assert (await only(errors)).state == "open"


async def test_groups_are_listed_by_their_state(errors):
    """Each of the four; any other word is refused."""
    for name in ("alpha stops", "beta is lost", "gamma: no route", "delta, at last"):
        await errors.record(name, module="m")
    ours = {one.template[0]: one for one in await errors.groups()}
    await errors.resolve(ours["a"])
    await errors.mute(ours["b"])
    await errors.resolve(ours["g"])
    await errors.record("gamma: no route", module="m")
    for state, first in (
        *(("resolved", "a"), ("muted", "b")),
        *(("regressed", "g"), ("open", "d")),
    ):
        [group] = await errors.groups(state=state)
        assert (group.state, group.template[0]) == (state, first)
    with pytest.raises(InvalidRecord, match="open, resolved, muted, regressed"):
        await errors.groups(state="closed")


async def test_what_no_group_is_named_by_is_refused(errors):
    """Typed errors, with what to give instead."""
    with pytest.raises(InvalidRecord, match="sixteen hexadecimal"):
        await errors.resolve("nonsense")
    with pytest.raises(RecordNotFound):
        await errors.mute("0123456789abcdef")
    await errors.record("x", module="m")
    group = await only(errors)
    with pytest.raises(InvalidRecord, match="has passed"):
        await errors.mute(group, NOW - HOUR)
    with pytest.raises(InvalidRecord, match="without a zone"):
        await errors.mute(group, NOW.replace(tzinfo=None))
    assert (await only(errors)).state == "open"


@pytest.mark.parametrize(
    ("states", "strictest"),
    [
        (("resolved", "resolved"), "resolved"),
        (("resolved", "muted"), "muted"),
        (("muted", "open"), "open"),
        (("resolved", "open", "muted"), "open"),
        (("open", "regressed"), "regressed"),
        (("resolved", "muted", "regressed"), "regressed"),
    ],
)
async def test_the_strictest_state_wins_when_groups_merge(errors, states, strictest):
    """Whichever group gives its name, and also after the errors are purged."""
    numbers = []
    for place, state in enumerate(states):
        name = "kind " + "abc"[place]
        await errors.record(name, module="m")
        [group] = [one for one in await errors.groups() if one.template == name]
        numbers.append(number_of(group.fingerprint))
        if state == "muted":
            await errors.mute(group, HOUR)
        elif state != "open":
            await errors.resolve(group)
        if state == "regressed":
            await errors.record(name, module="m")
    for into in (numbers[0], numbers[-1]):
        with pytest.raises(Undone):
            async with errors.storage.pool.transaction() as tx:
                for other in numbers:
                    if other != into:
                        await merge(tx, into, other)
                found = await fetch_states(tx)
                await tx.execute("DELETE FROM project_errors")
                raise Undone
        expected = {} if strictest == "open" else {into: strictest}
        assert {key: one.state for key, one in found.items()} == expected


async def test_a_split_leaves_both_groups_in_their_state(errors):
    """What was decided about the whole was decided about its parts."""
    groups = []
    for name in ("kind a", "kind b"):
        await errors.record(name, module="m")
        groups += await errors.groups(order="first_seen", limit=1)
    numbers = [number_of(group.fingerprint) for group in groups]
    pool = errors.storage.pool
    await merge(pool, *numbers)
    await errors.resolve(groups[-1])
    assert list(await fetch_states(pool)) == numbers[:1]
    await pool.execute("UPDATE fm_storage.group_merges SET split_at = now()")
    await pool.execute("UPDATE fm_storage.group_members SET group_id = fingerprint")
    found = await fetch_states(pool)
    assert {key: one.state for key, one in found.items()} == dict.fromkeys(
        numbers, "resolved"
    )


@pytest.fixture
def run(monkeypatch, dsn, vector_folder, tmp_path):
    """Give a function that runs the command line against fresh engines."""
    monkeypatch.setenv("FM_STORAGE_POSTGRES__DSN", dsn)
    monkeypatch.setenv("FM_STORAGE_QDRANT__URL", f"embedded:{vector_folder}")
    monkeypatch.setenv("FM_STORAGE_DATA_DIR", str(tmp_path / "data"))

    def invoke(*arguments, code=0):
        result = CliRunner().invoke(cli, ["errors", *map(str, arguments)])
        assert result.exit_code == code, result.output
        return result.stdout + result.stderr

    return invoke


@pytest.mark.lengthy
def test_states_are_set_and_shown_on_the_command_line(run, tmp_path):
    """By group, by id, by the beginning of an id; wrong ones name the remedy."""
    log = tmp_path / "shop.log"
    log.write_text(
        "2024-01-02 03:04:05 ERROR [shop.cart] item 7 lost\n"
        "2024-01-02 03:04:06 ERROR [shop.disk] volume is gone\n"
    )
    run("ingest", log)
    disk, cart = json.loads(run("groups", "--json", "--order", "last_seen"))
    assert "is resolved: shop.cart: item" in run("resolve", cart["fingerprint"])
    assert "resolved" in run("groups", "--severity", "error")
    assert "shop.disk" not in run("groups", "--state", "resolved")
    [found] = json.loads(run("list", "--json", "--module", "shop.disk"))
    assert found["state"] == "open"
    assert "is muted until" in run("mute", found["id"][:13], "--until", "7d")
    [found] = json.loads(run("list", "--json", "--module", "shop.disk"))
    assert found["state"] == "muted"
    assert "muted until" in run("list", "--module", "shop.disk")
    assert json.loads(run("reopen", found["id"], "--json"))["state"] == "open"
    assert "nobody watches" in run("watchers")
    assert json.loads(run("watchers", "--json")) == []
    assert "errors groups' shows groups" in run("resolve", "zz", code=2)
    assert "shows groups" in run("resolve", "0123456789abcdef", code=1)
    assert "has passed" in run(
        "mute", disk["fingerprint"], "--until", "2020-01-01", code=2
    )
    assert "neither an age" in run("mute", disk["fingerprint"], "--until", "x", code=2)


@pytest.mark.lengthy
def test_a_merged_group_is_taken_apart_on_the_command_line(run, tmp_path):
    """Its members are listed; those that are named become a group of their own."""
    log = tmp_path / "shop.log"
    log.write_text(
        "".join(
            f"2024-01-02 03:04:0{at} ERROR [shop.cart] cannot start {name} now\n"
            for at, name in enumerate(["CartService", "MailService", "StockService"])
        )
    )
    run("ingest", log)
    [group] = json.loads(run("groups", "--json"))
    rows = run("split", group["fingerprint"]).splitlines()
    assert [row.split("\t")[1] for row in rows] == [
        f"shop.cart: cannot start {name} now"
        for name in ("CartService", "MailService", "StockService")
    ]
    last = rows[-1].split("\t")[0]
    assert "cannot start StockService" in run("split", group["fingerprint"], last)
    assert sorted(one["count"] for one in json.loads(run("groups", "--json"))) == [1, 2]
    assert len(json.loads(run("split", group["fingerprint"], "--json"))) == 2
    run("split", group["fingerprint"], last, code=1)  # it is no member any more
    assert "ID is a group" in run("split", "--help")
