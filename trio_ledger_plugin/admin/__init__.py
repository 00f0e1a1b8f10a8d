"""A window for operators: a web page, health checks and metrics of running plugins. Needs the extra ``admin``."""

from .opening import Admin, open_admin

__all__ = ["Admin", "open_admin"]
