"""The settings of Qdrant: collections, the store, and how vectors get there."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal, Self
from urllib.parse import urlsplit

from pydantic import Field, SecretStr, field_validator, model_validator

from fm_storage.config.section import EMBEDDED, PositiveSeconds, Section

Distance = Literal["Cosine", "Euclid", "Dot", "Manhattan"]


class VectorConfig(Section):
    """One dense vector of a collection: ``size`` components, a distance."""

    section = "vector"
    size: int = Field(gt=0, le=65_535)
    distance: Distance = "Cosine"
    on_disk: bool | None = None
    hnsw: dict[str, Any] | None = None
    quantization: dict[str, Any] | None = None


class SparseVectorConfig(Section):
    """One sparse vector of a collection; ``modifier="idf"`` makes it BM25."""

    section = "sparse_vector"
    modifier: Literal["none", "idf"] = "none"
    on_disk: bool | None = None


class CollectionConfig(Section):
    """Definition of a collection; passed through to Qdrant's own engine.

    Give ``size`` (and ``distance``) for one unnamed dense vector, or
    ``vectors`` / ``sparse_vectors`` for named ones. ``payload_indexes`` maps a
    payload field to its type (``"keyword"``, ``"integer"``, ``"datetime"``, …) or
    to Qdrant's own options (``{"type": "keyword", "is_tenant": True}``).
    """

    section = "collection"
    size: int | None = Field(default=None, gt=0, le=65_535)
    distance: Distance = "Cosine"
    vectors: dict[str, VectorConfig] = Field(default_factory=dict)
    sparse_vectors: dict[str, SparseVectorConfig] = Field(default_factory=dict)
    payload_indexes: dict[str, str | dict[str, Any]] = Field(default_factory=dict)
    shard_number: int | None = Field(default=None, gt=0)
    replication_factor: int | None = Field(default=None, gt=0)
    write_consistency_factor: int | None = Field(default=None, gt=0)
    sharding_method: Literal["auto", "custom"] | None = None
    on_disk: bool | None = None
    on_disk_payload: bool | None = None
    hnsw: dict[str, Any] | None = None
    quantization: dict[str, Any] | None = None

    @model_validator(mode="after")
    def _has_a_vector(self) -> Self:
        if self.size is None and not self.vectors and not self.sparse_vectors:
            raise ValueError(
                "no vector is defined; give size, vectors or sparse_vectors"
            )
        if self.size is not None and self.vectors:
            raise ValueError(
                "size and vectors exclude each other; name every dense vector"
            )
        both = self.vectors.keys() & self.sparse_vectors.keys()
        if both:
            raise ValueError(
                f"{min(both)!r} names a dense and a sparse vector; give each its own"
            )
        return self


class QdrantConfig(Section):
    """Qdrant: where it is, and the bounds of a call. Times in seconds.

    Attributes:
        url: ``http(s)://…`` of a server, ``embedded:`` / ``embedded:PATH`` for
            Qdrant's own engine on this machine, or ``:memory:`` for the
            client's local mode (tests only).
        durability: Of the embedded engine: ``fsync`` survives a power cut,
            ``process`` survives kill −9.
        collections: Ensured when the manager opens.
        timeout: Deadline of one call, retries included.
        max_batch_bytes: Bytes of one request at most; larger batches are split.
        max_concurrency: Requests under way at once for one bulk call.
        index_threshold: Points above which the embedded engine builds an index.
    """

    section = "qdrant"
    url: str = EMBEDDED
    api_key: SecretStr | None = Field(default=None, repr=False)
    prefer_grpc: bool = False
    grpc_port: int = Field(default=6334, ge=1, le=65_535)
    ca_file: Path | None = None
    headers: dict[str, str] = Field(default_factory=dict, repr=False)
    timeout: PositiveSeconds = 60.0
    durability: Literal["fsync", "process"] = "fsync"
    max_batch_bytes: int = Field(default=4 * 1024 * 1024, ge=64 * 1024)
    max_batch_points: int = Field(default=1000, ge=1)
    max_concurrency: int = Field(default=4, ge=1)
    index_threshold: int = Field(default=20_000, ge=1)
    collections: dict[str, CollectionConfig] = Field(default_factory=dict)

    @field_validator("url")
    @classmethod
    def _known_scheme(cls, url: str) -> str:
        if url == ":memory:" or url.startswith(EMBEDDED):
            return url
        if url.startswith(("http://", "https://")):
            parts = urlsplit(url)
            if not parts.hostname:
                raise ValueError("has no host; write http://host:6333")
            try:
                _ = parts.port
            except ValueError:
                raise ValueError(
                    "has a port that no server has; write http://host:6333"
                ) from None
            if parts.username or parts.password:
                raise ValueError("holds credentials; put the key into qdrant.api_key")
            return url
        if url.strip().lower() in {"none", "null", "off"}:
            raise ValueError(
                "is no address; to do without vectors set qdrant to None "
                "(FM_STORAGE_QDRANT=none)"
            )
        raise ValueError("must start with http://, https:// or embedded:")

    @property
    def embedded(self) -> bool:
        """Whether the engine is one of our own."""
        return self.url.startswith(EMBEDDED)


class OutboxConfig(Section):
    """Outbox: how vectors travel from PostgreSQL to Qdrant. Times in seconds.

    Attributes:
        drain: Whether this process delivers; others may deliver for it.
        batch_size: Points delivered in one call.
        lease: How long a batch belongs to one drainer.
        poll_interval: Longest pause before the queue is looked at again.
        notify_interval: Shortest pause between two NOTIFYs of this process.
        flush_timeout: How long closing waits for the queue to empty.
        max_backoff: Longest pause after failures.
    """

    section = "outbox"
    drain: bool = True
    batch_size: int = Field(default=500, ge=1, le=10_000)
    lease: PositiveSeconds = 120.0
    poll_interval: PositiveSeconds = 5.0
    notify_interval: PositiveSeconds = 0.05
    flush_timeout: float = Field(default=5.0, ge=0)
    max_backoff: PositiveSeconds = 30.0
