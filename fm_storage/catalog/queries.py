"""Questions to the catalogue that need more than one table or both stores."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Any, get_args
from uuid import UUID

from fm_storage.catalog.query.analyzer import Analyzer
from fm_storage.catalog.query.arguments import refuse_unclear, span_of
from fm_storage.catalog.query.groups import (
    ErrorGroup,
    Order,
    fetch_groups,
    number_of,
)
from fm_storage.catalog.query.similarity import (
    MORE,
    SimilarEntry,
    cosine_of,
    features_of,
    payload_filter,
    question_of,
    score_of,
)
from fm_storage.catalog.query.splitting import (
    GroupMember,
    fetch_members,
    split_group,
)
from fm_storage.catalog.query.states import (
    State,
    end_of_mute,
    group_of,
    set_state,
)
from fm_storage.catalog.query.tail import tail_errors
from fm_storage.catalog.record.drafts import severity_from
from fm_storage.catalog.record.embedding import text_of_entry
from fm_storage.catalog.record.recorder import Recorder
from fm_storage.catalog.record.row import Recorded
from fm_storage.catalog.report.page import draw
from fm_storage.catalog.report.report import Report, make_report
from fm_storage.errors import (
    CollectionNotFound,
    InvalidRecord,
    RecordNotFound,
)
from fm_storage.postgres.arguments import of_kind
from fm_storage.repositories import ErrorEntry, Severity

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from contextlib import AbstractAsyncContextManager

    from fm_storage.catalog.ports import Storage
    from fm_storage.postgres import Pool


class CatalogQueries:
    """The reading half of an ``ErrorManager``; its methods are documented there.

    Args:
        storage: Where the entries and their vectors are.
        recorder: Knows the vectorizer, and what is still on its way.
        reads: The pool to read from; ``storage.pool`` if None.
    """

    def __init__(
        self, storage: Storage, recorder: Recorder, reads: Pool | None = None
    ) -> None:
        self.analyzer = Analyzer(storage, reads)
        self._storage = storage
        self._recorder = recorder

    async def groups(
        self,
        *,
        limit: int,
        module: str | None,
        severity: Severity | str | None,
        since: datetime | None,
        until: datetime | None,
        order: Order,
        state: State | None,
    ) -> list[ErrorGroup]:
        """Return groups of equal errors."""
        refuse_unclear(limit, since=since, until=until)
        if state is not None and state not in get_args(State):
            names = ", ".join(get_args(State))
            raise InvalidRecord(
                f"state is {state!r}; give one of {names}", field="state"
            )
        return await fetch_groups(
            self.analyzer.pool,
            limit=limit,
            module=module,
            severity=severity_from(severity),
            since=since,
            until=until,
            order=order,
            state=state,
        )

    async def set_state(
        self,
        group: ErrorGroup | str,
        state: State,
        until: datetime | timedelta | None = None,
    ) -> ErrorGroup:
        """Write the state of a group; return it as it is now."""
        pool, end = self._storage.pool, end_of_mute(until)
        number = await self._number_of(group)
        await set_state(pool, number, state, end)
        [changed] = await fetch_groups(pool, only=[number])
        return changed

    async def _number_of(self, group: ErrorGroup | str) -> int:
        """Return the number of a group that exists, named by any of its members."""
        number = await group_of(self._storage.pool, _number(group, "group"))
        if not await fetch_groups(self._storage.pool, only=[number]):
            name = group.fingerprint if isinstance(group, ErrorGroup) else group
            raise RecordNotFound(
                "fm_storage.error_groups", name, "groups() names those there are"
            )
        return number

    async def group_members(self, group: ErrorGroup | str) -> list[GroupMember]:
        """Return the members of a group, the oldest first."""
        return await fetch_members(self._storage.pool, await self._number_of(group))

    async def split_group(
        self, group: ErrorGroup | str, members: Sequence[GroupMember | str]
    ) -> ErrorGroup:
        """Make members of a group one of their own."""
        numbers = [_number(one, "members") for one in members]
        pool = self._storage.pool
        made = await split_group(pool, await self._number_of(group), numbers)
        [found] = await fetch_groups(pool, only=[made])
        return found

    async def find_similar(
        self,
        error: ErrorEntry | Recorded | BaseException | str,
        limit: int,
        *,
        module: str | None,
        severity: Severity | str | None,
        since: datetime | None,
    ) -> list[SimilarEntry]:
        """Return stored errors like *error*, the most similar first."""
        store = self._recorder.open()
        refuse_unclear(limit, since=since)
        kinds = (str, BaseException, ErrorEntry, Recorded)
        of_kind(error, kinds, "error", "give a message, an exception or an ErrorEntry")
        vectorizer, collection = self._recorder.vectors()
        await self._recorder.wait_fresh()
        asked = question_of(error.entry if isinstance(error, Recorded) else error)
        [embedding] = await vectorizer.embed([text_of_entry(asked)])
        wanted = payload_filter(
            module=module, severity=severity_from(severity), since=since
        )
        try:
            hits = await self._storage.qdrant.search_hybrid(
                collection, embedding, limit + MORE, filter=wanted, with_payload=False
            )
        except CollectionNotFound:
            return []  # nothing was ever delivered
        ids = [key for hit in hits if (key := UUID(str(hit.id))) != asked.id]
        found = await store.entries(self._storage.pool, ids)
        entries = [found[key] for key in ids if key in found]
        vectors = await vectorizer.embed([text_of_entry(one) for one in entries])
        known = features_of(asked)
        similar = [
            SimilarEntry(
                one, score_of(known, features_of(one), cosine_of(embedding, vector))
            )
            for one, vector in zip(entries, vectors, strict=True)
        ]
        # Of equal ones the order of the search stays.
        similar.sort(key=lambda hit: hit.score, reverse=True)
        return similar[:limit]

    async def report(
        self,
        *,
        title: str,
        since: datetime | None,
        until: datetime | None,
        window: timedelta | float | None,
        severity: Severity | str | None,
        limit: int,
    ) -> Report:
        """Return the report, with a function that draws it."""
        from fm_storage.catalog.query.likeness import similar_groups

        refuse_unclear(limit, since=since, until=until)
        return await make_report(
            self.analyzer,
            similar_groups,
            draw,
            title=title,
            since=since,
            until=until,
            window=None if window is None else span_of(window, "window"),
            severity=severity_from(severity) or Severity.WARNING,
            limit=limit,
        )

    def tail(
        self, *, module: str | None, severity: Severity | str | None
    ) -> AbstractAsyncContextManager[AsyncIterator[ErrorEntry]]:
        """Follow new errors of every process."""
        return tail_errors(
            self._storage.pool, module=module, severity=severity_from(severity)
        )


def _number(named: object, field: str) -> int:
    name: Any = getattr(named, "fingerprint", named)
    try:
        return number_of(name)
    except (TypeError, ValueError):
        raise InvalidRecord(
            f"{field} is {name!r}; give an ErrorGroup, or the sixteen hexadecimal "
            "digits of its fingerprint",
            field=field,
        ) from None
