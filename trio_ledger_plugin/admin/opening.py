"""``open_admin``: the admin page of running plugins, for the length of a block."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import ExitStack, asynccontextmanager
from typing import TYPE_CHECKING

import trio

from ..errors import InvalidFieldsError
from ..http.options import IncomingOptions
from ..net.url import is_loopback
from ..opening import bare_nursery
from ..parking import start_task
from ..plugin import LedgerPlugin
from ..registry import name_of_plugin
from .access import Access
from .server import AdminServer
from .site import Site
from .watched import Watched

if TYPE_CHECKING:
    import ssl
    from collections.abc import AsyncIterator, Collection, Iterable

    from ..secret import Secret

__all__ = ["Admin", "incoming_options", "open_admin"]


class Admin:
    """The admin page of an ``open_admin`` block.

    Args:
        server: Its server.
    """

    def __init__(self, server: AdminServer) -> None:
        self._server = server

    @property
    def address(self) -> str:
        """The URL of the page, with the port that is bound; ``health`` and ``metrics`` are below it."""
        return self._server.address


@asynccontextmanager
async def open_admin(
    plugins: LedgerPlugin | Iterable[LedgerPlugin] | Mapping[str, LedgerPlugin],
    host: str = "127.0.0.1",
    port: int = 0,
    token: str | Secret | None = None,
    *,
    ssl_context: ssl.SSLContext | None = None,
    names: Collection[str] = (),
) -> AsyncIterator[Admin]:
    """Serve a page for operators, ``/health`` and ``/metrics``, for the length of the block.

    The page shows the plugins' accounts, rates, durations, limits and events, and settles transfers in doubt. It loads
    nothing from elsewhere. A plugin that closes or fails within the block stays on the page, with the reason.

    Args:
        plugins: One plugin, some, or some by the names that the page and the metrics have for them; the default names
            are such as ``btp-accounts``, and ``btp-accounts 2`` for a second one.
        host: The address to listen on.
        port: The TCP port; 0 takes a free one.
        token: What callers must show, as ``Authorization: Bearer``; the page asks for it. Without one, everyone on this
            machine may look and settle.
        ssl_context: The server's TLS context; None listens without TLS.
        names: Host names under which browsers ask for the page, such as that of a reverse proxy in front of it. Its IP
            addresses and ``localhost`` need not be given.

    Yields:
        The open page, which has its address.

    Raises:
        TypeError: ``plugins`` has something else in it.
        InvalidFieldsError: ``host`` is not this machine and there is no token, ``plugins`` is empty, or another
            argument is wrong.
        OSError: The port cannot be opened.
        RuntimeError: A plugin's requests are watched already, as by another admin page.
        ModuleNotFoundError: On import: the extra ``admin`` is not installed.

    Cancellation: Closes the page at once.
    """
    watched = [Watched(name, plugin) for name, plugin in _name_plugins(plugins).items()]
    incoming = incoming_options(host, port, token, ssl_context)
    log = watched[0].plugin.log
    site = Site(watched, log)
    server = AdminServer(incoming, Access(incoming, names), site.is_open, site.answer, log)
    with ExitStack() as stack:
        events = [stack.enter_context(each.watching()) for each in watched]
        async with bare_nursery(None) as nursery:
            for each, channel in zip(watched, events, strict=True):
                start_task(nursery, each.read_events, channel)
                start_task(nursery, each.time_requests)
                start_task(nursery, each.add_points)
                start_task(nursery, each.money.looks.run)
                start_task(nursery, each.money.count_states)
                if each.accounts is not None:
                    start_task(nursery, each.accounts.looks.run)
            listening = trio.Event()
            start_task(nursery, server.run, listening.set)
            await listening.wait()
            try:
                yield Admin(server)
            finally:
                nursery.cancel_scope.cancel()


def incoming_options(
    host: str, port: int, token: str | Secret | None, ssl_context: ssl.SSLContext | None
) -> IncomingOptions:
    """Return where the page is served, and what callers must show.

    Raises:
        InvalidFieldsError: As ``open_admin`` documents.
    """
    try:
        incoming = IncomingOptions(port, "" if token is None else token, host=host, ssl_context=ssl_context)
    except InvalidFieldsError as error:
        problems = tuple((name.replace("static_token", "token"), problem) for name, problem in error.problems)
        raise _wrong(*problems) from error
    # As the options have it: without the brackets of an IPv6 address, and None for every address.
    if not incoming.static_token and (incoming.host is None or not is_loopback(incoming.host)):
        problem = f"missing; on {host} other machines can reach the page, so there must be one that they show"
        raise _wrong(("token", problem))
    return incoming


def _wrong(*problems: tuple[str, str]) -> InvalidFieldsError:
    return InvalidFieldsError("; ".join(f"{name}: {problem}" for name, problem in problems), problems=problems)


def _name_plugins(
    plugins: LedgerPlugin | Iterable[LedgerPlugin] | Mapping[str, LedgerPlugin],
) -> dict[str, LedgerPlugin]:
    if isinstance(plugins, LedgerPlugin):
        plugins = (plugins,)
    named: dict[str, LedgerPlugin] = dict(plugins) if isinstance(plugins, Mapping) else {}
    if not isinstance(plugins, Mapping):
        for plugin in plugins:
            kind = name_of_plugin(type(plugin))
            same = sum(type(other) is type(plugin) for other in named.values())
            named[f"{kind} {same + 1}" if same else kind] = plugin
    if not named:
        raise InvalidFieldsError("plugins: empty, must be at least one plugin")
    for name, plugin in named.items():
        if not isinstance(name, str) or not isinstance(plugin, LedgerPlugin):
            raise TypeError(f"plugins are LedgerPlugins, by names that are text, not {type(plugin).__name__}")
    return named
