"""The report as pages that are served: an ASGI application without a script.

It shows and searches, and changes nothing; so there is nothing that another site
could make a browser do.
"""

from __future__ import annotations

import asyncio
import hmac
import inspect
import logging
import re
from base64 import b64decode
from binascii import Error as NotBase64
from collections.abc import Awaitable, Callable, Mapping
from datetime import UTC, datetime, timedelta
from hashlib import sha256
from typing import TYPE_CHECKING, Any, NamedTuple
from urllib.parse import parse_qs, quote

from fm_storage.catalog.query.groups import hex_of, number_of
from fm_storage.catalog.query.latest import fetch_latest
from fm_storage.catalog.query.splitting import fetch_members
from fm_storage.catalog.query.states import group_of, groups_of
from fm_storage.catalog.record.drafts import severity_from
from fm_storage.catalog.record.store import fetch_origins
from fm_storage.catalog.report.page import (
    DIGEST,
    Live,
    draw,
    entries_of,
    render,
    row_of,
)
from fm_storage.errors import ConfigurationInvalid, InvalidRecord, StorageError

if TYPE_CHECKING:
    from fm_storage.catalog.queries import CatalogQueries

Scope = Mapping[str, Any]
Send = Callable[[Any], Awaitable[None]]
Guard = Callable[[Scope], object]

logger = logging.getLogger("fm_storage.catalog")

_AT_ONCE = 2
_LATEST = 20
_HITS = 200
_TEXT = 2000
_GROUP = re.compile(r"/group/([0-9a-f]{16})")
_AGE = re.compile(r"(\d{1,6})\s*(min|[shdw])")
_UNITS = {"s": 1, "min": 60, "h": 3600, "d": 86_400, "w": 604_800}
_POLICY = (
    f"default-src 'none'; style-src 'sha256-{DIGEST}'; base-uri 'none'; "
    "form-action 'self'; frame-ancestors 'none'"
)
_HEADERS = {
    "content-type": "text/html; charset=utf-8",
    "content-security-policy": _POLICY,
    "x-content-type-options": "nosniff",
    "x-frame-options": "DENY",
    "referrer-policy": "no-referrer",
    "cross-origin-resource-policy": "same-origin",
    "cache-control": "no-store",
}
_ASK = {"www-authenticate": 'Basic realm="errors", charset="UTF-8"'}


class _Answer(NamedTuple):
    """A page, its status, and headers beyond those that each has."""

    page: str
    status: int = 200
    headers: Mapping[str, str] = {}


class _Request(NamedTuple):
    """What a page is made of."""

    path: str
    live: Live
    since: datetime | None
    severity: str | None


class ErrorPages:
    """What ``ErrorManager.web()`` returns; see there.

    Args:
        queries: Answers what the pages show.
        title: Title of the first page.
        search: Whether there are vectors to search by.
        token: What a client must show.
        guard: Called with the scope of each request instead.
        unguarded: Whether everybody may look.

    Raises:
        ConfigurationInvalid: Not exactly one of the last three is given.
    """

    def __init__(
        self,
        queries: CatalogQueries,
        *,
        title: str,
        search: bool,
        token: str | None,
        guard: Guard | None,
        unguarded: bool,
    ) -> None:
        if [token is not None, guard is not None, unguarded].count(True) != 1:
            raise ConfigurationInvalid(
                "errors.web()",
                "shows errors to whom its guard lets in; give exactly one of token= "
                "(a secret), guard= (a function of the request's scope) and "
                "unguarded=True",
            )
        if token is not None and not token.strip():
            raise ConfigurationInvalid(
                "errors.web()", "has an empty token=; give secrets.token_urlsafe()"
            )
        if guard is not None and not callable(guard):
            raise ConfigurationInvalid(
                "errors.web()", f"has guard={guard!r}; give a function of the scope"
            )
        self._queries = queries
        self._title = title
        self._search = search
        self._digest = None if token is None else sha256(token.encode()).digest()
        self._guard = guard
        self._turns = asyncio.Semaphore(_AT_ONCE)

    async def __call__(
        self, scope: Scope, receive: Callable[[], Awaitable[Any]], send: Send
    ) -> None:
        """Serve one request, or the lifespan of a server of its own."""
        if scope["type"] == "lifespan":
            for event in ("startup", "shutdown"):
                await receive()
                await send({"type": f"lifespan.{event}.complete"})
        elif scope["type"] == "websocket":
            await send({"type": "websocket.close", "code": 1008})
        elif scope["type"] == "http":
            await self._serve(scope, send)

    async def _serve(self, scope: Scope, send: Send) -> None:
        answer = await self._answer(scope)
        body = answer.page.encode()
        headers = {**_HEADERS, **answer.headers, "content-length": str(len(body))}
        await send(
            {
                "type": "http.response.start",
                "status": answer.status,
                "headers": [(k.encode(), v.encode()) for k, v in headers.items()],
            }
        )
        shown = b"" if scope["method"] == "HEAD" else body
        await send({"type": "http.response.body", "body": shown})

    async def _answer(self, scope: Scope) -> _Answer:
        """Return the answer; who may not look learns nothing of what there is."""
        base, path = _place(scope)
        live = Live(quote(base), search=self._search)
        if self._digest is not None and not _shows(scope, self._digest):
            return _message(live, 401, "Give the token as the password.", _ASK)
        if self._guard is not None:
            allowed = self._guard(scope)
            if not (await allowed if inspect.isawaitable(allowed) else allowed):
                return _message(live, 403, "You may not look at the errors.")
        page = {"/": self._report, "/search": self._similar}.get(path)
        if _GROUP.fullmatch(path):
            page = self._group
        if page is None or (path == "/search" and not self._search):
            return _message(live, 404, "There is no such page.")
        if scope["method"] not in {"GET", "HEAD"}:
            reason = "This page can only be read."
            return _message(live, 405, reason, {"allow": "GET, HEAD"})
        try:
            request = _request(scope, path, live)
            async with self._turns:
                return await page(request)
        except InvalidRecord as exc:
            return _message(live, 400, f"{exc}.")
        except StorageError as exc:
            if not exc.retryable:
                raise
            logger.warning("the page of errors is not answered (%s)", exc)
            reason = "The store does not answer; try again in a moment."
            return _message(live, 503, reason, {"retry-after": "5"})

    async def _report(self, request: _Request) -> _Answer:
        report = await self._queries.report(
            title=self._title,
            since=request.since,
            until=None,
            window=None,
            severity=request.severity,
            limit=12,
        )
        return _Answer(await asyncio.to_thread(draw, report, request.live))

    async def _group(self, request: _Request) -> _Answer:
        found = _GROUP.fullmatch(request.path)
        assert found is not None
        analyzer = self._queries.analyzer
        name = hex_of(await group_of(analyzer.pool, number_of(found[1])))
        groups = await analyzer.named([name])
        if not groups:
            reason = "There is no such group, or its errors were deleted."
            return _message(request.live, 404, reason)
        [group] = groups
        sparks = await analyzer.sparks(
            [name], group.first_seen, group.last_seen + timedelta(microseconds=1)
        )
        releases = await analyzer.releases([name])
        latest = await fetch_latest(analyzer.pool, limit=_LATEST, group=name)
        ids = [group.example.id, *(one.id for one in latest)]
        origins = await fetch_origins(analyzer.pool, ids)
        members = await fetch_members(analyzer.pool, group.group_id)
        return _Answer(
            await asyncio.to_thread(
                render,
                "group",
                title=f"{group.module}: {group.template}"[:200],
                live=request.live,
                row=row_of(group, sparks.get(name, ()), releases.get(name, ())),
                latest=entries_of(latest),
                origins=origins,
                members=members,
            )
        )

    async def _similar(self, request: _Request) -> _Answer:
        text = request.live.query
        rows = []
        if text.strip():
            hits = await self._queries.find_similar(
                text, _HITS, module=None, severity=request.severity, since=request.since
            )
            analyzer = self._queries.analyzer
            groups = await groups_of(analyzer.pool, [hit.entry.id for hit in hits])
            scores: dict[str, float] = {}
            for hit in hits:
                if hit.entry.id in groups:
                    scores.setdefault(hex_of(groups[hit.entry.id]), hit.score)
            named = {one.fingerprint: one for one in await analyzer.named(scores)}
            rows = [
                (row_of(named[name]), score)
                for name, score in list(scores.items())[:_LATEST]
                if name in named
            ]
        return _Answer(
            await asyncio.to_thread(
                render,
                "search",
                title=f"Errors like “{text[:80]}”" if text.strip() else "Search",
                live=request.live,
                rows_=rows,
            )
        )


def _place(scope: Scope) -> tuple[str, str]:
    """Return where the application is mounted, and the path below that."""
    base, path = scope.get("root_path", "").rstrip("/"), scope["path"]
    below = path.removeprefix(base)
    if base and below[:1] in {"", "/"} and below != path:
        path = below  # the path includes the prefix, as ASGI has it today
    return base, path.rstrip("/") or "/"


def _request(scope: Scope, path: str, live: Live) -> _Request:
    """Return what was asked for.

    Raises:
        InvalidRecord: A parameter is not understood.
    """
    raw = scope.get("query_string", b"").decode("latin-1")
    try:
        given = parse_qs(raw, max_num_fields=20, errors="replace")
    except ValueError:
        raise InvalidRecord("there are too many parameters", field="query") from None
    query, since, severity = (
        given.get(name, [""])[-1][:_TEXT].strip() for name in ("q", "since", "severity")
    )
    level = severity_from(severity or None)
    return _Request(
        path,
        live._replace(query=query, since=since, severity=level or ""),
        _moment(since) if since else None,
        level,
    )


def _moment(text: str) -> datetime:
    age = _AGE.fullmatch(text)
    try:
        if age is not None:
            return datetime.now(UTC) - timedelta(seconds=int(age[1]) * _UNITS[age[2]])
        moment = datetime.fromisoformat(text)
    except (ValueError, OverflowError):
        raise InvalidRecord(
            f"since is {text[:60]!r}; give an age (24h, 7d) or a time (2026-01-31)",
            field="since",
        ) from None
    return moment if moment.tzinfo else moment.replace(tzinfo=UTC)


def _shows(scope: Scope, digest: bytes) -> bool:
    """Return whether a request shows the token, in time that tells nothing of it."""
    given = [value for key, value in scope["headers"] if key == b"authorization"]
    if len(given) != 1:
        return False
    scheme, _, value = given[0].partition(b" ")
    shown = value.strip()
    if scheme.lower() == b"basic":
        try:
            shown = b64decode(shown, validate=True).partition(b":")[2]
        except NotBase64:
            return False
    elif scheme.lower() != b"bearer":
        return False
    return hmac.compare_digest(sha256(shown).digest(), digest)


def _message(
    live: Live, status: int, text: str, headers: Mapping[str, str] | None = None
) -> _Answer:
    live = live._replace(search=live.search and status not in {401, 403})
    page = render("message", title=text, live=live, status=status)
    return _Answer(page, status, headers or {})
