"""``pay`` and ``quote``: whole payments over one plugin (RFC-0029)."""

from __future__ import annotations

from fractions import Fraction
from typing import TYPE_CHECKING, Final

import trio
from attrs import frozen

from ..errors import LedgerPluginError
from ..ilp.configuration import check_plugin, fetch_ildcp
from ..runtime.handlers import check_function
from ..runtime.tasks import without_cancellation
from .connection import Connection
from .credentials import Credentials
from .errors import PaymentFailedError
from .order import make_order
from .payment import Payment
from .probe import StoppedError, find_rate
from .rates import ceil_divide
from .spsp import fetch_spsp

if TYPE_CHECKING:
    import ssl
    from collections.abc import Callable

    from ..plugin import LedgerPlugin
    from .credentials import Asset
    from .order import Order
    from .payment import Progress
    from .probe import Probed
    from .rates import Number

__all__ = ["Paid", "Quote", "pay", "quote"]

# Seconds without a fulfilled packet until a payment gives up, besides the expiry of a packet.
_PATIENCE: Final = 10.0
_CLOSE_SECONDS: Final = 2.0
_CANCELLED_CLOSE_SECONDS: Final = 0.5


@frozen
class Paid:
    """A payment that did what was asked for.

    Attributes:
        sent: What was sent, in smallest units of this account.
        delivered: What arrived, at least, in smallest units of the receiver's account.
        asset: The receiver's asset; None if the receiver did not say.
        unanswered: What was in packets that got no answer before they expired, and was sent again. The peer may count
            it as sent.
        receipt: The receiver's newest receipt (RFC-0039); empty if there is none.
    """

    sent: int
    delivered: int
    asset: Asset | None
    unanswered: int = 0
    receipt: bytes = b""


@frozen
class Quote:
    """What a payment would do now.

    Attributes:
        send: What it would send, at most, in smallest units of this account.
        deliver: What it would deliver, at least, in smallest units of the receiver's account.
        rate: What arrives of one unit: smallest units of the receiver's account for one of this account.
        max_packet: The greatest packet that arrived.
        asset: The receiver's asset; None if the receiver did not say.
    """

    send: int
    deliver: int
    rate: Fraction
    max_packet: int
    asset: Asset | None


async def pay(
    plugin: LedgerPlugin,
    to: str | Credentials,
    *,
    send: int | None = None,
    deliver: int | None = None,
    slippage: Number = 0.01,
    min_rate: Number = 0,
    outside_rate: Number | None = None,
    expiry: float = 20.0,
    max_packet: int | None = None,
    on_progress: Callable[[Progress], object] | None = None,
    ssl_context: ssl.SSLContext | None = None,
) -> Paid:
    """Pay a payment pointer, or a receiver whose credentials are known (RFC-0029, RFC-0009, RFC-0026).

    The rate is probed first, with packets that move no money. Then many packets are in flight at once. Their number
    and their size follow what the path takes. Money for streams of data is not supported: payments move money only.

    Args:
        plugin: A connected plugin.
        to: A payment pointer such as ``"$wallet.example/alice"``, an SPSP endpoint's URL, or credentials.
        send: What to send in total, in the smallest unit of the plugin's account.
        deliver: What to deliver in total, in the smallest unit of the receiver's account. Give one of the two.
        slippage: The part of the probed rate that may be lost, from 0 to less than 1; 0.01 is one percent.
        min_rate: The least rate: smallest units of the receiver's account for one of this account. Rounding may cost
            one unit for each packet.
        outside_rate: The rate of the two assets from another source: units of the receiver's asset for one unit of this
            account's, such as euros for one dollar. The payment needs this rate, less the slippage.
        expiry: Seconds until a packet expires.
        max_packet: The greatest amount of a packet; None if only the path limits it.
        on_progress: Called with a `Progress` after each fulfilled packet, and once at the end, even after an error or
            a cancellation. Must not wait.
        ssl_context: For the SPSP endpoint; None verifies it with the system's certificates.

    Returns:
        What was sent and delivered. Less than ``send`` is sent if what is left cannot deliver one unit.

    Raises:
        PaymentFailedError: The payment ended before; says what was sent and delivered for certain.
        InvalidFieldsError: An argument is wrong. Nothing was sent.
        TypeError: An argument has the wrong type.
        UnreachableError: The SPSP endpoint cannot be reached, or its certificate is not trusted.
        RemoteError: The SPSP endpoint refuses.
        DecodeError: The SPSP endpoint's answer is wrong.
        InvalidServicesError: The extra ``stream`` is not installed.

    Cancellation: Ends the payment and closes the connection, which takes half a second at most. ``on_progress`` gets
        what was sent and delivered for certain, with ``done`` set. Packets in flight may still be fulfilled.

    Concurrency: Any number of payments may run over a plugin, each with its own credentials.
    """
    check_plugin(plugin)
    if on_progress is not None:
        check_function("on_progress", on_progress, "progress")
    order = make_order(send, deliver, slippage, min_rate, outside_rate, expiry, max_packet)
    credentials = await _find_credentials(to, ssl_context)
    with credentials.use():
        connection = Connection(plugin, credentials, order.expiry)
        payment = Payment(connection, credentials, order, on_progress, order.expiry + _PATIENCE)
        await _run(plugin, connection, payment, order)
        return Paid(payment.sent, payment.delivered, connection.asset, payment.unanswered, connection.receipt)


async def quote(
    plugin: LedgerPlugin,
    to: str | Credentials,
    *,
    send: int | None = None,
    deliver: int | None = None,
    slippage: Number = 0.01,
    min_rate: Number = 0,
    outside_rate: Number | None = None,
    expiry: float = 20.0,
    max_packet: int | None = None,
    ssl_context: ssl.SSLContext | None = None,
) -> Quote:
    """Probe what a payment would do now, without moving money.

    Args:
        plugin: As for `pay`.
        to: As for `pay`. Credentials can be paid afterwards.
        send: As for `pay`.
        deliver: As for `pay`.
        slippage: As for `pay`.
        min_rate: As for `pay`.
        outside_rate: As for `pay`.
        expiry: As for `pay`.
        max_packet: As for `pay`.
        ssl_context: As for `pay`.

    Raises:
        PaymentFailedError: No packet arrives, or the rate is too low.
        LedgerPluginError: As for `pay`.

    Cancellation: Safe at any time.
    """
    check_plugin(plugin)
    order = make_order(send, deliver, slippage, min_rate, outside_rate, expiry, max_packet)
    credentials = await _find_credentials(to, ssl_context)
    with credentials.use():
        connection = Connection(plugin, credentials, order.expiry)
        try:
            probed, _ = await _probe(plugin, connection, order)
        except (StoppedError, LedgerPluginError) as error:
            failure = _failure_of(error)
            raise failure from failure.__cause__
        if credentials is not to:
            await connection.close(_CLOSE_SECONDS)
    rate = probed.rate.lower
    least = rate * (1 - order.slippage)
    if order.send is not None:
        return Quote(order.send, int(order.send * least), rate, probed.max_packet, connection.asset)
    source = ceil_divide(order.amount * least.denominator, least.numerator)
    return Quote(source, order.amount, rate, probed.max_packet, connection.asset)


async def _find_credentials(to: str | Credentials, ssl_context: ssl.SSLContext | None) -> Credentials:
    if isinstance(to, Credentials):
        return to
    if not isinstance(to, str):
        raise TypeError(f"to is a payment pointer, a URL or Credentials, not {type(to).__name__}")
    return await fetch_spsp(to, ssl_context=ssl_context)


async def _run(plugin: LedgerPlugin, connection: Connection, payment: Payment, order: Order) -> None:
    """Run a payment to its end, and close its connection in any case."""
    try:
        probed, min_rate = await _probe(plugin, connection, order)
        await payment.run(probed, min_rate)
    except BaseException as raised:
        with trio.move_on_after(_CANCELLED_CLOSE_SECONDS, shield=True):
            await _close_quietly(connection, _CANCELLED_CLOSE_SECONDS)
        payment.report(done=True)
        error = _first_error(raised)
        if error is None:
            raise
        if isinstance(error, StoppedError | LedgerPluginError):
            failure = _failure_of(error, payment)
            raise failure from failure.__cause__  # noqa: ASYNC104 (it tells more)
        raise error from error.__cause__  # noqa: ASYNC104 (it tells more)
    await _close_quietly(connection, _CLOSE_SECONDS)
    payment.report(done=True)


async def _close_quietly(connection: Connection, seconds: float) -> None:
    """Close the connection; the payment has ended, so that an error changes nothing."""
    try:
        await connection.close(seconds)
    except LedgerPluginError:
        return


def _first_error(raised: BaseException) -> BaseException | None:
    """Return the first error in what was raised, one like Ctrl-C before others; None for a cancellation."""
    error = without_cancellation(raised)
    while isinstance(error, BaseExceptionGroup):
        error = (error.split(Exception)[1] or error).exceptions[0]
    return error


def _failure_of(error: BaseException, payment: Payment | None = None) -> PaymentFailedError:
    """Return the error of the payment for what ended it."""
    sent, delivered, unanswered = (
        (payment.sent, payment.delivered, payment.possibly_sent) if payment is not None else (0, 0, 0)
    )
    failure = PaymentFailedError(sent, delivered, str(error), unanswered=unanswered)
    failure.__cause__ = error.__cause__ if isinstance(error, StoppedError) else error
    return failure


async def _probe(plugin: LedgerPlugin, connection: Connection, order: Order) -> tuple[Probed, Fraction]:
    """Return what the probes found, and the least rate in smallest units.

    Raises:
        StoppedError: No packet arrives, or the rate is too low.
    """
    try:
        probed = await find_rate(connection, order, order.expiry + _PATIENCE)
    except BaseExceptionGroup as group:
        # Several probes failed at once.
        error = _first_error(group)
        if error is None:
            raise
        raise error from error.__cause__
    min_rate = order.min_rate
    if order.outside_rate is not None:
        if connection.asset is None:
            raise StoppedError("the receiver does not say its asset: give min_rate instead of outside_rate")
        own = await fetch_ildcp(plugin)
        unit = Fraction(10) ** (connection.asset.scale - own.asset_scale)
        min_rate = max(min_rate, order.outside_rate * unit * (1 - order.slippage))
    if probed.rate.arriving(probed.max_packet) < int(probed.max_packet * min_rate):
        raise StoppedError(
            f"the rate is too low: {float(probed.rate.lower):.6g} for each unit, and at least {float(min_rate):.6g} "
            "is asked for"
        )
    return probed, min_rate
