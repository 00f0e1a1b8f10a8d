"""Where a payment goes: the receiver's ILP address and the secret that both ends share."""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING

from attrs import frozen

from ..codec.ilp import is_address
from ..errors import InvalidFieldsError
from .crypto import Keys, check_secret

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["Asset", "Credentials"]


@frozen
class Asset:
    """What an account's amounts are in.

    Attributes:
        code: The asset's code, such as ``"EUR"``.
        scale: How many decimal places an amount has, 0 to 255: at scale 2, the amount 1 is a hundredth.

    Raises:
        TypeError: ``code`` is not text, or ``scale`` is not an int.
        InvalidFieldsError: ``scale`` is out of its range.
    """

    code: str
    scale: int

    def __attrs_post_init__(self) -> None:
        if not isinstance(self.code, str):
            raise TypeError(f"code is text (str), not {type(self.code).__name__}")
        if isinstance(self.scale, bool) or not isinstance(self.scale, int):
            raise TypeError(f"scale is an int, not {type(self.scale).__name__}")
        if not 0 <= self.scale <= 255:
            raise InvalidFieldsError(f"scale is {self.scale}: it must be from 0 to 255")


class Credentials:
    """The address and the secret of one connection, for one payment; ``repr`` does not show the secret.

    Two payments with the same credentials at the same time would use the same numbers for different packets, so only
    one at a time may use an object. One after the other may: the numbers go on.

    Args:
        destination_account: The receiver's ILP address.
        shared_secret: The secret, 32 bytes.
        receipts_enabled: Whether the receiver sends receipts (RFC-0039).

    Attributes:
        destination_account: The receiver's ILP address.
        shared_secret: The secret.
        receipts_enabled: Whether the receiver sends receipts.

    Raises:
        TypeError: The secret is not bytes-like.
        InvalidFieldsError: The address or the secret is wrong.
    """

    __slots__ = ("_in_use", "_keys", "_sequence", "destination_account", "receipts_enabled", "shared_secret")

    def __init__(self, destination_account: str, shared_secret: bytes, *, receipts_enabled: bool = False) -> None:
        if not is_address(destination_account):
            raise InvalidFieldsError("destination_account must be an ILP address, such as example.wallet.x7Kq")
        self.destination_account: str = destination_account
        self.shared_secret: bytes = check_secret(shared_secret, "shared_secret")
        self.receipts_enabled: bool = receipts_enabled
        self._keys: Keys | None = None
        self._sequence = 0
        self._in_use = False

    def __repr__(self) -> str:
        return f"Credentials({self.destination_account!r}, <{len(self.shared_secret)} bytes>)"

    @property
    def keys(self) -> Keys:
        """The keys of the connection.

        Raises:
            InvalidServicesError: The extra ``stream`` is not installed.
        """
        if self._keys is None:
            self._keys = Keys(self.shared_secret)
        return self._keys

    @property
    def last_sequence(self) -> int:
        """The number of the last packet; 0 before the first."""
        return self._sequence

    def next_sequence(self) -> int:
        """Return the number of the next packet."""
        self._sequence += 1
        return self._sequence

    @contextmanager
    def use(self) -> Iterator[None]:
        """Reserve the credentials for one payment during a block.

        Raises:
            InvalidFieldsError: Another payment uses them.
        """
        if self._in_use:
            raise InvalidFieldsError("the credentials are in use by another payment; each payment needs its own")
        self._in_use = True
        try:
            yield
        finally:
            self._in_use = False
