"""Settings: every number that can be changed, complete and frozen.

Separate from the parts they configure, so that a wrong value is refused before
anything is opened. Sources, strongest first: keywords, the environment
(``FM_STORAGE_POSTGRES__DSN`` is ``postgres.dsn``), a ``.env`` or TOML file that
was named explicitly. A ``ConfigManager`` is a source of its own.
"""

from __future__ import annotations

from fm_storage.config.catalog import CatalogConfig
from fm_storage.config.managers import (
    EnvironmentConfigManager,
    MappingConfigManager,
    TomlConfigManager,
)
from fm_storage.config.masking import mask_dsn
from fm_storage.config.postgres import (
    EmbeddedConfig,
    MigrationsConfig,
    PostgresConfig,
    SessionConfig,
)
from fm_storage.config.qdrant import (
    CollectionConfig,
    OutboxConfig,
    QdrantConfig,
    SparseVectorConfig,
    VectorConfig,
)
from fm_storage.config.sources import ConfigManager
from fm_storage.config.storage import StorageConfig

__all__ = [
    "CatalogConfig",
    "CollectionConfig",
    "ConfigManager",
    "EmbeddedConfig",
    "EnvironmentConfigManager",
    "MappingConfigManager",
    "MigrationsConfig",
    "OutboxConfig",
    "PostgresConfig",
    "QdrantConfig",
    "SessionConfig",
    "SparseVectorConfig",
    "StorageConfig",
    "TomlConfigManager",
    "VectorConfig",
    "mask_dsn",
]

# Known by where they are imported from, also in pickles, whichever file they are in.
for _name in __all__:
    globals()[_name].__module__ = __name__
del _name
