"""What is made on an object of the wrong kind says so at once, and what to give."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import pytest

from fm_storage import (
    ErrorManager,
    Pool,
    PostgresConfig,
    QdrantStore,
    Repository,
    StorageManager,
)
from fm_storage.errors import ConfigurationInvalid, InvalidRecord
from fm_storage.migrate import Migrator
from fm_storage.outbox.writer import BoundOutbox
from fm_storage.vector_state import Shapes
from fm_storage.vectors import Point


@dataclass
class Note:
    """A record."""

    body: str
    id: int


DSN = "postgresql://h/d"


@pytest.mark.parametrize(
    ("make", "remedy"),
    [
        (lambda: Pool(DSN), r"is a str; give PostgresConfig\(dsn="),
        (lambda: QdrantStore("http://h"), r"is a str; give QdrantConfig\(url="),
        (lambda: StorageManager(DSN), "is a str; give a StorageConfig"),
        (lambda: Migrator(7), "is a int; give an address or a PostgresConfig"),
        (lambda: ErrorManager(DSN), "is a str; give a StorageManager"),
        (
            lambda: ErrorManager(Pool(PostgresConfig(dsn=DSN))),
            "is a Pool; give a StorageManager",
        ),
        (
            lambda: Repository(StorageManager(), Note),
            r"is a StorageManager; give a pool.*storage\.repository",
        ),
        (lambda: Repository(None, Note), "is a NoneType; give a pool"),
    ],
)
def test_a_wrong_owner_is_refused(make: Callable[[], object], remedy: str):
    """Not at the first call, by a missing attribute."""
    with pytest.raises(ConfigurationInvalid, match=remedy):
        make()


@pytest.mark.parametrize(
    ("points", "message"),
    [(Point(1, [1.0]), "it is a Point; give a list"), ([{"id": 1}], "is a dict")],
)
async def test_what_is_no_point_is_refused(points: object, message: str):
    """Before anything is written."""
    outbox = BoundOutbox(None, wake=lambda: None, shapes=Shapes())
    with pytest.raises(InvalidRecord, match=message):
        await outbox.upsert("c", points)
