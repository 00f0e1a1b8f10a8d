"""The Interledger Ledger Plugin Interface, version 2 (RFC-0024), for Trio."""

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
    LedgerPluginError,
    MoneyHandlerAlreadyRegisteredError,
    NotAcceptedError,
    NotConnectedError,
    PluginClosedError,
    PluginFailedError,
    RemoteError,
    ResponseTimeoutError,
    TransferInDoubtError,
    TransferNotFoundError,
    UnreachableError,
)
from .events import (
    AccountConnected,
    AccountDisconnected,
    Connected,
    Disconnected,
    EventsDropped,
    Failed,
)
from .handlers import current_transfer
from .ildcp import fetch_ildcp
from .loading import options_from_environment
from .loopback import loopback_pair
from .opening import create_plugin, open_plugin
from .options import ConnectOptions
from .plugin import LedgerPlugin
from .services import Log, PluginServices, Store

__all__ = [
    "AccountConnected",
    "AccountDisconnected",
    "AlreadyFulfilledError",
    "AlreadyRolledBackError",
    "ConnectOptions",
    "ConnectTimeoutError",
    "Connected",
    "ConnectionLostError",
    "DataHandlerAlreadyRegisteredError",
    "DecodeError",
    "Disconnected",
    "DuplicateIdError",
    "EventsDropped",
    "Failed",
    "InsufficientBalanceError",
    "InvalidFieldsError",
    "InvalidFulfillmentError",
    "InvalidServicesError",
    "LedgerPlugin",
    "LedgerPluginError",
    "Log",
    "MoneyHandlerAlreadyRegisteredError",
    "NotAcceptedError",
    "NotConnectedError",
    "PluginClosedError",
    "PluginFailedError",
    "PluginServices",
    "RemoteError",
    "ResponseTimeoutError",
    "Store",
    "TransferInDoubtError",
    "TransferNotFoundError",
    "UnreachableError",
    "create_plugin",
    "current_transfer",
    "fetch_ildcp",
    "loopback_pair",
    "open_plugin",
    "options_from_environment",
]
