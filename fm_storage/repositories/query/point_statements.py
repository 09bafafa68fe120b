"""A record's point in the vector store, written in the record's own statement.

Joins two texts: a statement of ``statements``, and the desired state of
``vector_state``. One statement is one round trip and one fate: no crash can leave
the record without the state of its point, or the other way round.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeAlias

from fm_storage.errors import ConfigurationInvalid, InvalidRecord
from fm_storage.postgres.sql import Sql
from fm_storage.repositories.model.entity import Entity
from fm_storage.repositories.model.field import Stored
from fm_storage.repositories.model.scalar_types import Integer, Text, Uuid
from fm_storage.repositories.model.table import Sources
from fm_storage.repositories.query.statements import (
    CREATED,
    Texts,
    insert_many_sql,
    insert_sql,
    made_once,
    purge_sql,
    removal_sql,
    restoration_sql,
    update_sql,
    upsert_sql,
)
from fm_storage.vector_state import (
    Shapes,
    SparseLike,
    delete_ctes,
    encode_vectors,
    point_id_sql,
    restore_ctes,
    retire_ctes,
    stored_payload,
    upsert_ctes,
)

Vector: TypeAlias = (
    "Sequence[float] | SparseLike | Mapping[str, Sequence[float] | SparseLike]"
)
Payload: TypeAlias = Mapping[str, object]

_IDS = {Uuid: "uuid", Integer: "integer", Text: "text"}


class Points(Texts):
    """The statements of one entity that also write its point.

    Attributes:
        collection: The collection of the vector store.
        wake: Called after each write, so that the drainer looks at once.
        durable: Whether each write pins ``synchronous_commit = on``.
    """

    def __init__(
        self,
        entity: Entity[Any],
        collection: str,
        wake: Callable[[], object] | None,
        shapes: Shapes | None = None,
        *,
        durable: bool = True,
    ) -> None:
        super().__init__()
        known = _IDS.get(type(entity.key[0].type)) if len(entity.key) == 1 else None
        if known is None:
            raise ConfigurationInvalid(
                f"{entity.model.__name__}.collection",
                "a point needs a key of one field that is a UUID, number or text",
            )
        self.collection = collection
        self.wake = wake or _no_drainer
        self.durable = durable
        self._shapes = shapes
        self._entity = entity
        self._key = entity.key[0]
        self._point_id = point_id_sql(f"rec.{self._key.quoted}", known)

    def values(
        self, vector: Vector | None, payload: Payload | None, index: int | None = None
    ) -> tuple[bytes | None, dict[str, Any], bytes]:
        """Return vectors, payload and its digest as parameters.

        Raises:
            DimensionMismatch: The vector has not the size that the collection is
                configured with; nothing was sent.
            InvalidVector: The vector cannot be stored; nothing was sent.
            InvalidRecord: The payload is no JSON object; nothing was sent.
        """
        kept, digest = stored_payload(payload, index=index)
        encoded = None
        if vector is not None:
            # Looked up each time: a collection may become known later.
            shape = self._shapes.get(self.collection) if self._shapes else None
            encoded = encode_vectors(
                vector, collection=self.collection, index=index, shape=shape
            )
        return encoded, kept, digest

    def columns(
        self,
        count: int,
        vectors: Sequence[Vector | None] | None,
        payloads: Sequence[Payload | None] | None,
    ) -> list[list[Any]]:
        """Return the points of a batch column by column.

        Raises:
            InvalidRecord: There are not as many of them as records.
        """
        for name, given in (("vectors", vectors), ("payloads", payloads)):
            if given is not None and len(given) != count:
                raise InvalidRecord(
                    f"{name}: {len(given)} for {count} records; give one for each",
                    field=name,
                )
        rows = [
            self.values(
                None if vectors is None else vectors[at],
                None if payloads is None else payloads[at],
                at,
            )
            for at in range(count)
        ]
        return [list(column) for column in zip(*rows, strict=True)]

    @made_once
    def insert(self) -> str:
        """Return ``Statements.insert`` with the point; its parameters come last."""
        entity = self._entity
        names = [item.quoted for item in entity.returned]
        return self._one(insert_sql(entity), names, names, len(entity.inserted))

    @made_once
    def upsert(self, on: tuple[Stored, ...]) -> str:
        """Return ``Statements.upsert()`` of one row, with the point."""
        entity = self._entity
        names = [item.quoted for item in entity.stored]
        return self._one(
            upsert_sql(entity, on, insert_sql(entity)),
            [f"{CREATED} AS fm_created", *names],
            ["fm_created", *names],
            len(entity.inserted),
        )

    @made_once
    def update(
        self, fields: tuple[str, ...], *, versioned: bool, living: str = ""
    ) -> str:
        """Return ``Statements.update()`` with the point."""
        entity = self._entity
        names = [item.quoted for item in entity.stored]
        statement = update_sql(entity, fields, versioned=versioned)
        if living:
            statement += f" AND {living}"
        parameters = len(entity.key) + len(fields) + versioned
        return self._one(statement, names, names, parameters)

    def _one(
        self, statement: str, returning: list[str], wanted: list[str], parameters: int
    ) -> str:
        if self._key.quoted not in returning:
            returning = [*returning, self._key.quoted]
        state = upsert_ctes(
            collection=f"${parameters + 4}",
            point_id=self._point_id,
            vectors=f"${parameters + 1}",
            payload=f"${parameters + 2}",
            payload_hash=f"${parameters + 3}",
            source="rec",
            durable=self.durable,
            last=not wanted,
        )
        answer = f" SELECT {', '.join(wanted)} FROM rec" if wanted else ""
        return (
            f"WITH rec AS ({statement} RETURNING {', '.join(returning)}), "
            f"{state}{answer}"
        )

    @made_once
    def many(self, sources: Sources, on: tuple[Stored, ...] | None) -> str:
        """Return ``insert_many()``, or ``upsert()`` of many rows, with the points.

        Parameters: the columns, vectors, payloads, digests, the collection. Without
        anything to return, an insert returns the key.
        """
        entity = self._entity
        statement = insert_many_sql(entity, sources)
        returning = [item.quoted for item in entity.returned or entity.key]
        wanted = returning
        if on is not None:
            statement = upsert_sql(entity, on, statement)
            stored = [item.quoted for item in entity.stored]
            returning = [f"{CREATED} AS fm_created", *stored]
            wanted = ["fm_created", *stored]
        if self._key.quoted not in returning:
            returning = [*returning, self._key.quoted]
        at = len(sources)
        points = f"${at + 1}::bytea[], ${at + 2}::jsonb[], ${at + 3}::bytea[]"
        # Rows come back in the order of the arrays: the n-th point is the n-th
        # row's, however the server stores its key. Points are written in the order
        # of ids: other writers of the same points wait, not deadlock.
        source = (
            f"(SELECT rec.{self._key.quoted}, p.vectors, p.payload, p.hash FROM "
            f"(SELECT *, row_number() OVER () AS fm_n FROM rec) AS rec "
            f"JOIN unnest({points}) WITH ORDINALITY "
            f"AS p (vectors, payload, hash, n) ON rec.fm_n = p.n "
            f"ORDER BY {self._point_id}) AS rec"
        )
        state = upsert_ctes(
            collection=f"${at + 4}",
            point_id=self._point_id,
            vectors="rec.vectors",
            payload="rec.payload",
            payload_hash="rec.hash",
            source=source,
            durable=self.durable,
        )
        return (
            f"WITH rec AS ({statement} RETURNING {', '.join(returning)}), {state} "
            f"SELECT {', '.join(wanted)} FROM rec"
        )

    @made_once
    def delete(
        self,
        *,
        many: Sources | None = None,
        versioned: bool = False,
        erase: bool = False,
    ) -> str:
        """Return ``Statements.remove()`` with the points; it gives their number.

        Parameters: the key or keys, the version if *versioned*, the collection.
        What a soft deletion keeps of a row, it keeps of the point too.
        """
        entity = self._entity
        softly = entity.deleted is not None and not erase
        state = (retire_ctes if softly else delete_ctes)(
            collection=f"${2 + versioned}",
            point_id=self._point_id,
            source="rec",
            durable=self.durable,
        )
        return self._counted(
            removal_sql(entity, many=many, versioned=versioned, erase=erase), state
        )

    @made_once
    def restore(self, *, versioned: bool) -> str:
        """Return ``Statements.restore()`` with the point; the collection is last."""
        entity = self._entity
        state = restore_ctes(
            collection=f"${2 + versioned}",
            point_id=self._point_id,
            source="rec",
            durable=self.durable,
        )
        return (
            f"WITH rec AS ({restoration_sql(entity, versioned=versioned)} "
            f"RETURNING {entity.select_list}), {state} "
            f"SELECT {entity.select_list} FROM rec"
        )

    @made_once
    def purge(self) -> str:
        """Return ``Statements.purge`` with the points; it gives their number."""
        state = delete_ctes(
            collection="$2",
            point_id=self._point_id,
            source="rec",
            durable=self.durable,
        )
        return self._counted(purge_sql(self._entity), state)

    def removal(self, statement: str, collection: str) -> Sql:
        """Return a DELETE, or the UPDATE that means one, with the points.

        It gives their number.

        Args:
            statement: Without RETURNING.
            collection: Placeholder of the collection.
        """
        state = (retire_ctes if self._entity.deleted else delete_ctes)(
            collection=collection,
            point_id=self._point_id,
            source="rec",
            durable=self.durable,
        )
        return Sql(self._counted(statement, state))

    def _counted(self, statement: str, state: str) -> str:
        return (
            f"WITH rec AS ({statement} RETURNING {self._key.quoted}), "
            f"{state} SELECT count(*) FROM rec"
        )


def _no_drainer() -> None:
    """Do nothing: no drainer runs in this process."""
