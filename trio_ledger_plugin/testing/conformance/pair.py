"""What the author of a plugin gives to the conformance kit: a pair of plugins, and facts about them.

Fields of what a pair cannot do keep their defaults; checks that need them are not applicable.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from inspect import iscoroutine
from typing import Any, Final, TypeAlias, TypeVar

import trio
from attrs import evolve, field, frozen

from ...opening import create_plugin
from ...options.load import options_from_mapping
from ...plugin import LedgerPlugin
from ...services import PluginServices

__all__ = [
    "Conditions",
    "InvalidFactoryError",
    "PairConfig",
    "PairFactory",
    "PluginPair",
    "Subject",
    "SubjectFactory",
    "open_pair",
]

# Shorter than the deadline of a check, so that the error names the pair as the problem.
CONNECT_SECONDS: Final = 10.0

PluginT = TypeVar("PluginT", bound=LedgerPlugin)


@frozen(kw_only=True)
class PairConfig:
    """What a check needs of its pair.

    Attributes:
        nursery: The nursery for the tasks of both plugins.
        services: The services of the plugin under test.
        peer_services: The services of its peer.
        limits: Options of both plugins (``PluginOptions``), by field name.
    """

    nursery: trio.Nursery
    services: PluginServices = field(factory=PluginServices)
    peer_services: PluginServices = field(factory=PluginServices)
    limits: Mapping[str, object] = field(factory=dict)

    @property
    def of_peer(self) -> PairConfig:
        """The same for the peer."""
        return evolve(self, services=self.peer_services, peer_services=self.services)

    def make(self, plugin_class: type[PluginT], fields: Mapping[str, object]) -> PluginT:
        """Make a plugin of a class, installed or not, as the check needs it.

        Args:
            plugin_class: The plugin's class.
            fields: Its options, as a mapping without ``"plugin"``.
        """
        options = options_from_mapping(plugin_class.options_class, {**fields, **self.limits})
        return plugin_class(options, self.services, self.nursery)

    def new(self, opts: Any, services: Any = None) -> LedgerPlugin:  # noqa: ANN401 (checks pass wrong ones too)
        """Make an installed plugin as applications do; use it as the ``PluginPair.new`` of such a plugin."""
        plugin: LedgerPlugin = create_plugin(opts, services, nursery=self.nursery)
        return plugin


@frozen(kw_only=True)
class PluginPair:
    """A pair of plugins that are not connected yet, and what the kit needs to know about them.

    Attributes:
        plugin: The plugin under test.
        peer: Its peer; the checks do not judge the peer's behaviour.
        has_money: Whether ``send_money`` works.
        peer_dials: Whether the peer opens the connection, so that the peer must connect last.
        stays_disconnected: Whether the plugin stays disconnected after ``disconnect()`` until ``connect()``, even if
            its peer dials.
        reconnects: Whether the two can be connected again after they were disconnected.
        notices_losses: Whether the plugin is disconnected when its peer leaves; without a lasting connection it is not.
        carries_codes: Whether the error of a handler reaches the peer under its BTP code.
        new: ``(opts, services) -> plugin``, which makes a plugin like the one under test, as the constructor of
            RFC-0024 does; ``PairConfig.new`` for a plugin that is installed.
        options: Options for ``new``, for checks of how the plugin refuses wrong ones.
        needs_store: Whether the plugin requires a store.
        without_credentials: Makes a plugin that lacks its credentials.
        with_wrong_credentials: Makes a plugin whose credentials the peer refuses; the peer is connected by then.
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
    notices_losses: bool = True
    carries_codes: bool = True
    new: Callable[[Any, Any], LedgerPlugin] | None = None
    options: Mapping[str, object] | None = None
    needs_store: bool = False
    without_credentials: Callable[[], LedgerPlugin] | None = None
    with_wrong_credentials: Callable[[], LedgerPlugin] | None = None
    unreachable: Callable[[], LedgerPlugin] | None = None
    cut: Callable[[], None] | None = None
    secrets: tuple[str, ...] = field(default=(), repr=False)
    #: The earlier name of ``stays_disconnected``; None if it is not used.
    stays_parted: bool | None = field(default=None, repr=False, eq=False)

    def __attrs_post_init__(self) -> None:
        if self.stays_parted is not None:
            object.__setattr__(self, "stays_disconnected", self.stays_parted)

    async def connect(self, connect_plugin: Callable[[], Awaitable[object]] | None = None) -> None:
        """Connect both in the order that they need, and wait until both are connected.

        Args:
            connect_plugin: Connects the plugin under test; if None, its ``connect()`` does.

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
        hint = "" if self.peer_dials else "; if the peer dials, the factory must say peer_dials=True"
        raise trio.TooSlowError(f"the two were not connected within {CONNECT_SECONDS:g} s{hint}")

    async def reconnect(self) -> None:
        """Disconnect and connect again the end that dials.

        Cancellation: They may be disconnected.
        """
        dialer = self.peer if self.peer_dials else self.plugin
        await dialer.disconnect()
        await dialer.connect()
        await self.plugin.wait_connected()
        await self.peer.wait_connected()


PairFactory: TypeAlias = Callable[[PairConfig], AbstractAsyncContextManager[PluginPair]]


class InvalidFactoryError(TypeError):
    """The factory gives no pairs; the text says what it does instead."""


@asynccontextmanager
async def open_pair(factory: PairFactory, config: PairConfig) -> AsyncIterator[PluginPair]:
    """Open a pair for the length of a block.

    Args:
        factory: Opens it.
        config: What the factory is called with.

    Yields:
        The pair, not connected.

    Raises:
        InvalidFactoryError: The factory gives something else.

    Cancellation: What the factory does then.
    """
    opening: object = factory(config)
    if not isinstance(opening, AbstractAsyncContextManager):
        if iscoroutine(opening):
            opening.close()
        raise InvalidFactoryError(
            f"the factory returns a value of type {type(opening).__name__}; it is an async generator function that "
            "yields a PluginPair, under @asynccontextmanager"
        )
    async with opening as pair:
        if not isinstance(pair, PluginPair):
            raise InvalidFactoryError(f"the factory yields a value of type {type(pair).__name__}, not a PluginPair")
        yield pair


#: Earlier names.
Conditions = PairConfig
Subject = PluginPair
SubjectFactory: TypeAlias = PairFactory
