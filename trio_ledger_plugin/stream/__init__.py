"""Whole payments over any plugin: STREAM (RFC-0029), payment pointers (RFC-0026) and SPSP (RFC-0009).

Money only: there are no streams of bytes, which no living wallet uses. Needs the extra ``stream``.
"""

from .bookings import ReceivedPacket
from .credentials import Asset, Credentials
from .endpoint import SpspEndpoint
from .errors import PaymentFailedError
from .payment import Progress
from .receipts import Receipt, verify_receipt
from .receiver import Receiver, open_receiver
from .sender import Paid, Quote, pay, quote
from .spsp import fetch_spsp, resolve_payment_pointer

__all__ = [
    "Asset",
    "Credentials",
    "Paid",
    "PaymentFailedError",
    "Progress",
    "Quote",
    "Receipt",
    "ReceivedPacket",
    "Receiver",
    "SpspEndpoint",
    "fetch_spsp",
    "open_receiver",
    "pay",
    "quote",
    "resolve_payment_pointer",
    "verify_receipt",
]
