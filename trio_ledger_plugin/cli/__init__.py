"""The command line. ``main`` is its entry point."""

from .entry import main

__all__ = ["main"]
