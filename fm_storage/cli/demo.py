"""``fm-storage demo``: the whole system once, on errors that really happen."""

from __future__ import annotations

import logging
import shlex
import shutil
import sys
import time
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

import click
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn
from rich.table import Table
from rich.text import Text

from fm_storage.cli.common import Settings, console, plain, run
from fm_storage.cli.mishaps import MISHAPS

if TYPE_CHECKING:
    from fm_storage.catalog import ErrorManager, SimilarEntry
    from fm_storage.manager import StorageManager

T = TypeVar("T")
_WIDTH = 80


@click.command(
    epilog=(
        "\b\nExamples:\n"
        "  fm-storage demo                 with errors that happen on this machine\n"
        "  fm-storage demo server.log      and those of your own log file\n"
    )
)
@click.argument("log", required=False, type=click.Path(exists=True, dir_okay=False))
@click.pass_obj
def demo(settings: Settings, log: str | None) -> None:
    """Record, import, group and compare errors; open and close a session.

    LOG is a log file of yours to ask about; by default, work that fails is recorded,
    and a log that this demonstration writes itself is imported.
    """
    _Demo(settings, console(), log).show()


class _Demo:
    """One run: each step prints its heading, its result and its seconds."""

    def __init__(self, settings: Settings, out: Console, log: str | None) -> None:
        self._settings = settings
        self._config = settings.load()
        self._out = out
        if not out.is_terminal:
            out.width = _WIDTH
        self._log = Path(log) if log else None
        self._begin = time.perf_counter()
        self._number = 0

    def show(self) -> None:
        self._out.print(
            Text("fm_storage", style="bold")
            + Text(" — rows in PostgreSQL, vectors in Qdrant, one awaitable manager")
        )
        run(self._main())

    async def _main(self) -> None:
        from fm_storage.catalog import ErrorManager
        from fm_storage.manager import StorageManager

        with self._step("Open PostgreSQL and Qdrant, apply migrations"):
            storage = await StorageManager(self._config)
            health = await storage.health()
            for part in health.parts:
                self._say(f"{part.name}: {part.status}, {part.detail}")
        try:
            async with ErrorManager(storage) as errors:
                await self._catalogue(storage, errors)
            await self._session(storage)
        finally:
            with self._step("Close everything"):
                await storage.aclose()
        self._farewell()

    async def _catalogue(self, storage: StorageManager, errors: ErrorManager) -> None:
        log = self._log
        if log is None:
            log = self._config.data_dir / "demo.log"
            with self._step(f"Let {len(MISHAPS)} kinds of work fail"):
                await self._record(storage, errors, log)
        with self._step(f"Ingest {log.name}"):
            await self._ingest(errors, log)
        with self._step("The commonest groups"):
            await self._groups(errors)
        with self._step(f"The errors most similar to one of {log.name}, by kind"):
            await self._similar(errors, log.name)
        with self._step("One page about all of it, to be sent to anyone"):
            page = self._config.data_dir.resolve() / "report.html"
            report = await errors.report(title="Errors of the demonstration")
            page.parent.mkdir(parents=True, exist_ok=True)
            page.write_text(report.to_html(), encoding="utf-8")
            self._say(page, whole=True)

    @contextmanager
    def _step(self, title: str) -> Iterator[None]:
        self._number += 1
        self._out.print()
        self._out.print(Text(f"{self._number}. ", style="cyan") + plain(title))
        begin = time.perf_counter()
        try:
            yield
        finally:
            took = time.perf_counter() - begin
            self._out.print(Text(f"   {took:.2f} s", style="dim"))

    def _say(self, text: object, *, whole: bool = False) -> None:
        """Print a line; *whole* is never broken, as a path must not be."""
        self._out.print(Text("   ") + plain(text), soft_wrap=whole)

    async def _record(
        self, storage: StorageManager, errors: ErrorManager, log: Path
    ) -> None:
        """Let everything fail a few times: record it, or write it to the log."""
        table = Table("what failed", "error", "kept in", box=None)
        journal, close = _journal(log)
        count = 0
        try:
            for mishap in MISHAPS:
                for turn in range(mishap.times):
                    exc = await _failure(mishap.work, storage, turn)
                    place = log.name
                    if mishap.logged:
                        journal(mishap.module, mishap.severity, exc)
                    else:
                        done = await errors.record(
                            exc, module=mishap.module, severity=mishap.severity
                        )
                        place = "catalogue" if done.durable else "spool"
                        count += 1
                    if turn == 0:
                        error = plain(f"{type(exc).__name__}: {exc}", limit=29)
                        table.add_row(mishap.title, error, place)
        finally:
            close()
        self._out.print(table)
        self._say(f"{count} errors recorded, tracebacks and all")

    async def _ingest(self, errors: ErrorManager, log: Path) -> None:
        bar = Progress(
            TextColumn("   {task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("bytes"),
            console=self._out,
            transient=True,
            disable=not self._out.is_terminal,
        )
        with bar:
            task = bar.add_task("reading", total=None)

            def progress(done: int, total: int | None) -> None:
                bar.update(task, completed=done, total=total)

            result = await errors.ingest(log, progress=progress)
        self._say(result)
        if result.samples:
            self._say("not recognised, for example:")
        for sample in result.samples:
            self._say(plain(sample, limit=_WIDTH - 5))

    async def _groups(self, errors: ErrorManager) -> None:
        table = Table("count", "severity", "modules", "message", box=None)
        for group in await errors.groups(limit=8, severity="WARNING"):
            table.add_row(
                Text(str(group.count), justify="right"),
                plain(group.severity),
                plain(", ".join(group.modules), limit=20),
                plain(group.example.message, limit=38),
            )
        self._out.print(table)

    async def _similar(self, errors: ErrorManager, log: str) -> None:
        examples = [group.example for group in await errors.groups(limit=100)]
        ours = [e for e in examples if (e.manager_context or {}).get("source") == log]
        if not (ours or examples):
            self._say("nothing to ask about: no entry was recognised")
            return
        asked = (ours or examples)[0]
        self._say(f"asked: {plain(asked.message, limit=_WIDTH - 12)}")
        kinds: dict[tuple[str, str], list[SimilarEntry]] = {}
        for hit in await errors.find_similar(asked, limit=100):
            kind = (hit.entry.module, hit.entry.error_code)
            kinds.setdefault(kind, []).append(hit)
        table = Table("score", "times", "module", "message", box=None)
        for hits in list(kinds.values())[:5]:
            table.add_row(
                f"{hits[0].score:.3f}",
                Text(str(len(hits)), justify="right"),
                plain(hits[0].entry.module, limit=20),
                plain(hits[0].entry.message, limit=40),
            )
        self._out.print(table)

    async def _session(self, storage: StorageManager) -> None:
        with self._step("A session with a plain and a materialized temporary view"):
            async with storage.session() as session:
                hot = await session.create_view(
                    "SELECT module, message FROM project_errors WHERE severity = $1",
                    "CRITICAL",
                )
                busy = await session.create_view(
                    "SELECT module, count(*) AS errors FROM project_errors GROUP BY 1",
                    materialized=True,
                )
                critical = await storage.pool.fetchval(f"SELECT count(*) FROM {hot}")
                top = await storage.pool.fetchrow(
                    f"SELECT * FROM {busy} ORDER BY errors DESC LIMIT 1"
                )
                self._say(f"{hot}", whole=True)
                self._say(f"  holds {critical} critical errors")
                if top is not None:
                    self._say(f"{busy}", whole=True)
                    self._say(f"  most from {top['module']} ({top['errors']})")
                names = session.get_session_views()
            left = await storage.pool.fetchval(
                "SELECT count(*) FROM unnest($1::text[]) AS name"
                " WHERE to_regclass(name) IS NOT NULL",
                names,
            )
            self._say(f"left the session: {left} of {len(names)} views remain")

    def _farewell(self) -> None:
        took = time.perf_counter() - self._begin
        folder = self._config.data_dir.resolve()
        me = _program()
        self._out.print()
        self._out.print(Text(f"Done in {took:.1f} s.", style="bold green"))
        self._out.print(Text("The data lies in ") + plain(folder), soft_wrap=True)
        self._out.print("Try next:")
        for command, what in (
            ("errors list", "what was recorded"),
            ("errors similar 'connection refused'", "errors like this text"),
            ("errors ingest FILE", "a log of yours"),
            ("health", "how each part is"),
        ):
            line = f"  {me} {command:<38} {what}"
            if len(line) > _WIDTH:
                line = f"  {me} {command}\n      {what}"
            self._out.print(line, soft_wrap=True)


async def _failure(
    work: Callable[[StorageManager, int], Awaitable[object]],
    storage: StorageManager,
    turn: int,
) -> Exception:
    try:
        await work(storage, turn)
    except Exception as exc:  # any failure is what we are after
        return exc
    raise AssertionError("this work cannot succeed")


def _journal(
    path: Path,
) -> tuple[Callable[[str, str, Exception], None], Callable[[], None]]:
    """Open the demonstration's own log file, as any service would write one."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handler = logging.FileHandler(path, encoding="utf-8", errors="replace")
    handler.setFormatter(
        logging.Formatter("%(asctime)s %(levelname)s %(name)s: %(message)s")
    )

    def write(module: str, severity: str, exc: Exception) -> None:
        record = logging.LogRecord(
            f"shop.{module}",
            logging.getLevelNamesMapping()[severity],
            __file__,
            0,
            "%s failed: %s",
            (module, exc),
            (type(exc), exc, exc.__traceback__),
        )
        handler.emit(record)

    return write, handler.close


def _program() -> str:
    """Return how this program was called, for commands to copy."""
    called = Path(sys.argv[0]).absolute()
    if called.name == "__main__.py":
        return f"{shlex.quote(sys.executable)} -m fm_storage"
    if shutil.which(called.name) == str(called):
        return called.name
    here = Path.cwd()
    return shlex.quote(
        str(called.relative_to(here) if called.is_relative_to(here) else called)
    )
