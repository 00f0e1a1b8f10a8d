"""What arrives for what is sent, and the greatest amount of a packet; plain arithmetic in integers."""

from __future__ import annotations

from decimal import Decimal
from fractions import Fraction
from typing import TypeAlias

from ..errors import InvalidFieldsError

__all__ = ["Number", "Rate", "as_fraction", "ceil_divide", "lower_maximum"]

#: A rate or a fraction, as callers give it. A float counts as the decimal number that ``repr`` shows.
Number: TypeAlias = int | float | Decimal | Fraction


def as_fraction(value: object, name: str) -> Fraction:
    """Return a number as a fraction.

    Raises:
        TypeError: It is no number.
        InvalidFieldsError: It is negative, infinite or NaN.
    """
    if isinstance(value, bool) or not isinstance(value, int | float | Decimal | Fraction):
        raise TypeError(f"{name} is a number, not {type(value).__name__}")
    try:
        fraction = Fraction(repr(value)) if isinstance(value, float) else Fraction(value)
    except (ValueError, OverflowError):
        fraction = Fraction(-1)
    if fraction < 0:
        raise InvalidFieldsError(f"{name} is {value}: it must be a finite number, 0 or more")
    return fraction


def ceil_divide(dividend: int, divisor: int) -> int:
    """Return the quotient, rounded up."""
    return -(-dividend // divisor)


class Rate:
    """The range in which the rate is, from packets that arrived: each was rounded down on the way.

    If ``got`` arrived of ``sent``, the rate is at least ``got / sent`` and less than ``(got + 1) / sent``. A packet
    that fits the range makes it smaller. One that does not fit shows that the rate has changed, and replaces it.
    ``got`` is at least 1: of a packet that is rounded to nothing, nothing can be concluded.

    Attributes:
        least: The least that has to be sent so that one unit arrives; at least 1.
    """

    __slots__ = ("_high", "_low", "least")

    def __init__(self, sent: int, got: int) -> None:
        self._high = got + 1, sent
        self._set_low(got, sent)

    def _set_low(self, got: int, sent: int) -> None:
        self._low = got, sent
        self.least: int = ceil_divide(sent, got)

    @property
    def lower(self) -> Fraction:
        """The least that the rate can be."""
        return Fraction(*self._low)

    def add(self, sent: int, got: int) -> None:
        """Take a packet into account."""
        low, low_sent = self._low
        high, high_sent = self._high
        if (got + 1) * low_sent <= low * sent or got * high_sent >= high * sent:
            self._set_low(got, sent)
            self._high = got + 1, sent
            return
        if got * low_sent > low * sent:
            self._set_low(got, sent)
        if (got + 1) * high_sent < high * sent:
            self._high = got + 1, sent

    def arriving(self, sent: int) -> int:
        """Return what arrives at least of an amount."""
        low, low_sent = self._low
        return sent * low // low_sent

    def source_for(self, amount: int) -> int:
        """Return what has to be sent so that an amount arrives."""
        low, low_sent = self._low
        return ceil_divide(amount * low_sent, low)


def lower_maximum(sent: int, data: bytes, known: int) -> int:
    """Return the greatest amount to try after a packet was too large (F08); it is always less than was sent.

    Args:
        sent: The packet's amount.
        data: The data of the Reject: what the connector received and its maximum, 8 bytes each, or anything else.
        known: The greatest amount known to pass, 0 if there is none.
    """
    if len(data) >= 16:
        received, maximum = int.from_bytes(data[:8]), int.from_bytes(data[8:16])
        if received > maximum:
            return min(sent * maximum // received, sent - 1)
    # Without a hint, halve the distance to what is known to pass.
    return min((max(known, 0) + sent) // 2, sent - 1) if known < sent else sent - 1
