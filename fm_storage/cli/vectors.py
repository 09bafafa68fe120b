"""``fm-storage vectors``: list, search, export and import collections.

Only the vector store is opened; PostgreSQL is not needed.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click
import orjson
from rich.table import Table

from fm_storage.cli.common import (
    Settings,
    console,
    json_option,
    plain,
    print_json,
    progress_bar,
    run,
)
from fm_storage.errors import (
    CollectionMismatch,
    CollectionNotFound,
    ConfigurationInvalid,
    RecordNotFound,
)

if TYPE_CHECKING:
    from fm_storage._typing import Progress as Report
    from fm_storage.vectors import CollectionInfo, QdrantStore, ScoredPoint

T = TypeVar("T")

_PARQUET = ".parquet"
_PATIENCE = 5.0
"""Seconds in which a server must have answered once."""

_NOT_INDEXED = (
    "Vectors that are not indexed are found as well: they are compared one by one, "
    "exactly.\nAn index is built by itself once enough of them are dense "
    "(qdrant.index_threshold, 20000)."
)


@click.group(
    epilog=(
        "\b\nExamples:\n"
        "  fm-storage vectors list                       collections, their sizes\n"
        "  fm-storage vectors info docs                  one in detail\n"
        "  fm-storage vectors search docs 'pool timeout' by words\n"
        "  fm-storage vectors search docs '[0.1, 0.7]'   by a vector\n"
        "  fm-storage vectors export docs -o docs.jsonl  lines of JSON\n"
        "  fm-storage vectors export docs -o docs.parquet  as columns\n"
        "  fm-storage vectors import docs.jsonl          into this or another store\n"
    )
)
def vectors() -> None:
    """List, search, export and import collections."""


def _with(settings: Settings, job: Callable[[QdrantStore], Awaitable[T]]) -> T:
    async def body() -> T:
        from fm_storage.vectors import QdrantStore

        config = settings.load()
        if config.qdrant is None:
            raise ConfigurationInvalid(
                "qdrant",
                "is switched off here; set FM_STORAGE_QDRANT__URL (embedded:, or the "
                "http:// address of a server)",
            )
        folder = None
        if config.qdrant.embedded:
            folder = config.embedded_folder(config.qdrant.url)
        async with QdrantStore(config.qdrant, folder=folder) as store:
            if folder is None:
                # Do not wait through every retry of a call at the terminal.
                await store.ready(timeout=_PATIENCE)
            return await job(store)

    try:
        return run(body())
    except CollectionNotFound as exc:
        raise click.ClickException(
            f"there is no collection {exc.collection!r}; "
            "'fm-storage vectors list' names those there are"
        ) from exc
    except RecordNotFound as exc:
        raise click.ClickException(
            f"collection {exc.table!r} has no point {exc.key!r}"
        ) from exc
    except CollectionMismatch as exc:
        differing = ", ".join(
            f"{field} is {there!r} there and {asked!r} in the file"
            for field, (asked, there) in exc.differences.items()
        )
        raise click.ClickException(
            f"collection {exc.collection!r} exists and differs: {differing}; "
            "import under another name with --collection"
        ) from exc


@vectors.command("list")
@json_option
@click.pass_obj
def list_(settings: Settings, *, as_json: bool) -> None:
    """List every collection, with its size and aliases."""

    async def job(store: QdrantStore) -> list[Any]:
        names = await store.list_collections()
        return [await store.collection_info(name) for name in names]

    found = _with(settings, job)
    if as_json:
        print_json(found)
        return
    table = Table(
        "collection", "points", "vectors", "of them indexed", "aliases", box=None
    )
    for info in found:
        building = " (building)" if info.status == "yellow" else ""
        table.add_row(
            plain(info.name),
            str(info.points),
            str(info.total),
            f"{info.indexed}{building}",
            plain(", ".join(info.aliases)),
        )
    console().print(table if found else "no collections")
    if any(info.indexed < info.total for info in found):
        console().print(_NOT_INDEXED)


@vectors.command()
@click.argument("collection")
@json_option
@click.pass_obj
def info(settings: Settings, *, collection: str, as_json: bool) -> None:
    """Show the definition and the size of a collection."""
    found = _with(settings, lambda store: store.collection_info(collection))
    if as_json:
        print_json(found)
        return
    table = Table(show_header=False, box=None)
    table.add_row("collection", plain(found.name))
    table.add_row("aliases", plain(", ".join(found.aliases) or "none"))
    table.add_row("points", str(found.points))
    table.add_row(
        "indexed",
        f"{found.indexed} of {found.total} vectors (the others are compared one by one)"
        if found.indexed < found.total
        else f"all {found.total} vectors",
    )
    table.add_row("status", plain(found.status))
    for name, given in found.vectors.items():
        label = f"vector {name}" if name else "vector"
        table.add_row(plain(label), f"{given['size']} × {given['distance']}")
    for name, given in found.sparse_vectors.items():
        table.add_row(plain(f"sparse {name}"), plain(given.get("modifier", "none")))
    for field, schema in sorted(found.payload_indexes.items()):
        table.add_row(plain(f"index {field}"), plain(schema))
    console().print(table)


@vectors.command()
@click.argument("collection")
@click.argument("query")
@click.option(
    "-n", "--limit", default=10, show_default=True, help="Maximum number of points."
)
@click.option("--filter", "chosen", help="Filter as JSON, in short form.")
@click.option(
    "--using",
    default="",
    help="Name of the vector to compare with, if the collection has several.",
)
@json_option
@click.pass_obj
def search(
    settings: Settings,
    *,
    collection: str,
    query: str,
    limit: int,
    chosen: str | None,
    using: str,
    as_json: bool,
) -> None:
    """Search COLLECTION by QUERY: words, a vector as JSON, or id:SOMETHING.

    Words need a collection of the lexical vectorizer (vectors dense and sparse).
    """
    wanted = _json(chosen, "--filter")
    if limit < 1:
        raise click.UsageError(f"--limit is {limit}; give 1 or more")

    async def job(store: QdrantStore) -> list[ScoredPoint]:
        info = await store.collection_info(collection)
        by_id, by_vector = query.startswith("id:"), query.lstrip().startswith("[")
        if not (by_id or by_vector):
            return await _by_words(store, info, query, limit, wanted)
        _check_using(info, using)
        example: Any = _json(query, "QUERY") if by_vector else query[len("id:") :]
        if by_id and example.isdecimal():
            example = int(example)
        return await store.search(collection, example, limit, wanted, using=using)

    found = _with(settings, job)
    if as_json:
        print_json(found)
        return
    table = Table("score", "id", "payload", box=None)
    for hit in found:
        shown = orjson.dumps(hit.payload).decode()
        table.add_row(f"{hit.score:.4f}", plain(hit.id), plain(shown, limit=90))
    console().print(table if found else "nothing found")


async def _by_words(
    store: QdrantStore,
    info: CollectionInfo,
    query: str,
    limit: int,
    wanted: Any,
) -> list[ScoredPoint]:
    from fm_storage.vectors import LexicalVectorizer

    vectorizer = LexicalVectorizer()
    size = vectorizer.spec.vectors["dense"].size
    if "sparse" not in info.sparse_vectors:
        message = (
            f"collection {info.name!r} holds no vectors of words ({_described(info)}); "
            "search it by a vector ('[0.1, …]') or by one of its points ('id:…')"
        )
        raise click.UsageError(message)
    (embedding,) = await vectorizer.embed([query])
    if info.vectors.get("dense", {}).get("size") != size:
        # Another vectorizer made the dense part; words are the same with each.
        if embedding.sparse is None:
            return []
        return await store.search(
            info.name, embedding.sparse, limit, wanted, using="sparse"
        )
    return await store.search_hybrid(info.name, embedding, limit, wanted)


def _described(info: CollectionInfo) -> str:
    parts = [
        f"{name or 'one'} of {given['size']} numbers"
        for name, given in info.vectors.items()
    ]
    return ", ".join([*parts, *(f"{name} sparse" for name in info.sparse_vectors)])


def _check_using(info: CollectionInfo, using: str) -> None:
    names = [*info.vectors, *info.sparse_vectors]
    if using in names:
        return
    if names == [""]:
        message = f"collection {info.name!r} has one unnamed vector; leave --using out"
    else:
        choices = " or ".join(name for name in names if name)
        message = f"say with --using which vector to compare with: {choices}"
    raise click.UsageError(message)


def _json(text: str | None, what: str) -> Any:
    if text is None:
        return None
    try:
        return orjson.loads(text)
    except orjson.JSONDecodeError as exc:
        raise click.UsageError(f"{what} is not JSON ({exc})") from None


@vectors.command("export")
@click.argument("collection")
@click.option(
    "-o",
    "--output",
    type=click.Path(dir_okay=False, allow_dash=True, path_type=Path),
    default="-",
    help="File (.parquet: columns instead of lines); standard output by default.",
)
@click.option("--filter", "chosen", help="Filter as JSON, in short form.")
@click.pass_obj
def export(
    settings: Settings, *, collection: str, output: Path, chosen: str | None
) -> None:
    """Write COLLECTION as lines of JSON: its definition, then its points.

    A file that ends in .parquet gets columns instead (fm-storage[parquet]).
    """
    wanted = _json(chosen, "--filter")

    async def job(store: QdrantStore, report: Report) -> int:
        if output.suffix == _PARQUET:
            from fm_storage.vectors.transfer.parquet import export_parquet

            return await export_parquet(
                store, collection, output, filter=wanted, progress=report
            )
        from fm_storage.vectors.transfer.jsonl import export_points

        # Lazy: a mistake must not empty the file that is there.
        with click.open_file(str(output), "wb", lazy=True) as file:

            def write(line: bytes) -> object:
                return file.write(line)

            return await export_points(
                store, collection, write, filter=wanted, progress=report
            )

    with progress_bar("exporting") as report:
        done = _with(settings, lambda store: job(store, report))
    click.echo(f"{done} points exported", err=True)


@vectors.command("import")
@click.argument(
    "file",
    type=click.Path(exists=True, dir_okay=False, allow_dash=True, path_type=Path),
)
@click.option(
    "--collection", help="Name of the collection; by default the one in the file."
)
@click.pass_obj
def import_(settings: Settings, *, file: Path, collection: str | None) -> None:
    """Read FILE, written by 'export'; create the collection if it does not exist.

    Points with the same id are replaced, so an interrupted import can be repeated.
    """

    async def job(store: QdrantStore, report: Report) -> int:
        if file.suffix == _PARQUET:
            from fm_storage.vectors.transfer.parquet import import_parquet

            return await import_parquet(
                store, file, collection=collection, progress=report
            )
        from fm_storage.vectors.transfer.jsonl import import_points

        with click.open_file(str(file), "rb") as lines:
            return await import_points(
                store, lines, collection=collection, progress=report
            )

    with progress_bar("importing") as report:
        done = _with(settings, lambda store: job(store, report))
    click.echo(f"{done} points imported", err=True)
