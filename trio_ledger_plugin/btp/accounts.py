"""The ``btp-accounts`` plugin: a server for many accounts over BTP/2.0, as ilp-plugin-mini-accounts is one.

The law of this module: an account is what its token opened. What comes over a connection is served in the name of its
account alone, and a request of ours goes over exactly one connection of the account that its destination names.
"""

from __future__ import annotations

from datetime import UTC, datetime
from typing import TYPE_CHECKING, ClassVar, TypeAlias

import trio
from attrs import evolve

from ..codec import ildcp, ilp
from ..errors import DecodeError, InvalidFieldsError, LedgerPluginError, NotConnectedError, UnreachableError
from ..events import AccountConnected, AccountDisconnected
from ..ilp.configuration import read_ildcp_answer
from ..money.service import MoneyService, make_ledger
from ..net.tokens import AccountTokens, is_segment
from .account import Account, part_all
from .door import Door
from .options import AccountsOptions, HostInfo
from .server import BtpServer
from .session import request_ids

if TYPE_CHECKING:
    from collections.abc import Callable

    from ..errors import PluginFailedError
    from ..runtime.handlers import MoneyHandler
    from ..services import PluginServices
    from ..statistics import Statistics
    from ..transfer import Transfer
    from ..websocket.connection import Handshake
    from .account import AccountPlugin, AccountSnapshot
    from .link import Link

__all__ = ["AccountsPlugin"]

_Rejection: TypeAlias = tuple[ilp.ErrorCode, str]

EXPIRED: _Rejection = (ilp.ErrorCode.TRANSFER_TIMED_OUT, "the packet expired")
OFFLINE: _Rejection = (ilp.ErrorCode.PEER_UNREACHABLE, "the account is not connected")


class AccountsPlugin(BtpServer):
    """A server whose clients each have an account, below the server's own ILP address.

    ``is_connected()`` is true while it listens. ``account(name)`` is a plugin of its own for one account; a request
    that no handler of its account's own takes goes to this plugin's handlers.
    """

    options_class: ClassVar[type[AccountsOptions]] = AccountsOptions
    options: AccountsOptions

    def __init__(
        self,
        options: AccountsOptions,
        services: PluginServices,
        nursery: trio.Nursery,
        on_failed: Callable[[PluginFailedError], None] | None = None,
    ) -> None:
        super().__init__(options, services, nursery, on_failed)
        self.nursery: trio.Nursery = nursery
        self.info: HostInfo | None = options.debug_host_ildcp_info
        self._accounts: dict[str, Account] = {}
        tokens = AccountTokens(services.store, options.generate_account, self.log)
        self._door = Door(
            self.context,
            options,
            request_ids(),
            offered_retention=self.desk.offered_retention,
            attach=self.adopt,
            detach=self.link_lost,
            is_wanted=self._is_link_wanted,
            identify=tokens.identify,
            verify=tokens.verify if tokens.are_stored else None,
            refuse=self._refuse_origin,
        )

    @property
    def address(self) -> str:
        """The URL that clients dial, without credentials; its port is the bound one while the plugin listens."""
        return self._door.address

    def _is_link_wanted(self) -> bool:
        return not self.is_disconnecting

    def open_door(self) -> Door:
        """Return the door that every client comes through."""
        return self._door

    def account(self, name: str) -> AccountPlugin:
        """Return the plugin of one account, whether its client has ever connected or not.

        The same object each time, until it is closed.

        Args:
            name: The account's name: the segment behind the server's ILP address.

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
        return self._open_account(name).give_plugin()

    def accounts(self) -> tuple[AccountSnapshot, ...]:
        """Return the accounts that are connected now, in no particular order; looking at them changes nothing."""
        return tuple(account.snapshot() for account in self._accounts.values() if account.links)

    async def run_connection(self, *, task_status: trio.TaskStatus[None]) -> None:
        """Find out the server's own address, listen, and serve."""

        def listening() -> None:
            task_status.started()
            self.link_up()

        if self.options.debug_host_ildcp_info is None:
            self.info = await self._ask_host()
        broken = False
        try:
            await self._door.run(listening)
        except Exception:
            broken = True
            raise
        finally:
            for link in self._links():
                link.abort("disconnected", closed=not broken)

    async def _ask_host(self) -> HostInfo:
        """Ask the data handler, as a child asks its parent."""
        if not self.handlers.serves_data:
            raise InvalidFieldsError(
                "debug_host_ildcp_info: missing, and there is no data handler to ask for the server's ILP address"
            )
        answer = await self.handlers.answer(ildcp.encode(ildcp.IldcpRequest()))
        if not isinstance(answer, bytes):
            raise answer or UnreachableError("the data handler gave no answer to the ILDCP request")
        told = read_ildcp_answer(answer)
        return HostInfo(client_address=told.client_address, asset_scale=told.asset_scale, asset_code=told.asset_code)

    def _refuse_origin(self, handshake: Handshake) -> int | None:
        """Refuse a web page's script unless its origin is listed."""
        if handshake.origin is None or self.options.allows(handshake.origin):
            return None
        self.log.info("refused a browser: origin %o is not in allowed_origins", handshake.origin)
        return 403

    # Sending.

    async def carry_data(self, data: bytes) -> bytes:
        """Send an ILP Prepare to the account that its destination names, and return the answer.

        What this plugin itself knows to be impossible is answered with an ILP Reject: ``F02`` for an address that is
        not below the server's, ``T01`` for an account that is not connected, ``R00`` past the Prepare's expiry,
        ``F05`` for a fulfillment that is not the condition's preimage. What befalls a request under way is raised, as
        ``LedgerPlugin.send_data`` tells.

        Raises:
            InvalidFieldsError: ``data`` is no ILP Prepare. Nothing was sent.
            DecodeError: The answer is no ILP Fulfill or Reject; the peer may have acted.
            LedgerPluginError: As ``LedgerPlugin.send_data`` tells.
        """
        assert self.info is not None
        prepare = _read_prepare(data)
        own = self.info.client_address
        if prepare.destination == ildcp.DESTINATION:
            await trio.lowlevel.checkpoint()
            return ildcp.encode(ildcp.IldcpResponse(own, self.info.asset_scale, self.info.asset_code))
        # Once: a wall clock that is set meanwhile changes nothing.
        deadline = trio.current_time() + (prepare.expires_at - datetime.now(UTC)).total_seconds()
        account = self._accounts.get(prepare.destination[len(own) + 1 :].partition(".")[0])
        rejection = OFFLINE
        if not prepare.destination.startswith(f"{own}."):
            rejection = ilp.ErrorCode.UNREACHABLE, "the destination is not below this server's address"
        elif deadline <= trio.current_time():
            rejection = EXPIRED
        elif account is not None and account.links:
            rejection = EXPIRED
            with trio.move_on_at(deadline):
                answer = await self._ask(account, prepare, data)
                if trio.current_time() < deadline:
                    if isinstance(answer, bytes):
                        return answer
                    rejection = answer
        await trio.lowlevel.checkpoint()
        code, message = rejection
        return ilp.encode(ilp.Reject(code, own, message))

    async def _ask(self, account: Account, prepare: ilp.Prepare, data: bytes) -> bytes | _Rejection:
        try:
            answer = await account.link_for_request().request(data)
        except NotConnectedError:
            # There is none, or it was lost while the request waited for its turn.
            self.check_usable()
            return OFFLINE
        packet = ilp.decode(answer)
        if isinstance(packet, ilp.Prepare):
            raise DecodeError("the answer to a Prepare is a Prepare")
        if isinstance(packet, ilp.Fulfill) and not ilp.fulfills(packet.fulfillment, prepare.execution_condition):
            return ilp.ErrorCode.WRONG_CONDITION, "the fulfillment is not the condition's preimage"
        return answer

    async def carry_money(self, transfer: Transfer) -> None:  # noqa: ARG002 (whoever it is for)
        """Refuse: money goes to one account.

        Raises:
            InvalidFieldsError: Always. Nothing was sent.
        """
        await trio.lowlevel.checkpoint()
        raise InvalidFieldsError("a server of many accounts sends money with account(name).send_money(amount)")

    def make_desk(self) -> MoneyService:
        """Return what looks after the money of all accounts; each is sent to by its own plugin."""
        ledger = make_ledger(self.services.store, self.options, self.log, self.tasks, self.find_money_handler)
        if ledger is not None:
            ledger.on_open = self._resume_accounts
        return MoneyService(self, ledger, self.tasks, account=None, shows=None, keeps_ledger=True)

    def _resume_accounts(self) -> None:
        """Send again for those that connected before the store told what is to be sent again."""
        for account in tuple(self._accounts.values()):
            if account.links and account.plugin is None and self.desk.is_unfinished(account.name):
                account.give_plugin()

    def abandon_money(self, reason: str) -> None:
        """Let those go who wait for transfers to any account."""
        super().abandon_money(reason)
        for account in tuple(self._accounts.values()):
            if account.plugin is not None:
                account.plugin.abandon_money(reason)

    def find_money_handler(self, account: str) -> MoneyHandler | None:
        """Return the account's own money handler, or else the server's."""
        known = self._accounts.get(account)
        own = None if known is None or known.plugin is None else known.plugin.handlers.money
        return own or self.handlers.money

    # All links.

    def _links(self) -> list[Link]:
        # Copies: the statistics may be asked for by another thread.
        return [link for account in tuple(self._accounts.values()) for link in tuple(account.links)]

    def fail_calls(self, make_error: Callable[[], LedgerPluginError]) -> None:
        """Fail every call on every link."""
        for link in self._links():
            link.calls.close(make_error)

    async def finish_calls(self) -> None:
        """Let every link drain and part from its peer."""
        await part_all(self._links())

    def calls_in_flight(self) -> int:
        """Return how many calls wait for the peers."""
        return sum(len(link.calls.pending) for link in self._links())

    def statistics(self) -> Statistics:
        """Return a snapshot over all accounts; the bytes of the live links are in it."""
        counted, links = super().statistics(), self._links()
        return evolve(
            counted,
            bytes_sent=counted.bytes_sent + sum(link.bytes_sent for link in links),
            bytes_received=counted.bytes_received + sum(link.bytes_received for link in links),
        )

    def ended(self, failure: PluginFailedError | None) -> None:
        """End the accounts' own plugins with this one."""
        for account in tuple(self._accounts.values()):
            if account.plugin is not None:
                account.plugin.host_ended(failure)

    # What the door and the accounts call.

    def adopt(self, link: Link) -> None:
        """Take an authenticated link into use, beside those that its account has."""
        account = self._open_account(link.account)
        account.add(link)
        self.log.debug("account %s connected from %s", account.name, link.peer)
        link.requests.answer = account.answer
        if account.plugin is None:
            if self.desk.is_unfinished(account.name):
                account.give_plugin()
        elif account.plugin.is_connected():
            account.plugin.desk.link_up()
        else:
            # It may be one more all the same: those of an account that was disconnected part in their own time.
            account.plugin.link_up()
        if len(account.links) == 1:
            self.publish(AccountConnected(account.name))
        # Last: what came before the verdict is served at once, and may be the end of the link.
        link.authenticated()

    def link_lost(self, link: Link, reason: str) -> None:
        """Take note that a link is lost."""
        account = self._accounts.get(link.account)
        if account is None or link not in account.links:
            return
        account.remove(link)
        self.log.debug("a connection of account %s from %s ended: %s", account.name, link.peer, reason)
        if not account.links:
            self.release(account)
            if account.plugin is not None:
                account.plugin.link_down(reason)
            self.publish(AccountDisconnected(account.name))

    def release(self, account: Account) -> None:
        """Forget an account that nothing is left of."""
        if account.is_idle:
            self._accounts.pop(account.name, None)

    def _open_account(self, name: str) -> Account:
        account = self._accounts.get(name)
        if account is None:
            account = self._accounts[name] = Account(self, name)
        return account


def _read_prepare(data: bytes) -> ilp.Prepare:
    problem = "another ILP packet"
    try:
        packet = ilp.decode(data)
        if isinstance(packet, ilp.Prepare):
            return packet
    except DecodeError as error:
        problem = str(error)
    raise InvalidFieldsError(f"data must be an ILP Prepare, whose destination names the account: {problem}")
