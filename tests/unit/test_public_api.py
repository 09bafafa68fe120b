"""The public names, pinned: a change here is a change for users."""

from __future__ import annotations

import ast
import importlib.metadata
import inspect

import fm_storage
from fm_storage import errors

PROMISED = [
    "StorageManager",
    "StorageConfig",
    "PostgresConfig",
    "QdrantConfig",
    "MigrationsConfig",
    "SessionConfig",
    "OutboxConfig",
    "ConfigManager",
    "Pool",
    "Connection",
    "Transaction",
    "PostgresSessionManager",
    "TempView",
    "Repository",
    "ErrorEntry",
    "Severity",
    "ErrorEntryRepository",
    "QdrantStore",
    "Point",
    "ScoredPoint",
    "CollectionConfig",
    "Outbox",
    "ErrorManager",
    "Recorded",
    "SimilarEntry",
    "ErrorGroup",
    "Analyzer",
    "IntegratedManager",
    "Vectorizer",
    "ShutdownHooks",
    "Health",
    "PoolStatistics",
    "CleanupReport",
    "SessionInfo",
    "Page",
]


def test_every_promised_name_is_public():
    """What the contract names can be imported from the top."""
    missing = {*PROMISED, *errors.__all__} - set(fm_storage.__all__)

    assert missing == set()


def test_a_name_is_at_run_time_what_type_checkers_see():
    """The imports that only they read name the objects that are loaded."""
    for node in ast.walk(ast.parse(inspect.getsource(fm_storage))):
        if isinstance(node, ast.ImportFrom) and str(node.module)[:3] == "fm_":
            room = importlib.import_module(str(node.module))
            for name in node.names:
                loaded = getattr(fm_storage, name.asname or name.name)
                assert loaded is getattr(room, name.name)
    assert fm_storage.errors is errors
    assert {*fm_storage.__all__} <= {*dir(fm_storage)}
    assert not hasattr(fm_storage, "Nothing")


def test_all_is_sorted_and_true():
    """``__all__`` names what exists, once, in order."""
    names = [name for name in fm_storage.__all__ if name != "__version__"]

    assert all(hasattr(fm_storage, name) for name in fm_storage.__all__)
    assert len(set(names)) == len(names)
    assert names == sorted(names, key=_isort_key)


def _isort_key(name: str) -> tuple[bool, str]:
    return (not name.isupper(), name)


def test_version_is_that_of_the_distribution():
    """One version, wherever it is asked for."""
    assert fm_storage.__version__ == importlib.metadata.version("fm-storage")


def test_every_public_object_is_documented():
    """A public class without a docstring promises nothing."""
    undocumented = [
        name
        for name in fm_storage.__all__
        if inspect.isclass(getattr(fm_storage, name))
        and not inspect.getdoc(getattr(fm_storage, name))
    ]

    assert undocumented == []
