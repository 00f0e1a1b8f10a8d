"""The Interledger Ledger Plugin Interface, version 2 (RFC-0024), for Trio."""

from typing import TYPE_CHECKING

from .accounts.info import HostInfo
from .environment import options_from_environment
from .errors import (
    AlreadyFulfilledError,
    AlreadyRolledBackError,
    ConnectionLostError,
    ConnectTimeoutError,
    DataHandlerAlreadyRegisteredError,
    DecodeError,
    DuplicateIdError,
    InsufficientBalanceError,
    InvalidFieldsError,
    InvalidFulfillmentError,
    InvalidServicesError,
    LedgerLostError,
    LedgerPluginError,
    MoneyHandlerAlreadyRegisteredError,
    MoneyLevelError,
    NotAcceptedError,
    NotConnectedError,
    PluginClosedError,
    PluginFailedError,
    RemoteError,
    ResponseTimeoutError,
    StoreError,
    StoreInDoubtError,
    TransferInDoubtError,
    TransferNotFoundError,
    UnreachableError,
)
from .events import (
    AccountConnected,
    AccountConnectedAgain,
    AccountDisconnected,
    Connected,
    Disconnected,
    EventsDropped,
    Failed,
    TransfersInDoubt,
)
from .ilp.configuration import fetch_ildcp
from .opening import create_plugin, loopback_pair, open_plugin
from .options.base import ConnectOptions, PluginOptions
from .options.loopback import LoopbackOptions
from .request import IncomingRequest, current_request
from .services import Log, PluginServices, Store, TransactionalStore
from .transfer import JournalEntry, MoneyLevel, Totals, Transfer, TransferDirection, TransferState, current_transfer

if TYPE_CHECKING:
    from .accounts.account import AccountPlugin
    from .btp.accounts import AccountsPlugin
    from .btp.options import AccountsOptions, BtpOptions, ListenerOptions
    from .btp.plugin import BtpPlugin
    from .exchange import ExchangePlugin
    from .http.accounts import HttpAccountsPlugin
    from .http.options import HttpAccountsOptions, HttpOptions, IncomingOptions, OutgoingOptions
    from .http.plugin import HttpPlugin
    from .loopback import LoopbackPlugin
    from .money.reconciliation import Transfers
    from .plugin import LedgerPlugin
else:
    # The same when they are asked for: a program needs one of them, and most programs need none by name.
    from .registry import find_class as __getattr__  # noqa: F401 (Python calls it for names that are missing)

__all__ = [
    "AccountConnected",
    "AccountConnectedAgain",
    "AccountDisconnected",
    "AccountPlugin",
    "AccountsOptions",
    "AccountsPlugin",
    "AlreadyFulfilledError",
    "AlreadyRolledBackError",
    "BtpOptions",
    "BtpPlugin",
    "ConnectOptions",
    "ConnectTimeoutError",
    "Connected",
    "ConnectionLostError",
    "DataHandlerAlreadyRegisteredError",
    "DecodeError",
    "Disconnected",
    "DuplicateIdError",
    "EventsDropped",
    "ExchangePlugin",
    "Failed",
    "HostInfo",
    "HttpAccountsOptions",
    "HttpAccountsPlugin",
    "HttpOptions",
    "HttpPlugin",
    "IncomingOptions",
    "IncomingRequest",
    "InsufficientBalanceError",
    "InvalidFieldsError",
    "InvalidFulfillmentError",
    "InvalidServicesError",
    "JournalEntry",
    "LedgerLostError",
    "LedgerPlugin",
    "LedgerPluginError",
    "ListenerOptions",
    "Log",
    "LoopbackOptions",
    "LoopbackPlugin",
    "MoneyHandlerAlreadyRegisteredError",
    "MoneyLevel",
    "MoneyLevelError",
    "NotAcceptedError",
    "NotConnectedError",
    "OutgoingOptions",
    "PluginClosedError",
    "PluginFailedError",
    "PluginOptions",
    "PluginServices",
    "RemoteError",
    "ResponseTimeoutError",
    "Store",
    "StoreError",
    "StoreInDoubtError",
    "Totals",
    "TransactionalStore",
    "Transfer",
    "TransferDirection",
    "TransferInDoubtError",
    "TransferNotFoundError",
    "TransferState",
    "Transfers",
    "TransfersInDoubt",
    "UnreachableError",
    "create_plugin",
    "current_request",
    "current_transfer",
    "fetch_ildcp",
    "loopback_pair",
    "open_plugin",
    "options_from_environment",
]
