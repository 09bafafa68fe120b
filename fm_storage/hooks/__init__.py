"""Shutdown hooks: ``atexit`` for coroutines, and what triggers them."""

from __future__ import annotations

from fm_storage.hooks.hosts import Hosted
from fm_storage.hooks.stack import ShutdownHooks

__all__ = ["Hosted", "ShutdownHooks"]
