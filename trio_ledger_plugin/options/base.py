"""The options of ``connect()``, and the options that every plugin has."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Final

from attrs import field, fields, frozen

from ..errors import InvalidFieldsError
from ..secret import Secret
from .checked import CheckedOptions
from .fields import (
    ACCEPT_MONEY,
    ADDRESSES,
    COUNT,
    EARLIER_NAME,
    MONEY,
    NAME,
    RETENTION,
    SECONDS,
    SWITCH,
    as_tuple,
    shown,
)

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["ConnectOptions", "LinkOptions", "PluginOptions", "unit_hint"]

# What a protocol adds to the bytes of one request, rounded up.
ENVELOPE_BYTES: Final = 64
# A timeout in milliseconds that is below may have been meant in seconds.
SHORT_MILLISECONDS: Final = 100


@frozen(init=False)
class ConnectOptions:
    """Options of ``connect()`` (RFC-0024, class ConnectOptions).

    Args:
        timeout: Milliseconds until ``connect()`` gives up. None, 0 and NaN mean the plugin's default;
            ``math.inf`` means no timeout.
        seconds: The same in seconds, instead.

    Attributes:
        timeout: Milliseconds, however the time was given; None for the plugin's default.

    Raises:
        TypeError: An argument is not a number; ``True`` and ``False`` are not numbers here.
        InvalidFieldsError: It is negative, or both are given.
    """

    timeout: float | None

    def __init__(self, timeout: float | None = None, *, seconds: float | None = None) -> None:
        _check_time("timeout", "milliseconds", timeout)
        _check_time("seconds", "seconds", seconds)
        if timeout is not None and seconds is not None:
            problem = "given together with timeout, must be one of the two"
            raise InvalidFieldsError(f"seconds: {problem}", problems=(("seconds", problem),))
        self.__attrs_init__(timeout if seconds is None else seconds * 1000)

    @classmethod
    def seconds_of(cls, options: object, default: float) -> float:
        """Return the timeout of options that may be None, in seconds; ``seconds`` documents it.

        Raises:
            TypeError: ``options`` is neither a ``ConnectOptions`` nor None.
        """
        if options is not None and not isinstance(options, ConnectOptions):
            raise TypeError(
                f"options is a ConnectOptions, such as ConnectOptions(seconds=5), not {type(options).__name__}"
            )
        return (options or cls()).seconds(default)

    def seconds(self, default: float) -> float:
        """Return the timeout in seconds.

        Args:
            default: The plugin's own timeout in seconds, for a timeout that is None, 0 or NaN.

        Returns:
            Seconds; ``math.inf`` for no timeout.
        """
        # Only 0 and NaN are left, since the constructor refuses a negative timeout.
        if self.timeout is None or not self.timeout > 0:
            return default
        # An int may be too large for a float.
        return self.timeout / 1000 if self.timeout < 1e300 else math.inf


def unit_hint(options: ConnectOptions | None) -> str:
    """Return a hint at the unit, for an error: a timeout below 100 ms is often one that was meant in seconds."""
    if options is None or not 0 < (options.timeout or 0) < SHORT_MILLISECONDS:
        return ""
    return " (timeout is in milliseconds; ConnectOptions(seconds=...) takes seconds)"


def _check_time(name: str, unit: str, value: object) -> None:
    """Check one of the two ways to give a timeout.

    Raises:
        TypeError: It is neither a number nor None.
        InvalidFieldsError: It is negative.
    """
    if value is None:
        return
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise TypeError(f"{name} is a number of {unit}, not {type(value).__name__}")
    if value < 0:
        problem = f"got {shown(value)}, must be {unit}, 0 or more"
        raise InvalidFieldsError(f"{name}: {problem}", problems=((name, problem),))


@frozen(kw_only=True, eq=False, repr=False)
class PluginOptions(CheckedOptions):
    """The limits and times of every plugin. Times are in seconds (``math.inf``: no limit), sizes in bytes.

    Attributes:
        connect_timeout: How long ``connect()`` may take: dialing, TLS, handshake and authentication together.
        close_timeout: How long a normal exit may drain and close the link.
        response_timeout: How long to wait for the peer's reply to a request.
        handler_timeout: How long a handler may run. The peer gets an error after that.
        ping_interval: The time between two pings on a link.
        pong_timeout: How long to wait for the peer's answer to a ping. The link is lost after that.
        handshake_timeout: How long an unauthenticated peer may take for TLS and the WebSocket handshake.
        auth_timeout: How long it may take to authenticate after that.
        send_timeout: How long sending 64 KiB may take. The link is aborted after that.
        redial_max_delay: The longest pause between two redials.
        max_message_bytes: The size of one message.
        max_unauthenticated_bytes: The size of one message before authentication.
        max_head_bytes: The size of the HTTP head of a WebSocket handshake.
        max_fragments: The number of fragments of one WebSocket message.
        max_entries: The number of entries in one packet's protocol data.
        max_send_queue_bytes: What may wait to be sent on a link. Callers wait while it is full.
        max_handler_bytes: The requests, and their responses, that running handlers may hold on a link. Further
            requests wait.
        max_backlog_bytes: The requests that may wait for a handler on a link. Further ones are refused.
        max_error_reply_bytes: The refusals that may wait to be sent on a link. The link is aborted above that.
        max_handlers: The number of handlers that run at once on a link.
        max_in_flight: The number of calls without a reply on a link.
        max_malformed_per_minute: The number of malformed packets before a link is closed.
        max_unauthenticated: The number of connections at a listener that have not authenticated.
        max_unauthenticated_per_address: The same from one address.
        max_failures_per_minute: The number of failed authentications from one address before replies slow down.
        trusted_proxies: The IP addresses and networks of proxies, such as ``10.0.0.0/8``. Limits by address do not
            apply to them. A client's address, for limits and logs, is what they say: the last one in
            ``X-Forwarded-For`` that is not theirs.
        money: ``"auto"``: transfers are KEYED if both ends can, else PLAIN. ``"keyed"``: they are KEYED or are
            refused. ``"plain"``: they are PLAIN. KEYED needs a transactional store at both ends.
        accept_money: ``"handler"``: money is accepted while a money handler is registered. ``"journal"``: always, for
            programs that only read the totals; it waits in the journal for a handler. Needs a transactional store.
        ledger_id: Distinguishes this plugin's transfers from those of other plugins in the same store.
        standby: Whether ``connect()`` waits, without a timeout of its own, while another process keeps the ledger in
            the same database, and takes the ledger over when that process ends or shows no sign of life for 10 s.
            Without it, a second process is refused. Needs a store that several programs can open.
        key_retention: How long the keys of transfers are remembered; at least 24 hours. Those of incoming transfers
            are remembered for 30 days at most.
        max_transfer_keys: The number of incoming transfers that are remembered for an account: those at KEYED, and
            those at PLAIN that wait for a money handler. Further ones are refused until some are forgotten.
        max_ledger_keys: The same number for all accounts of the ledger together. One account may have at most as many
            as are still free, so that room is left for others.
        max_accounts: The number of accounts that are remembered in the store, because of a transfer or of a token.
            Further ones are refused; those that are known are not.
        log_tracebacks: Whether an exception of a handler is logged with its traceback, on several lines. If not, it is
            logged on one line, with the places in your code.

    Raises:
        InvalidFieldsError: Fields are wrong. The text names each.
    """

    connect_timeout: float = field(default=30.0, metadata=SECONDS)
    close_timeout: float = field(default=5.0, metadata=SECONDS)
    response_timeout: float = field(default=35.0, metadata=SECONDS)
    handler_timeout: float = field(default=30.0, metadata=SECONDS)
    ping_interval: float = field(default=20.0, metadata=SECONDS)
    pong_timeout: float = field(default=20.0, metadata=SECONDS)
    handshake_timeout: float = field(default=5.0, metadata=SECONDS)
    auth_timeout: float = field(default=5.0, metadata=SECONDS)
    send_timeout: float = field(default=10.0, metadata=SECONDS)
    redial_max_delay: float = field(default=30.0, metadata=SECONDS)
    max_message_bytes: int = field(default=64 * 1024, metadata=COUNT)
    max_unauthenticated_bytes: int = field(default=8 * 1024, metadata=COUNT)
    max_head_bytes: int = field(default=16 * 1024, metadata=COUNT)
    max_fragments: int = field(default=64, metadata=COUNT)
    max_entries: int = field(default=32, metadata=COUNT)
    max_send_queue_bytes: int = field(default=1024 * 1024, metadata=COUNT | {EARLIER_NAME: "max_queue_bytes"})
    max_handler_bytes: int = field(default=4 * 1024 * 1024, metadata=COUNT | {EARLIER_NAME: "max_running_bytes"})
    max_backlog_bytes: int = field(default=2 * 1024 * 1024, metadata=COUNT | {EARLIER_NAME: "max_waiting_bytes"})
    max_error_reply_bytes: int = field(default=64 * 1024, metadata=COUNT | {EARLIER_NAME: "max_refusal_bytes"})
    max_handlers: int = field(default=256, metadata=COUNT)
    max_in_flight: int = field(default=16384, metadata=COUNT)
    max_malformed_per_minute: int = field(default=8, metadata=COUNT)
    max_unauthenticated: int = field(default=1024, metadata=COUNT)
    max_unauthenticated_per_address: int = field(default=16, metadata=COUNT)
    max_failures_per_minute: int = field(default=5, metadata=COUNT)
    trusted_proxies: tuple[str, ...] = field(default=(), converter=as_tuple, metadata=ADDRESSES)
    money: str = field(default="auto", metadata=MONEY)
    accept_money: str = field(default="handler", metadata=ACCEPT_MONEY)
    ledger_id: str = field(default="main", metadata=NAME)
    standby: bool = field(default=False, metadata=SWITCH)
    key_retention: float = field(default=7 * 24 * 60 * 60.0, metadata=RETENTION)
    max_transfer_keys: int = field(default=1_000_000, metadata=COUNT)
    max_ledger_keys: int = field(default=10_000_000, metadata=COUNT)
    max_accounts: int = field(default=1_000_000, metadata=COUNT)
    log_tracebacks: bool = field(default=True, metadata=SWITCH)

    def secrets(self) -> tuple[Secret, ...]:
        """Return every secret in these options, nested ones included: no log may show them."""
        return tuple(_find_secrets(self))

    @property
    def max_data_bytes(self) -> int:
        """The size of the data that ``send_data`` takes and a data handler may return: a message less its envelope."""
        return max(0, self.max_message_bytes - ENVELOPE_BYTES)


def _find_secrets(options: CheckedOptions) -> Iterator[Secret]:
    for each in fields(type(options)):
        value = getattr(options, each.name)
        if isinstance(value, Secret):
            yield value
        elif isinstance(value, Mapping):
            yield from (each for each in value.values() if isinstance(each, Secret))
        elif isinstance(value, CheckedOptions):
            yield from _find_secrets(value)


#: The earlier name.
LinkOptions = PluginOptions
