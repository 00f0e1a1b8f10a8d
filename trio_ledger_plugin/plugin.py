"""``LedgerPlugin``: the surface of RFC-0024, once for every plugin; its life is ``lifecycle.py``'s.

An author of a plugin subclasses ``LedgerPlugin`` and writes what differs: ``run_connection`` (how to connect and
stay connected), ``carry_data`` and ``carry_money`` (how one request and one transfer travel), ``fail_calls`` and,
where there is something to finish, ``finish_calls``. Handler rules, events, state, timeouts and validation are common.
"""

from __future__ import annotations

from abc import abstractmethod
from threading import get_ident
from typing import TYPE_CHECKING, ClassVar
from uuid import uuid4

import trio
from attrs import asdict

from .errors import InvalidFieldsError, NotConnectedError
from .lifecycle import Lifecycle
from .money.service import MoneyService, make_ledger
from .options.base import PluginOptions
from .runtime.handlers import DataHandler, MoneyHandler, TransactionalMoneyHandler, as_bytes, check_transactional
from .statistics import Statistics
from .transfer import Transfer, is_key

if TYPE_CHECKING:
    from collections.abc import Awaitable

    from .money.reconciliation import Transfers

__all__ = ["LedgerPlugin"]

MAX_AMOUNT = 2**64 - 1


class LedgerPlugin(Lifecycle):
    """One account with one peer (RFC-0024, class LedgerPlugin).

    Made by ``open_plugin()`` or ``create_plugin()``. Every method may be called by any task of the same Trio run,
    and by many at once.

    Attributes:
        version: The version of the Ledger Plugin Interface: 2.
        events: The receiving end of the plugin's events. Clones of it compete for them.

    Args:
        options: The plugin's options.
        services: The store and the log that the host offers.
        nursery: Where the plugin's tasks run.
        on_failed: Told of a fatal error; when None, the error leaves through the nursery.
    """

    version: ClassVar[int] = 2
    options_class: ClassVar[type[PluginOptions]] = PluginOptions

    # What an author of a plugin writes.

    @abstractmethod
    def carry_data(self, data: bytes) -> Awaitable[bytes]:
        """Carry one request to the peer and return its response; ``send_data`` checked the arguments."""

    @abstractmethod
    async def carry_money(self, transfer: Transfer) -> None:
        """Carry one transfer to the peer, once, and return when it is acknowledged.

        At ``MoneyLevel.KEYED`` the peer must get ``transfer.key`` with it. ``TransferInDoubtError`` tells that the
        peer may have applied it, ``RemoteError`` that it refuses it; any other error, that nothing was sent.
        """

    @abstractmethod
    def calls_in_flight(self) -> int:
        """Return how many calls wait for the peer."""

    def peer_retention(self) -> int | None:
        """Return for how many seconds the peer keeps transfer keys, agreed on the present link; None at PLAIN."""
        return None

    @property
    def address(self) -> str:
        """The URL that is dialed or listened at, without credentials; empty for a plugin without a network.

        Of a listener on port 0 it tells the bound port once ``connect()`` has returned.
        """
        return ""

    # Sending.

    async def send_data(self, data: bytes | bytearray | memoryview) -> bytes:
        """Send one request to the peer and return its response (RFC-0024, sendData).

        Args:
            data: The request, opaque to the plugin; usually an ILP packet. Any bytes-like object.

        Returns:
            The response; empty when the peer answered without data.

        Raises:
            TypeError: ``data`` is not bytes-like.
            InvalidFieldsError: ``data`` is too long for one message. Nothing was sent.
            NotConnectedError: No link is up. Nothing was sent.
            RemoteError: The peer answered with an error.
            ConnectionLostError: The link died first; the peer may have acted.
            ResponseTimeoutError: No answer within ``response_timeout`` seconds of the sending; the peer may have acted.
                A call that finds the link full waits for its turn before, for as long as the peer takes what others
                have sent: ``trio.fail_after()`` bounds both.
            DecodeError: The peer's answer breaks the protocol; the peer may have acted.
            PluginClosedError: The plugin was closed or disconnected first.
            PluginFailedError: The plugin has failed.

        Cancellation: Safe at any time. The request may have left; its response is discarded.
        """
        if data.__class__ is not bytes:
            data = as_bytes(data)
        if len(data) > self._max_data:
            raise InvalidFieldsError(f"data has {len(data)} bytes; one message holds at most {self._max_data}")
        if not self._connected or self._draining:
            raise self._not_connected()
        if get_ident() != self._thread:
            self.check_thread()
        return await self.carry_data(data)

    async def send_money(self, amount: str | int, *, idempotency_key: str | None = None) -> None:
        """Transfer money to the peer (RFC-0024, sendMoney); returns once the peer acknowledged it.

        With a transactional store at both ends the transfer is KEYED: it has its effect exactly once. It outlives
        links and this process: from the journal it is sent again until the peer answers. Otherwise it is PLAIN: at
        most once, never sent again by itself. With a transactional store here, each is in ``transfers``.

        Args:
            amount: Units of the ledger's smallest denomination, 1 to 2**64-1: decimal text, or an int.
            idempotency_key: 1 to 64 ASCII characters that name this transfer; a UUID4 when None. With a
                journal, a key that is known there has the outcome that it had, and nothing is sent.

        Raises:
            TypeError: ``amount`` or the key has another type.
            InvalidFieldsError: ``amount`` or the key is out of its range. Nothing was sent.
            NotConnectedError: No link is up. Nothing was sent.
            RemoteError: The peer refused the transfer; it was not applied.
            TransferInDoubtError: It was sent, and no acknowledgement came within ``response_timeout`` seconds or
                before the plugin was closed: the peer may have applied it. At KEYED the journal goes on with it.
            NotAcceptedError: The transfer of this key was settled by hand as not applied. Nothing was sent.
            DuplicateIdError: The key belongs to a transfer of another amount. Nothing was sent.
            MoneyLevelError: The link is PLAIN, and the account or the option ``money`` is KEYED. Nothing was sent.
            StoreError: The journal cannot be written. Nothing was sent.
            PluginClosedError: The plugin was closed before it was sent.
            PluginFailedError: The plugin had failed before it was sent.

        Cancellation: Nothing is sent when the caller was cancelled before it was in the journal. Later it goes on;
            a caller that may be cancelled passes a key of its own, to ask again under it.
        """
        transfer = Transfer(_checked_amount(amount), key=_checked_key(idempotency_key))
        self.check_thread()
        await trio.lowlevel.checkpoint_if_cancelled()
        if not self._connected or self._draining:
            error = self._not_connected()
            # What is known under a key may be under way, or done: "nothing was sent" would be read as "not paid".
            known = idempotency_key is not None and isinstance(error, NotConnectedError)
            if known and await self.desk.recall(transfer):
                return
            raise error
        await self.desk.send(transfer)

    # Receiving.

    def register_data_handler(self, handler: DataHandler) -> None:
        """Set the handler of the peer's requests (RFC-0024, registerDataHandler).

        Args:
            handler: ``async (data: bytes) -> bytes``. It runs in a task and a context of its own.

        Raises:
            TypeError: ``handler`` cannot be called.
            DataHandlerAlreadyRegisteredError: One is set already.
        """
        self.handlers.register_data(handler)

    def deregister_data_handler(self) -> None:
        """Remove the data handler, if one is set; those that run finish (RFC-0024, deregisterDataHandler)."""
        self.handlers.deregister_data()

    def register_money_handler(self, handler: MoneyHandler) -> None:
        """Set the handler of the peer's transfers (RFC-0024, registerMoneyHandler).

        Args:
            handler: ``async (amount: str) -> None``; ``current_transfer()`` tells more inside it. Without a
                transactional store it is called before the transfer is acknowledged, and an error that it raises
                refuses the transfer. With one it is called once the transfer is credited, at least once, and again
                after an error until it succeeds: it tells by the key what it has seen before.

        Raises:
            TypeError: ``handler`` cannot be called.
            MoneyHandlerAlreadyRegisteredError: One is set already, of either kind.
        """
        self.handlers.register_money(handler)
        self.desk.handler_registered()

    def register_transactional_money_handler(self, handler: TransactionalMoneyHandler) -> None:
        """Set a handler of the peer's transfers that has its effect exactly once, in the store's own database.

        Args:
            handler: ``(connection: sqlite3.Connection, transfer: Transfer) -> None``, a plain function. It runs on
                the store's thread, inside the transaction that credits the transfer: what it writes counts exactly
                when the transfer does. An error that it raises undoes what it did and refuses the transfer. It
                can be run again after a commit that failed, so it changes nothing but the database.

        Raises:
            TypeError: ``handler`` cannot be called, or is an async function.
            InvalidServicesError: There is no transactional store.
            MoneyHandlerAlreadyRegisteredError: One is set already, of either kind.
        """
        check_transactional(handler)
        self.desk.check_journal()
        self.handlers.register_transactional_money(handler)

    def deregister_money_handler(self) -> None:
        """Remove the money handler of either kind; those that run finish (RFC-0024, deregisterMoneyHandler)."""
        self.handlers.deregister_money()

    @property
    def transfers(self) -> Transfers:
        """What has moved, from the journal of this plugin's transfers, and what is in doubt.

        Raises:
            InvalidServicesError: The plugin has no transactional store.
        """
        return self.desk.transfers

    def statistics(self) -> Statistics:
        """Return a snapshot of what the plugin has done so far; may be called from any thread."""
        return Statistics(
            **asdict(self.counters),
            calls_in_flight=self.calls_in_flight(),
            handlers_running=self.context.budget.handlers.used,
            events_dropped=self._stream.dropped,
        )

    # What an author of a plugin calls.

    def make_desk(self) -> MoneyService:
        """Return what looks after the plugin's money: its own ledger, for its one account."""
        ledger = make_ledger(self.services.store, self.options, self.log, self.tasks, self.find_money_handler)
        return MoneyService(self, ledger, self.tasks, account="", shows="", keeps_ledger=True)

    def find_money_handler(self, account: str) -> MoneyHandler | None:  # noqa: ARG002 (there is one account)
        """Return the money handler that credited transfers of an account go to, or None while they wait."""
        return self.handlers.money


def _checked_amount(amount: object) -> str:
    if isinstance(amount, bool) or not isinstance(amount, str | int):
        raise TypeError(f"amount is decimal text or an int, not {type(amount).__name__}")
    if isinstance(amount, str):
        number = int(amount) if amount.isascii() and amount.isdigit() and len(amount) <= 20 else 0
        shown = repr(amount[:40])
    else:
        number = amount
        shown = str(amount) if abs(amount) < 10**40 else "an enormous number"
    if not 1 <= number <= MAX_AMOUNT:
        raise InvalidFieldsError(f"amount is {shown}; it must be a whole number from 1 to 2**64-1, in digits")
    return str(number)


def _checked_key(key: object) -> str:
    if key is None:
        return str(uuid4())
    if not isinstance(key, str):
        raise TypeError(f"idempotency_key is text, not {type(key).__name__}")
    if not is_key(key):
        raise InvalidFieldsError("idempotency_key must be 1 to 64 ASCII characters")
    return key
