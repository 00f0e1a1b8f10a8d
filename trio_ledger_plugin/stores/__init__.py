"""Stores for applications that have none of their own."""

from __future__ import annotations

from .memory import MemoryStore
from .sqlite import SqliteStore, open_sqlite_store

__all__ = ["MemoryStore", "SqliteStore", "open_sqlite_store"]
