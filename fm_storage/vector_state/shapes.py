"""What the vectors of a collection look like, where that is known beforehand.

A vector that cannot fit is refused when it is written, and not by the drainer an
hour later. What is not known is not checked here; the vector store decides.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from fm_storage.errors import DimensionMismatch, InvalidVector

if TYPE_CHECKING:
    from fm_storage.config import CollectionConfig


@dataclass(frozen=True, slots=True)
class Shape:
    """The vectors of one collection.

    Attributes:
        dense: Their sizes by name; ``""`` is the unnamed one.
        sparse: Names of the sparse ones.
    """

    dense: Mapping[str, int]
    sparse: frozenset[str]

    def check(
        self,
        name: str,
        count: int,
        collection: str,
        index: int | None,
        *,
        sparse: bool,
    ) -> None:
        """Refuse one vector of *count* components that cannot fit.

        Raises:
            DimensionMismatch: It has another size.
            InvalidVector: There is no vector of this name, or it is of the other
                kind.
        """
        if self.dense.get(name) == count and not sparse:
            return
        if sparse and name in self.sparse:
            return
        if not sparse and name in self.dense:
            raise DimensionMismatch(
                collection,
                expected=self.dense[name],
                got=count,
                index=index,
                field=name or "vector",
            )
        at = "" if index is None else f" of point {index}"
        raise InvalidVector(
            f"collection {collection!r}: {name or 'vector'}{at} "
            f"{self._problem(name, sparse=sparse)}",
            collection=collection,
            index=index,
            field=name or "vector",
        )

    def _problem(self, name: str, *, sparse: bool) -> str:
        if name in (self.dense if sparse else self.sparse):
            return f"is {'dense' if sparse else 'sparse'}; give such a vector"
        names = ", ".join(sorted({*self.dense, *self.sparse} - {""}))
        if not name:
            return f"has no name; name one of {names}"
        return f"is not defined; defined: {names or 'the unnamed one'}"


class Shapes:
    """The shapes that are known, by the name writers use for the collection."""

    def __init__(
        self, definitions: Mapping[str, CollectionConfig] | None = None
    ) -> None:
        self._known: dict[str, Shape] = {}  # by learn()
        for collection, definition in (definitions or {}).items():
            self.learn(collection, definition)

    def learn(self, collection: str, definition: CollectionConfig) -> None:
        """Hold writers to *definition* from now on, in place of an earlier one."""
        dense = {name: one.size for name, one in definition.vectors.items()}
        if definition.size is not None:
            dense[""] = definition.size
        self._known[collection] = Shape(dense, frozenset(definition.sparse_vectors))

    def relearn(self, collection: str, definition: CollectionConfig) -> None:
        """Do as ``learn()`` for a collection that is known, and nothing for others."""
        if collection in self._known:
            self.learn(collection, definition)

    def get(self, collection: str) -> Shape | None:
        """Return the shape of a collection, or None where it is not known."""
        return self._known.get(collection)
