"""A record's point in the vector store, written in the record's own statement.

Apart because this file only joins two texts: the statement of this room, and
the desired state of ``vector_state``. One statement is one round trip and one
fate: no crash can leave the record without the state of its point, or the
other way round.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, TypeAlias

from fm_storage.errors import ConfigurationInvalid, InvalidRecord
from fm_storage.postgres.sql import Sql
from fm_storage.repositories.model.scalar_types import Integer, Text, Uuid
from fm_storage.repositories.query.statements import (
    insert_many_sql,
    insert_sql,
    purge_sql,
    removal_sql,
    restoration_sql,
    update_sql,
    upsert_returned,
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

if TYPE_CHECKING:
    from fm_storage.repositories.model.entity import Entity, Stored

__all__ = ["Payload", "Points", "Vector"]

Vector: TypeAlias = (
    "Sequence[float] | SparseLike | Mapping[str, Sequence[float] | SparseLike]"
)
Payload: TypeAlias = Mapping[str, object]

_KINDS = {Uuid: "uuid", Integer: "integer", Text: "text"}


class Points:
    """The statements of one entity that also say what its point should be.

    Attributes:
        collection: The collection of the vector store.
        wake: Called after each write, so that the drainer looks at once.
    """

    def __init__(
        self,
        entity: Entity[Any],
        collection: str,
        wake: Callable[[], object] | None,
        shapes: Shapes | None = None,
    ) -> None:
        kind = _KINDS.get(type(entity.key[0].kind)) if len(entity.key) == 1 else None
        if kind is None:
            raise ConfigurationInvalid(
                f"{entity.model.__name__}.collection",
                "a point needs a key of one field that is a UUID, number or text",
            )
        self.collection = collection
        self.wake = wake or _nothing
        self._shapes = shapes
        self._entity = entity
        self._key = entity.key[0]
        self._point_id = point_id_sql(f"rec.{self._key.quoted}", kind)
        self._texts: dict[tuple[object, ...], Sql] = {}

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

    def insert(self) -> Sql:
        """Return ``Statements.insert`` with the point; its parameters come last."""
        entity = self._entity
        names = [item.quoted for item in entity.returned]
        return self._one(
            ("insert",), insert_sql(entity), names, names, len(entity.inserted)
        )

    def upsert(self, on: tuple[Stored, ...]) -> Sql:
        """Return ``Statements.upsert()`` of one row, with the point."""
        entity = self._entity
        names = [item.quoted for item in upsert_returned(entity, on, many=False)]
        return self._one(
            ("upsert", on),
            upsert_sql(entity, on, insert_sql(entity)),
            ["xmax = 0 AS fm_created", *names],
            ["fm_created", *names],
            len(entity.inserted),
        )

    def update(
        self, fields: tuple[str, ...], *, versioned: bool, living: str = ""
    ) -> Sql:
        """Return ``Statements.update()`` with the point."""
        entity = self._entity
        names = [item.quoted for item in entity.stored]
        statement = update_sql(entity, fields, versioned=versioned)
        return self._one(
            ("update", fields, versioned, living),
            f"{statement} AND {living}" if living else statement,
            names,
            names,
            len(entity.key) + len(fields) + versioned,
        )

    def _one(
        self,
        known: tuple[object, ...],
        statement: str,
        returning: list[str],
        wanted: list[str],
        parameters: int,
    ) -> Sql:
        if known not in self._texts:
            if self._key.quoted not in returning:
                returning = [*returning, self._key.quoted]
            state = upsert_ctes(
                collection=f"${parameters + 1}",
                point_id=self._point_id,
                vectors=f"${parameters + 2}",
                payload=f"${parameters + 3}",
                payload_hash=f"${parameters + 4}",
                source="rec",
                last=not wanted,
            )
            answer = f" SELECT {', '.join(wanted)} FROM rec" if wanted else ""
            self._texts[known] = Sql(
                f"WITH rec AS ({statement} RETURNING {', '.join(returning)}), "
                f"{state}{answer}"
            )
        return self._texts[known]

    def many(self, on: tuple[Stored, ...], *, upsert: bool) -> Sql:
        """Return ``insert_many``, or ``upsert()`` of many rows, with the points.

        Parameters: the columns, the collection, the values of *on*, vectors,
        payloads, digests.
        """
        known = ("many", on, upsert)
        if known in self._texts:
            return self._texts[known]
        entity = self._entity
        statement = insert_many_sql(entity)
        fields = {item.field for item in (*on, *entity.returned, self._key)}
        names = [item.quoted for item in entity.stored if item.field in fields]
        wanted = ["TRUE", *names]
        returning = names
        if upsert:
            statement = upsert_sql(entity, on, statement)
            stored = upsert_returned(entity, on, many=True)
            returning = ["xmax = 0 AS fm_created", *(item.quoted for item in stored)]
            wanted = ["fm_created", *(item.quoted for item in stored)]
            returning += [name for name in names if name not in returning]
        first = len(entity.inserted) + 2
        arrays = [
            f"${first + at}::{item.kind.bulk_type()}[]" for at, item in enumerate(on)
        ]
        last = first + len(on)
        arrays += [
            f"${last}::bytea[]",
            f"${last + 1}::jsonb[]",
            f"${last + 2}::bytea[]",
        ]
        keys = [f"k{at}" for at in range(len(on))]
        joined = " AND ".join(
            f"rec.{item.quoted} = {item.kind.bulk_expression(f'p.{key}')}"
            for item, key in zip(on, keys, strict=True)
        )
        # In the order of ids: other writers of the same points wait, not deadlock.
        source = (
            f"(SELECT rec.{self._key.quoted}, p.vectors, p.payload, p.hash FROM rec "
            f"JOIN unnest({', '.join(arrays)}) "
            f"AS p ({', '.join(keys)}, vectors, payload, hash) ON {joined} "
            f"ORDER BY {self._point_id}) AS rec"
        )
        state = upsert_ctes(
            collection=f"${len(entity.inserted) + 1}",
            point_id=self._point_id,
            vectors="rec.vectors",
            payload="rec.payload",
            payload_hash="rec.hash",
            source=source,
        )
        self._texts[known] = Sql(
            f"WITH rec AS ({statement} RETURNING {', '.join(returning)}), "
            f"{state} SELECT {', '.join(wanted)} FROM rec"
        )
        return self._texts[known]

    def delete(
        self, *, many: bool = False, versioned: bool = False, erase: bool = False
    ) -> Sql:
        """Return ``Statements.remove()`` with the points; it gives their number.

        Parameters: the key or keys, the version if *versioned*, the collection.
        What a soft deletion keeps of a row, it keeps of the point too.
        """
        known = ("delete", many, versioned, erase)
        if known not in self._texts:
            entity = self._entity
            softly = entity.deleted is not None and not erase
            state = (retire_ctes if softly else delete_ctes)(
                collection=f"${2 + versioned}", point_id=self._point_id, source="rec"
            )
            statement = removal_sql(entity, many=many, versioned=versioned, erase=erase)
            self._texts[known] = Sql(
                f"WITH rec AS ({statement} RETURNING {self._key.quoted}), "
                f"{state} SELECT count(*) FROM rec"
            )
        return self._texts[known]

    def restore(self, *, versioned: bool) -> Sql:
        """Return ``Statements.restore()`` with the point; the collection is last."""
        known = ("restore", versioned)
        if known not in self._texts:
            entity = self._entity
            state = restore_ctes(
                collection=f"${2 + versioned}", point_id=self._point_id, source="rec"
            )
            self._texts[known] = Sql(
                f"WITH rec AS ({restoration_sql(entity, versioned=versioned)} "
                f"RETURNING {entity.select_list}), {state} "
                f"SELECT {entity.select_list} FROM rec"
            )
        return self._texts[known]

    def purge(self) -> Sql:
        """Return ``Statements.purge`` with the points; it gives their number."""
        known = ("purge",)
        if known not in self._texts:
            state = delete_ctes(collection="$2", point_id=self._point_id, source="rec")
            self._texts[known] = Sql(
                f"WITH rec AS ({purge_sql(self._entity)} "
                f"RETURNING {self._key.quoted}), {state} SELECT count(*) FROM rec"
            )
        return self._texts[known]


def _nothing() -> None:
    """Do nothing: no drainer runs in this process."""
