"""What the author of a plugin gives to the conformance kit: a pair of plugins, and what is to be known of them.

Whatever a pair cannot do, its field is left at its default; the checks that need it are told as not applicable.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from contextlib import AbstractAsyncContextManager
from typing import Any, Final, TypeAlias, TypeVar

import trio
from attrs import evolve, field, frozen

from ...opening import create_plugin
from ...options.load import options_from_mapping
from ...plugin import LedgerPlugin
from ...services import PluginServices

__all__ = ["Conditions", "PairConfig", "PairFactory", "PluginPair", "Subject", "SubjectFactory"]

# Less than a check has: what is wrong is the pair, and is to be told as that.
CONNECT_SECONDS: Final = 10.0

PluginT = TypeVar("PluginT", bound=LedgerPlugin)


@frozen(kw_only=True)
class PairConfig:
    """Under what a check wants its pair.

    Attributes:
        nursery: Where the tasks of both plugins are to run.
        services: What the plugin under test is to be given.
        peer_services: What its peer is to be given.
        limits: Options of every plugin (``PluginOptions``) that both ends are to have, by field name.
    """

    nursery: trio.Nursery
    services: PluginServices = field(factory=PluginServices)
    peer_services: PluginServices = field(factory=PluginServices)
    limits: Mapping[str, object] = field(factory=dict)

    @property
    def of_peer(self) -> PairConfig:
        """The same as seen from the other end; the peer is made under these."""
        return evolve(self, services=self.peer_services, peer_services=self.services)

    def make(self, plugin_class: type[PluginT], fields: Mapping[str, object]) -> PluginT:
        """Make a plugin of a class, installed or not, that meets the conditions.

        Args:
            plugin_class: The plugin's class.
            fields: Its options, as a mapping without ``"plugin"``.
        """
        options = options_from_mapping(plugin_class.options_class, {**fields, **self.limits})
        return plugin_class(options, self.services, self.nursery)

    def new(self, opts: Any, services: Any = None) -> LedgerPlugin:  # noqa: ANN401 (the checks pass wrong ones too)
        """Make an installed plugin as applications do; what ``PluginPair.new`` is of such a plugin."""
        return create_plugin(opts, services, nursery=self.nursery)


@frozen(kw_only=True)
class PluginPair:
    """A pair of plugins that are not connected yet, and what the kit needs to know of them.

    Attributes:
        plugin: The plugin under test.
        peer: A plugin that is its peer once both are connected; its behaviour is not judged.
        has_money: Whether ``send_money`` works.
        peer_dials: Whether it is the peer that opens the connection, so that it must connect last.
        stays_disconnected: Whether the plugin stays disconnected after ``disconnect()`` until ``connect()``, even if
            its peer dials.
        reconnects: Whether the two can be connected again once they have parted.
        new: ``(opts, services) -> plugin``, which makes a plugin like the one under test, as the constructor of
            RFC-0024 does; ``PairConfig.new`` for a plugin that is installed.
        options: Options for ``new``; with it, it can be checked how wrong ones are refused.
        needs_store: Whether the plugin cannot do without a store.
        without_credentials: Makes a plugin that lacks its credentials.
        with_wrong_credentials: Makes a plugin whose credentials the peer refuses; the peer is connected then.
        unreachable: Makes a plugin whose peer cannot be reached now, but perhaps later.
        cut: Breaks the connection between the two, as a network does.
        secrets: Texts that must not appear in logs: tokens and the like.
    """

    plugin: LedgerPlugin
    peer: LedgerPlugin
    has_money: bool = True
    peer_dials: bool = False
    stays_disconnected: bool = True
    reconnects: bool = True
    new: Callable[[Any, Any], LedgerPlugin] | None = None
    options: Mapping[str, object] | None = None
    needs_store: bool = False
    without_credentials: Callable[[], LedgerPlugin] | None = None
    with_wrong_credentials: Callable[[], LedgerPlugin] | None = None
    unreachable: Callable[[], LedgerPlugin] | None = None
    cut: Callable[[], None] | None = None
    secrets: tuple[str, ...] = field(default=(), repr=False)
    #: The earlier name of ``stays_disconnected``; None where that one is used.
    stays_parted: bool | None = field(default=None, repr=False, eq=False)

    def __attrs_post_init__(self) -> None:
        if self.stays_parted is not None:
            object.__setattr__(self, "stays_disconnected", self.stays_parted)

    async def connect(self, connect_plugin: Callable[[], Awaitable[object]] | None = None) -> None:
        """Connect both, in the order that they need, and wait until both are.

        Args:
            connect_plugin: What connects the plugin under test; its ``connect()`` when None.

        Raises:
            trio.TooSlowError: They are not connected within ten seconds.

        Cancellation: One of them may be connected.
        """
        connect_plugin = connect_plugin or self.plugin.connect
        with trio.move_on_after(CONNECT_SECONDS):
            if self.peer_dials:
                await connect_plugin()
                await self.peer.connect()
            else:
                await self.peer.connect()
                await connect_plugin()
            await self.plugin.wait_connected()
            await self.peer.wait_connected()
            return
        hint = "" if self.peer_dials else "; where it is the peer that dials, the factory says peer_dials=True"
        raise trio.TooSlowError(f"the two were not connected within {CONNECT_SECONDS:g} s{hint}")

    async def reconnect(self) -> None:
        """Part, and connect again: the end that dials does.

        Cancellation: They may be parted.
        """
        dialer = self.peer if self.peer_dials else self.plugin
        await dialer.disconnect()
        await dialer.connect()
        await self.plugin.wait_connected()
        await self.peer.wait_connected()


PairFactory: TypeAlias = Callable[[PairConfig], AbstractAsyncContextManager[PluginPair]]

#: Earlier names.
Conditions = PairConfig
Subject = PluginPair
SubjectFactory: TypeAlias = PairFactory
