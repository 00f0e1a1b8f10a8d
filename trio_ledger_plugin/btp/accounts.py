"""The ``btp-accounts`` plugin: a server for many accounts over BTP/2.0, like ilp-plugin-mini-accounts.

Invariant: a connection belongs to the account that its token authenticates. The connection's requests are served for
that account alone. A request that this end sends goes over exactly one connection of the account in its destination.
"""

from __future__ import annotations

import re
from functools import partial
from typing import TYPE_CHECKING, ClassVar, Final
from weakref import WeakValueDictionary

import trio
from attrs import evolve

from ..codec import ildcp, ilp
from ..errors import InvalidFieldsError, LedgerPluginError, NotAcceptedError, NotConnectedError, UnreachableError
from ..events import AccountConnected, AccountConnectedAgain, AccountDisconnected
from ..ilp.configuration import read_ildcp_answer
from ..ilp.routing import child_segment, forward, has_expired, read_prepare
from ..net.tokens import AccountTokens, is_segment
from ..request import find_request
from ..runtime.budget import Budget, Limits
from .account import Account, AccountPlugin
from .link_limits import RESERVE, LinkLimits
from .options import AccountsOptions, HostInfo
from .pending import Decisions
from .server import BtpServer, Server
from .session import request_ids

if TYPE_CHECKING:
    from collections.abc import Callable

    from ..errors import PluginFailedError
    from ..services import PluginServices
    from ..statistics import Counters
    from ..transfer import Transfer
    from ..websocket.requests import Handshake
    from .account import AccountSnapshot
    from .link import Link

__all__ = ["AccountsPlugin"]

# How interledger-rs names an account in the path of the URL.
ACCOUNT_PATH: Final = re.compile(r"/accounts/([^/]+)/ilp/btp")


class AccountsPlugin(BtpServer):
    """A server whose clients each have an account, below the server's own ILP address.

    ``is_connected()`` is true while it listens. ``account(name)`` returns a plugin for one account. If that plugin has
    no handler for a request, this plugin's handlers serve it.
    """

    options_class: ClassVar[type[AccountsOptions]] = AccountsOptions
    has_accounts: ClassVar[bool] = True
    options: AccountsOptions

    def __init__(
        self,
        options: AccountsOptions,
        services: PluginServices,
        nursery: trio.Nursery,
        on_failed: Callable[[PluginFailedError], None] | None = None,
    ) -> None:
        super().__init__(options, services, nursery, on_failed)
        self.info: HostInfo | None = options.debug_host_ildcp_info
        self.context.budget.limits = Limits(
            options.max_server_handlers, options.max_server_handler_bytes, options.max_server_backlog_bytes, RESERVE
        )
        # The accounts that the server needs, and those that only the application does: it has asked for their plugin.
        self._accounts: dict[str, Account] = {}
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
            info=self._known_info,
            receive=self.money.receive,
            changed=self._account_changed,
        )
        self._limits = LinkLimits(options, self.context, self._accounts)
        self.money.call_on_open(self._resume_accounts)
        tokens = AccountTokens(services.store, options.generate_account, self.log, options.ledger_id)
        self._server = Server(
            self.context,
            request_ids(),
            host=options.host,
            port=options.port,
            ssl_context=options.ssl_context,
            proxy_protocol=options.proxy_protocol,
            decisions=Decisions(
                make_offer=self.money.make_offer,
                make_room=self._make_room,
                attach=self._attach_link,
                detach=self._detach_link,
                is_wanted=self._is_link_wanted,
                identify=partial(_identify, tokens, options.account_from_path),
                verify=tokens.verify if tokens.are_stored else None,
            ),
            refuse=self._refuse_origin,
        )

    @property
    def address(self) -> str:
        """The URL that clients dial, without credentials; its port is the bound one while the plugin listens."""
        return self._server.address

    def _is_link_wanted(self) -> bool:
        return not self.is_disconnecting

    @property
    def server(self) -> Server:
        """The server that accepts every client's connections."""
        return self._server

    def account(self, name: str) -> AccountPlugin:
        """Return the plugin of one account, whether its client has ever connected or not.

        Every call returns the same object until it is closed. The server keeps the plugin while the account is
        connected, has handlers or a journal, or its events have been asked for; else it lives as long as it is used.

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
        return self._plugin_of(self._open_account(name))

    def accounts(self) -> tuple[AccountSnapshot, ...]:
        """Return a snapshot of each connected account, in no particular order."""
        return tuple(account.snapshot() for account in self._accounts.values() if account.links)

    async def run_connection(self, *, task_status: trio.TaskStatus[None]) -> None:
        """Get the server's own address and asset, then listen and serve."""

        def listening() -> None:
            task_status.started()
            self.link_up()

        if self.options.debug_host_ildcp_info is None:
            self.info = await self._ask_host()
        broken = False
        try:
            await self._server.run(listening)
        except Exception:
            broken = True
            raise
        finally:
            for link in self.exchanges():
                link.abort("disconnected", closed=not broken)

    def _known_info(self) -> HostInfo:
        assert self.info is not None
        return self.info

    async def _ask_host(self) -> HostInfo:
        """Ask the data handler for the server's address and asset, as a child asks its parent."""
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

    def _refuse_origin(self, handshake: Handshake) -> int | None:
        """Refuse a web page's script unless its origin is listed."""
        if handshake.origin is None or self.options.allows(handshake.origin):
            return None
        self.log.info("refused a browser: origin %o is not in allowed_origins", handshake.origin)
        return 403

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
        info = self._known_info()
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
        account = self._accounts.get(name)
        request = find_request()
        if account is not None and request is not None and request.source is account.context.budget:
            await trio.lowlevel.checkpoint()
            text = "the packet would go back to the account that it came from"
            return ilp.encode(ilp.Reject(ilp.ErrorCode.UNREACHABLE, own, text))
        if account is not None and account.links:
            margin = 0.0 if request is None else self.options.expiry_margin
            return await forward(prepare, partial(self._send_to, account), own, data, log=self.log, margin=margin)
        await trio.lowlevel.checkpoint()
        if has_expired(prepare):
            return ilp.encode(ilp.Reject(ilp.ErrorCode.TRANSFER_TIMED_OUT, own, "the packet expired"))
        return self._reject_offline()

    async def _send_to(self, account: Account, data: bytes) -> bytes:
        """Send a request to an account, and return its answer; a Reject if the account is no longer connected."""
        try:
            return await account.request(data)
        except NotConnectedError:
            # The link was lost while the request waited for its turn.
            self.check_usable()
            return self._reject_offline()

    def _reject_offline(self) -> bytes:
        own = self._known_info().client_address
        return ilp.encode(ilp.Reject(ilp.ErrorCode.PEER_UNREACHABLE, own, "the account is not connected"))

    async def carry_money(self, transfer: Transfer) -> None:  # noqa: ARG002 (there is no account to send it to)
        """Raise: money is sent to one account, with ``account(name).send_money(amount)``.

        Raises:
            InvalidFieldsError: Always. Nothing was sent.
        """
        await trio.lowlevel.checkpoint()
        raise InvalidFieldsError("a server of many accounts sends money with account(name).send_money(amount)")

    def _resume_accounts(self) -> None:
        """Resume unfinished transfers to accounts that connected before the journal was open."""
        self.drop_downgraded()
        for account in tuple(self._accounts.values()):
            if account.links and self.money.is_unfinished(account.name):
                self._plugin_of(account)

    # All accounts.

    def exchanges(self) -> tuple[Link, ...]:
        """Return the links of all accounts; may be called from any thread."""
        return tuple(link for account in tuple(self._accounts.values()) for link in tuple(account.links))

    def counted(self) -> Counters:
        """Return what was counted for the server and all its accounts; may be called from any thread."""
        total = evolve(self.counters)
        for account in tuple(self._accounts.values()):
            total.add(account.context.counters)
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
        accounts = {**self._asked, **self._accounts}
        return [account.plugin for account in accounts.values() if account.plugin is not None]

    # What the server and the accounts call.

    def _make_room(self, name: str) -> None:
        """Make room for a connection of an account.

        Raises:
            UnreachableError: There is no room, or this end has disconnected the account.
        """
        if name in self._disconnected:
            self.counters.links_refused += 1
            raise UnreachableError("the account was disconnected by this end; try again later")
        self._limits.make_room(name)

    def _allow(self, name: str, allowed: bool) -> None:
        if allowed:
            self._disconnected.discard(name)
        else:
            self._disconnected.add(name)

    def _attach_link(self, link: Link) -> None:
        """Add an authenticated link to its account."""
        account = self._open_account(link.account)
        account.add(link)
        self._sort_account(account)
        self.log.debug("account %s connected from %s", account.name, link.peer)
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
        # Last: this serves the messages that were held, and one of them may end the link.
        link.authenticated()

    def _detach_link(self, link: Link, reason: str) -> None:
        """Stop using a link that is lost."""
        account = self._accounts.get(link.account)
        if account is None or link not in account.links:
            return
        account.remove(link)
        self.log.info("a connection of account %s from %s ended: %s", account.name, link.peer, reason)
        if not account.links:
            if account.plugin is not None:
                account.plugin.link_down(reason)
            self._sort_account(account)
            self.publish(AccountDisconnected(account.name))

    def _open_account(self, name: str) -> Account:
        """Return the account of a name; a new one is forgotten unless it is used."""
        account = self._accounts.get(name) or self._asked.get(name)
        if account is None:
            budget = self._budgets.pop(name, None) or Budget(self._account_limits, self.context.budget)
            account = self._new_account(name, budget)
        return account

    def _plugin_of(self, account: Account) -> AccountPlugin:
        """Return the plugin of an account; the first call makes it."""
        plugin = account.plugin
        if plugin is None:
            plugin = account.plugin = AccountPlugin(
                account,
                self.services,
                self.money,
                is_listening=self.is_connected,
                allow=self._allow,
                changed=self._account_changed,
                on_ended=self._plugin_ended,
            )
            if account.links:
                plugin.link_up()
            elif account.name not in self._accounts:
                self._asked[account.name] = account
        return plugin

    def _plugin_ended(self, account: Account) -> None:
        account.plugin = None
        self._sort_account(account)

    def _account_changed(self, name: str) -> None:
        account = self._accounts.get(name) or self._asked.get(name)
        if account is not None:
            self._sort_account(account)

    def _sort_account(self, account: Account) -> None:
        """Keep an account while it is needed; the counts of one that is not are added to the server's."""
        name = account.name
        kept = name in self._accounts
        if account.is_needed:
            if not kept:
                if self._asked.pop(name, None) is not None:
                    self.counters.add(account.context.counters, -1)
                self._accounts[name] = account
        elif kept:
            del self._accounts[name]
            self.counters.add(account.context.counters)
            if account.context.budget.in_use:
                self._budgets[name] = account.context.budget
            if account.plugin is not None:
                self._asked[name] = account


def _identify(tokens: AccountTokens, from_path: bool, username: str | None, token: bytes, path: str) -> str:
    """Return the account that a client asks for, by its username or, if allowed, in the path of its URL.

    Raises:
        NotAcceptedError: The token is empty, or the account's name cannot be used.
    """
    if from_path:
        found = ACCOUNT_PATH.fullmatch(path.partition("?")[0])
        if found is not None:
            if username and username != found[1]:
                raise NotAcceptedError("auth_username and the URL's path name different accounts")
            username = found[1]
    return tokens.identify(username, token)
