"""Stores for hosts that have none of their own."""

from __future__ import annotations

from .memory import MemoryStore

__all__ = ["MemoryStore"]
