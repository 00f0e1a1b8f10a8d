"""Stores for applications that have none of their own."""

from __future__ import annotations

from .memory import MemoryStore
from .postgres import PostgresStore, open_postgres_store
from .sqlite import SqliteStore, open_sqlite_store

__all__ = ["MemoryStore", "PostgresStore", "SqliteStore", "open_postgres_store", "open_sqlite_store"]
