"""Shutdown hooks: ``atexit`` for coroutines, and what sets them off."""

from __future__ import annotations

from fm_storage.hooks.courtesy import politely
from fm_storage.hooks.hosts import Hosted
from fm_storage.hooks.opened import Opened
from fm_storage.hooks.outlast import outlast
from fm_storage.hooks.stack import ShutdownHooks

__all__ = ["Hosted", "Opened", "ShutdownHooks", "outlast", "politely"]
