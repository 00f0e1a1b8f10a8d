"""What a payment has to do, checked once."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Final

from attrs import frozen

from ..codec.oer import MAX_UINT64
from ..errors import InvalidFieldsError
from .rates import as_fraction

if TYPE_CHECKING:
    from fractions import Fraction

    from .rates import Number

__all__ = ["MAX_IN_FLIGHT", "Order", "make_order"]

#: The most packets in flight.
MAX_IN_FLIGHT: Final = 200
_DAY: Final = 86_400


@frozen
class Order:
    """What a payment has to do; ``pay`` documents the fields.

    Attributes:
        send: What to send in total; None if ``deliver`` is given.
        deliver: What to deliver in total; None if ``send`` is given.
        slippage: The part of the probed rate that may be lost.
        min_rate: The least rate in smallest units, 0 for any.
        outside_rate: The rate of the assets, None if it is not known.
        expiry: Seconds until a packet expires.
        max_packet: The greatest amount of a packet.
    """

    send: int | None
    deliver: int | None
    slippage: Fraction
    min_rate: Fraction
    outside_rate: Fraction | None
    expiry: float
    max_packet: int

    @property
    def amount(self) -> int:
        """What to send, or what to deliver."""
        amount = self.deliver if self.send is None else self.send
        assert amount is not None
        return amount


def make_order(
    send: object,
    deliver: object,
    slippage: Number,
    min_rate: Number,
    outside_rate: Number | None,
    expiry: float,
    max_packet: object,
) -> Order:
    """Check the arguments of ``pay``.

    Raises:
        TypeError: One has the wrong type.
        InvalidFieldsError: One is out of its range, or not exactly one of ``send`` and ``deliver`` is given.
    """
    if (send is None) == (deliver is None):
        raise InvalidFieldsError("give either send or deliver")
    part = as_fraction(slippage, "slippage")
    if part >= 1:
        raise InvalidFieldsError(f"slippage is {slippage}: it must be less than 1; 0.01 is one percent")
    if isinstance(expiry, bool) or not isinstance(expiry, int | float):
        raise TypeError(f"expiry is a number of seconds, not {type(expiry).__name__}")
    if not 0 < expiry <= _DAY or math.isnan(expiry):
        raise InvalidFieldsError(f"expiry is {expiry}: it must be seconds, more than 0 and at most {_DAY}")
    return Order(
        None if send is None else _check_amount(send, "send"),
        None if deliver is None else _check_amount(deliver, "deliver"),
        part,
        as_fraction(min_rate, "min_rate"),
        None if outside_rate is None else as_fraction(outside_rate, "outside_rate"),
        expiry,
        MAX_UINT64 if max_packet is None else _check_amount(max_packet, "max_packet"),
    )


def _check_amount(value: object, name: str) -> int:
    if isinstance(value, bool) or not isinstance(value, int):
        raise TypeError(f"{name} is an int, not {type(value).__name__}")
    if not 1 <= value <= MAX_UINT64:
        raise InvalidFieldsError(f"{name} is {value}: it must be from 1 to {MAX_UINT64}")
    return value
