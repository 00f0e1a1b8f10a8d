"""How options are declared, judged and read."""

from .base import ConnectOptions, LinkOptions, PluginOptions

__all__ = ["ConnectOptions", "LinkOptions", "PluginOptions"]
