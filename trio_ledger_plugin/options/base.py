"""The options of ``connect()``, and those that every plugin has."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Final

from attrs import field, fields, frozen

from ..errors import InvalidFieldsError
from ..secret import Secret
from .checked import CheckedOptions
from .fields import ADDRESSES, COUNT, EARLIER_NAME, MONEY, NAME, RETENTION, SECONDS, as_tuple, shown

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["ConnectOptions", "LinkOptions", "PluginOptions"]

# What a protocol adds to the bytes of one request, rounded up.
ENVELOPE_BYTES: Final = 64


@frozen
class ConnectOptions:
    """Options of ``connect()`` (RFC-0024, class ConnectOptions).

    Attributes:
        timeout: Milliseconds until ``connect()`` gives up. None, 0 and NaN mean the plugin's default;
            ``math.inf`` means no timeout.

    Raises:
        TypeError: ``timeout`` is no number; ``True`` and ``False`` are none.
        InvalidFieldsError: ``timeout`` is negative.
    """

    timeout: float | None = None

    def __attrs_post_init__(self) -> None:
        if self.timeout is None:
            return
        if isinstance(self.timeout, bool) or not isinstance(self.timeout, int | float):
            raise TypeError(f"timeout is a number of milliseconds, not {type(self.timeout).__name__}")
        if self.timeout < 0:
            problem = f"got {shown(self.timeout)}, must be milliseconds, 0 or more"
            raise InvalidFieldsError(f"timeout: {problem}", problems=(("timeout", problem),))

    def seconds(self, default: float) -> float:
        """Return the timeout in seconds.

        Args:
            default: The plugin's own timeout in seconds, for a timeout that is None, 0 or NaN.

        Returns:
            Seconds; ``math.inf`` for no timeout.
        """
        # Not above 0 are 0 and NaN, since a negative timeout cannot exist.
        if self.timeout is None or not self.timeout > 0:
            return default
        # An int may be larger than any float, and so for ever.
        return self.timeout / 1000 if self.timeout < 1e300 else math.inf


@frozen(kw_only=True, eq=False, repr=False)
class PluginOptions(CheckedOptions):
    """The limits and times that every link has; times in seconds (``math.inf``: no limit), sizes in bytes.

    Attributes:
        connect_timeout: For ``connect()``: dial, TLS, handshake and authentication together.
        close_timeout: For a normal exit to drain and say goodbye.
        response_timeout: For the peer to answer a request.
        handler_timeout: For a handler to finish; the peer gets an error then.
        ping_interval: Between pings on a link.
        pong_timeout: For the peer to answer a ping; the link is lost then.
        handshake_timeout: For a stranger to finish TLS and the WebSocket handshake.
        auth_timeout: For a stranger to authenticate.
        send_timeout: For 64 KiB to leave; the link is aborted then.
        redial_max_delay: The longest pause between two redials.
        max_message_bytes: Of one message.
        max_unauthenticated_bytes: Of one message before authentication.
        max_fragments: Of one WebSocket message.
        max_entries: Of one packet's protocol data.
        max_send_queue_bytes: Waiting to be sent on a link; callers wait when it is full.
        max_handler_bytes: Of requests, and of their responses, that running handlers hold on a link; more wait.
        max_backlog_bytes: Of requests that wait for a handler on a link; more are refused.
        max_error_reply_bytes: Of refusals waiting to be sent on a link; the link is aborted past it.
        max_handlers: Running at once on a link.
        max_in_flight: Requests of ours without an answer on a link.
        max_malformed_per_minute: Malformed packets before a link is closed.
        max_unauthenticated: Connections at a listener that have not authenticated.
        max_unauthenticated_per_address: The same from one address.
        max_failures_per_minute: Failed authentications from one address before answers slow down.
        trusted_proxies: IP addresses that many peers share, so that limits by address do not apply to them.
        money: ``"auto"``: at KEYED where both ends can, else at PLAIN; ``"keyed"``: at KEYED or not at all;
            ``"plain"``: at PLAIN. KEYED needs a transactional store at both ends.
        ledger_id: Tells the transfers of this plugin from those of others in the same store.
        key_retention: How long the keys of transfers are remembered; 24 hours at least.
        max_transfer_keys: Incoming transfers that are remembered for an account; more are refused for the time.

    Raises:
        InvalidFieldsError: Any field is wrong; every bad one is named.
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
    ledger_id: str = field(default="main", metadata=NAME)
    key_retention: float = field(default=7 * 24 * 60 * 60.0, metadata=RETENTION)
    max_transfer_keys: int = field(default=1_000_000, metadata=COUNT)

    def secrets(self) -> tuple[Secret, ...]:
        """Return every secret in these options, nested ones included: no log may show them."""
        return tuple(_find_secrets(self))

    @property
    def max_data_bytes(self) -> int:
        """The most bytes that ``send_data`` takes and a data handler may return: a message less its envelope."""
        return self.max_message_bytes - ENVELOPE_BYTES


def _find_secrets(options: CheckedOptions) -> Iterator[Secret]:
    for each in fields(type(options)):
        value = getattr(options, each.name)
        if isinstance(value, Secret):
            yield value
        elif isinstance(value, CheckedOptions):
            yield from _find_secrets(value)


#: The earlier name.
LinkOptions = PluginOptions
