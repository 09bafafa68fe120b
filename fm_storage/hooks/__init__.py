"""Shutdown hooks: ``atexit`` for coroutines, and what sets them off."""

from __future__ import annotations

from fm_storage.hooks.hosts import Hosted
from fm_storage.hooks.stack import ShutdownHooks

__all__ = ["Hosted", "ShutdownHooks"]
