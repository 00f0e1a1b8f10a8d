"""A server of many accounts: its table of accounts, and what it sends to them.

Invariant: a link belongs to the account that its token authenticates. The link's requests are served for that account
alone. A request that this end sends goes over exactly one link of the account in its destination.
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, ClassVar, Final
from weakref import WeakValueDictionary

import trio
from attrs import evolve

from ..codec import ildcp, ilp
from ..errors import InvalidFieldsError, LedgerPluginError, NotConnectedError, UnreachableError
from ..events import AccountConnected, AccountConnectedAgain, AccountDisconnected
from ..ilp.configuration import read_ildcp_answer
from ..ilp.routing import child_segment, forward, has_expired, read_prepare
from ..net.tokens import AccountTokens, is_segment
from ..plugin import LedgerPlugin
from ..request import find_request
from ..runtime.budget import Budget, Limits
from .account import Account, AccountHooks, AccountPlugin
from .info import HostInfo

if TYPE_CHECKING:
    from collections.abc import Callable

    from ..errors import PluginFailedError
    from ..ilp.routing import Send
    from ..options.base import PluginOptions
    from ..runtime.exchange import Exchange
    from ..services import PluginServices
    from ..statistics import Counters
    from ..transfer import Transfer
    from .account import AccountSnapshot

__all__ = ["RESERVE", "AccountsServer"]

# Which part of what a server limits is kept for accounts that use nothing.
RESERVE: Final = 0.125


class AccountsServer(LedgerPlugin):
    """A server whose clients each have an account, below the server's own ILP address.

    ``is_connected()`` is true while it listens. ``account(name)`` returns a plugin for one account. If that plugin has
    no handler for a request, this plugin's handlers serve it.

    Args:
        options: The plugin's options.
        services: The application's store and log.
        nursery: Where the plugin's tasks run.
        on_failed: Called with the fatal error. If None, the error propagates through the nursery.
        generate_account: Whether tokens name the accounts, or usernames; None: either.
        info: The server's address and asset; if None, the data handler is asked for them.
        limits: What all accounts together may use.
        expiry_margin: How many seconds before its own expiry a forwarded Prepare expires at the next hop.
    """

    has_accounts: ClassVar[bool] = True

    def __init__(
        self,
        options: PluginOptions,
        services: PluginServices,
        nursery: trio.Nursery,
        on_failed: Callable[[PluginFailedError], None] | None = None,
        *,
        generate_account: bool | None,
        info: HostInfo | None,
        limits: Limits,
        expiry_margin: float,
    ) -> None:
        super().__init__(options, services, nursery, on_failed)
        self.info: HostInfo | None = info
        #: The tokens of the accounts.
        self.tokens: AccountTokens = AccountTokens(services.store, generate_account, self.context, self.is_used)
        self._margin = expiry_margin
        self.context.budget.limits = limits
        #: The accounts that the server needs, by name.
        self.table: dict[str, Account] = {}
        # Accounts that only the application needs: it has asked for their plugin.
        self._asked: WeakValueDictionary[str, Account] = WeakValueDictionary()
        # What accounts use that are forgotten otherwise: handlers of lost links.
        self._budgets: WeakValueDictionary[str, Budget] = WeakValueDictionary()
        # The accounts that were disconnected by this end; their clients are refused.
        self._disconnected: set[str] = set()
        self._account_limits = Limits.of_account(options)
        # The bound methods are made once, not for each account: an idle account must cost little.
        self._new_account = partial(
            Account,
            server=self.context,
            info=self.known_info,
            receive=self.money.receive,
            changed=self.account_changed,
        )
        #: What the plugins of accounts call.
        self.account_hooks: AccountHooks = AccountHooks(
            is_listening=self.is_connected,
            allow=self.allow,
            changed=self.account_changed,
            on_ended=self.plugin_ended,
        )
        self.money.call_on_open(self.resume_accounts)

    def account(self, name: str) -> AccountPlugin:
        """Return the plugin of one account, whether its client has ever connected or not.

        Every call returns the same object until it is closed. The server keeps the plugin while the account is
        connected, has handlers or money to send, or once its events were asked for; else it lives as long as it is
        used.

        Args:
            name: The account's name: the segment after the server's ILP address.

        Raises:
            TypeError: ``name`` is not text.
            InvalidFieldsError: ``name`` cannot be a segment of an ILP address.
            PluginClosedError: The server is closed.
            PluginFailedError: The server has failed.
        """
        if not isinstance(name, str):
            raise TypeError(f"an account's name is text, not {type(name).__name__}")
        if not is_segment(name):
            raise InvalidFieldsError("an account's name is 1 to 255 letters, digits, _, ~ or -")
        self.check_usable()
        return self._plugin_of(self.open_account(name))

    def accounts(self) -> tuple[AccountSnapshot, ...]:
        """Return a snapshot of each connected account, in no particular order."""
        return tuple(account.snapshot() for account in self.table.values() if account.links)

    def is_used(self, name: str) -> bool | None:
        """Whether something was sent over the connections of an account; None if it has none."""
        account = self.table.get(name)
        return account.is_used if account is not None and account.links else None

    def known_info(self) -> HostInfo:
        """Return the server's address and asset, which are known while it listens."""
        assert self.info is not None
        return self.info

    async def ask_host(self) -> HostInfo:
        """Ask the data handler for the server's address and asset, as a child asks its parent.

        Raises:
            InvalidFieldsError: There is no data handler.
            LedgerPluginError: The handler's error, or its answer is none.
        """
        if not self.handlers.serves_data:
            raise InvalidFieldsError(
                "debug_host_ildcp_info: missing, and there is no data handler to ask for the server's ILP address"
            )
        answer = await self.handlers.answer(ildcp.encode(ildcp.IldcpRequest()))
        if not isinstance(answer, bytes):
            if isinstance(answer, LedgerPluginError):
                raise answer
            raise UnreachableError("the data handler gave no answer to the ILDCP request")
        info = read_ildcp_answer(answer)
        return HostInfo(client_address=info.client_address, asset_scale=info.asset_scale, asset_code=info.asset_code)

    # Sending.

    async def carry_data(self, data: bytes) -> bytes:
        """Send an ILP Prepare to the account that its destination names, and return the answer.

        Inside a data handler, this forwards: the packet never goes back to the account that sent the request, and it
        expires earlier by ``expiry_margin``. ``account(name).send_data()`` does neither.

        This plugin answers with an ILP Reject itself: ``F02`` for an address that is not below the server's, or belongs
        to the sender; ``T01`` for an account that is not connected, ``R00`` once the Prepare has expired, ``R02`` if it
        is about to, ``F05`` for a fulfillment that is not the condition's preimage. Errors of a request in flight are
        raised, as ``LedgerPlugin.send_data`` documents.

        Raises:
            InvalidFieldsError: ``data`` is not an ILP Prepare. Nothing was sent.
            DecodeError: The answer is not an ILP Fulfill or Reject; the peer may have acted.
            LedgerPluginError: As ``LedgerPlugin.send_data`` documents.

        Cancellation: The request may have been sent; its response is ignored.
        """
        info = self.known_info()
        own = info.client_address
        prepare = read_prepare(data)
        if prepare.destination == ildcp.DESTINATION:
            await trio.lowlevel.checkpoint()
            return ildcp.encode(ildcp.IldcpResponse(own, info.asset_scale, info.asset_code))
        name = child_segment(prepare.destination, own)
        if name is None:
            await trio.lowlevel.checkpoint()
            text = "the destination is not below this server's address"
            return ilp.encode(ilp.Reject(ilp.ErrorCode.UNREACHABLE, own, text))
        account = self.table.get(name)
        request = find_request()
        if account is not None and request is not None and request.source is account.context.budget:
            await trio.lowlevel.checkpoint()
            text = "the packet would go back to the account that it came from"
            return ilp.encode(ilp.Reject(ilp.ErrorCode.UNREACHABLE, own, text))
        send = account.request if account is not None and account.links else self.sender_to(name)
        if send is not None:
            margin = 0.0 if request is None else self._margin
            log = self.log.once(name)
            return await forward(prepare, partial(self._send_to, send), own, data, log=log, margin=margin)
        await trio.lowlevel.checkpoint()
        if has_expired(prepare):
            return ilp.encode(ilp.Reject(ilp.ErrorCode.TRANSFER_TIMED_OUT, own, "the packet expired"))
        return self._reject_offline()

    def sender_to(self, name: str) -> Send | None:  # noqa: ARG002 (for protocols in which the server may dial)
        """Return a function that sends a request to an account without a link; None if that is not possible."""
        return None

    async def _send_to(self, send: Send, data: bytes) -> bytes:
        """Send a request to an account, and return its answer; a Reject if the account cannot be reached now."""
        try:
            return await send(data)
        except NotConnectedError:
            # The link was lost while the request waited for its turn.
            self.check_usable()
            return self._reject_offline()

    def _reject_offline(self) -> bytes:
        own = self.known_info().client_address
        return ilp.encode(ilp.Reject(ilp.ErrorCode.PEER_UNREACHABLE, own, "the account is not connected"))

    async def carry_money(self, transfer: Transfer) -> None:  # noqa: ARG002 (there is no account to send it to)
        """Raise: money is sent to one account, with ``account(name).send_money(amount)``.

        Raises:
            InvalidFieldsError: Always. Nothing was sent.
        """
        await trio.lowlevel.checkpoint()
        raise InvalidFieldsError("a server of many accounts sends money with account(name).send_money(amount)")

    def resume_accounts(self) -> None:
        """Resume unfinished transfers to accounts that connected before the journal was open."""
        for account in tuple(self.table.values()):
            if account.links and self.money.is_unfinished(account.name):
                self._plugin_of(account)

    # All accounts.

    def exchanges(self) -> tuple[Exchange, ...]:
        """Return the links of all accounts; may be called from any thread."""
        return tuple(link for account in tuple(self.table.values()) for link in tuple(account.links))

    def counted(self) -> Counters:
        """Return what was counted for the server and all its accounts; may be called from any thread."""
        total = evolve(self.counters)
        total.add_all(account.context.counters for account in tuple(self.table.values()))
        return total

    def begin_closing(self) -> bool:
        """Refuse new calls and requests, also in the accounts' own plugins."""
        for plugin in self._plugins():
            plugin.begin_closing()
        return super().begin_closing()

    def ended(self, failure: PluginFailedError | None) -> None:
        """End the accounts' own plugins with this one."""
        for plugin in self._plugins():
            plugin.server_ended(failure)

    def _plugins(self) -> list[AccountPlugin]:
        # items() keeps each account; {**self._asked} would look up names whose account may be gone by then.
        accounts = {**dict(self._asked.items()), **self.table}
        return [account.plugin for account in accounts.values() if account.plugin is not None]

    # What the protocol's server and the accounts call.

    def check_allowed(self, name: str) -> None:
        """Check that an account's client may connect.

        Raises:
            UnreachableError: This end has disconnected the account.
        """
        if name in self._disconnected:
            self.counters.links_refused += 1
            raise UnreachableError("the account was disconnected by this end; try again later")

    def allow(self, name: str, allowed: bool) -> None:
        """Let an account's client connect, or refuse it from now on."""
        if allowed:
            self._disconnected.discard(name)
        else:
            self._disconnected.add(name)

    def attach_link(self, name: str, link: Exchange, peer: str) -> None:
        """Add an authenticated link to its account.

        Args:
            name: The account's name.
            link: The link.
            peer: The client's address, for the log.
        """
        account = self.open_account(name)
        account.add(link)
        self._sort_account(account)
        self.log.debug("account %s connected from %s", account.name, peer)
        plugin = account.plugin
        if plugin is None:
            if self.money.is_unfinished(account.name):
                self._plugin_of(account)
            else:
                self.money.account_link_up(account.name, link.peer_journal)
        elif plugin.is_connected():
            plugin.money.link_up()
        else:
            # It may not be the only link: those of an account that was disconnected may not have ended yet.
            plugin.link_up()
        links = len(account.links)
        self.publish(AccountConnected(account.name) if links == 1 else AccountConnectedAgain(account.name, links))

    def detach_link(self, name: str, link: Exchange, peer: str, reason: str) -> None:
        """Stop using a link that is lost; the arguments are those of ``attach_link``, and why it is lost."""
        account = self.table.get(name)
        if account is None or link not in account.links:
            return
        account.remove(link)
        self.log.info("a connection of account %s from %s ended: %s", account.name, peer, reason)
        if not account.links:
            if account.plugin is not None:
                account.plugin.link_down(reason)
            self._sort_account(account)
            if self.tokens.names is not None:
                self.tokens.names.left(name, used=account.is_used)
            self.publish(AccountDisconnected(account.name))

    def open_account(self, name: str) -> Account:
        """Return the account of a name; a new one is forgotten unless it is used."""
        account = self.table.get(name) or self._asked.get(name)
        if account is None:
            budget = self._budgets.pop(name, None) or Budget(self._account_limits, self.context.budget)
            account = self._new_account(name, budget)
        return account

    def _plugin_of(self, account: Account) -> AccountPlugin:
        """Return the plugin of an account; the first call makes it."""
        plugin = account.plugin
        if plugin is None:
            plugin = account.plugin = self.make_plugin(account)
            if account.links:
                plugin.link_up()
            elif account.name not in self.table:
                self._asked[account.name] = account
        return plugin

    def make_plugin(self, account: Account) -> AccountPlugin:
        """Return a new plugin of an account."""
        return AccountPlugin(account, self.services, self.money, self.account_hooks)

    def plugin_ended(self, account: Account) -> None:
        """Handle that an account's plugin is closed or has failed."""
        account.plugin = None
        self._sort_account(account)

    def account_changed(self, name: str) -> None:
        """Handle that the application uses an account's plugin in another way than before."""
        account = self.table.get(name) or self._asked.get(name)
        if account is not None:
            self._sort_account(account)

    def _sort_account(self, account: Account) -> None:
        """Keep an account while it is needed; the counts of one that is not are added to the server's."""
        name = account.name
        kept = name in self.table
        if account.is_needed:
            if not kept:
                if self._asked.pop(name, None) is not None:
                    self.counters.add(account.context.counters, -1)
                self.table[name] = account
        elif kept:
            del self.table[name]
            self.counters.add(account.context.counters)
            if account.context.budget.in_use:
                self._budgets[name] = account.context.budget
            if account.plugin is not None:
                self._asked[name] = account
