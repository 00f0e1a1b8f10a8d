"""The options of the ``loopback`` plugin, which programs import without the plugin."""

from __future__ import annotations

from attrs import field, frozen

from .base import PluginOptions
from .fields import NAME

__all__ = ["LoopbackOptions"]


@frozen(kw_only=True, eq=False, repr=False)
class LoopbackOptions(PluginOptions):
    """Options of the ``loopback`` plugin: two plugins with the same name in one Trio run are peers.

    Attributes:
        name: The name that the two share.

    Raises:
        InvalidFieldsError: Fields are wrong. The text names each.
    """

    name: str = field(default="loopback", metadata=NAME)
