"""Addresses of connections, which hold all that a receiver has to know, so that it keeps nothing.

An address is the receiver's own, a dot, and a token: the encrypted tag and the details for receipts, in base64url. The
shared secret is derived from the token's bytes. Further segments may follow the token.
"""

from __future__ import annotations

import base64
import binascii
from typing import TYPE_CHECKING, Final

from attrs import field, frozen

from ..codec.ilp import MAX_ADDRESS
from ..codec.oer import octets, read_fixed, read_octets, read_uint, read_utf8, uint, utf8
from ..errors import DecodeError, InvalidFieldsError
from ..secret import shown_size
from .crypto import OVERHEAD, SECRET_SIZE, check_secret, derive, new_cipher, seal, unseal

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.ciphers.aead import AESGCM

__all__ = ["AddressBook", "Details"]

NONCE_SIZE: Final = 16
_TAG: Final = 1
_RECEIPTS: Final = 2


@frozen
class Details:
    """What the token of an address holds.

    Attributes:
        tag: The application's name for the payment; None if it gave none.
        receipt_nonce: What receipts contain; empty for no receipts.
        receipt_secret: What signs receipts; empty for no receipts.
    """

    tag: str | None
    receipt_nonce: bytes = b""
    receipt_secret: bytes = field(default=b"", repr=shown_size)


class AddressBook:
    """Makes addresses below a receiver's own, and reads them.

    Args:
        secret: The receiver's secret. An address can be read for as long as it is the same.
        address: The receiver's own address.
    """

    def __init__(self, secret: bytes, address: str) -> None:
        self._address = address
        self._secrets = derive(secret, b"ilp_stream_shared_secret")
        self._cipher: AESGCM = new_cipher(derive(secret, b"ilp_stream_connection_token"))

    def make(self, details: Details) -> tuple[str, bytes]:
        """Return a new address, and the secret for its payer.

        Raises:
            InvalidFieldsError: The tag is too long for an address.
        """
        flags, fields = 0, b""
        if details.tag is not None:
            flags |= _TAG
            fields += octets(utf8(details.tag, "tag"), "tag")
        if details.receipt_nonce:
            flags |= _RECEIPTS
            fields += details.receipt_nonce + details.receipt_secret
        token = seal(self._cipher, uint(flags, 1, "flags") + fields)
        address = self.address_of(token)
        if len(address) > MAX_ADDRESS:
            raise InvalidFieldsError(
                f"the tag makes an address of {len(address)} characters: at most {MAX_ADDRESS} are allowed"
            )
        return address, self.shared_secret(token)

    def address_of(self, token: bytes) -> str:
        """Return the address with a token, in its one spelling."""
        return f"{self._address}.{base64.urlsafe_b64encode(token).rstrip(b'=').decode()}"

    def shared_secret(self, token: bytes) -> bytes:
        """Return the secret for the payer at an address."""
        return derive(self._secrets, token)

    def read(self, segment: str) -> tuple[bytes, Details]:
        """Return the token that a segment of an address spells, and what it holds.

        Raises:
            DecodeError: It was not made with this secret.
        """
        try:
            token = base64.urlsafe_b64decode(segment + "=" * (-len(segment) % 4))
        except (binascii.Error, ValueError):
            raise DecodeError("the segment is not base64url") from None
        if len(token) < OVERHEAD + 1:
            raise DecodeError("the segment is too short for a token")
        plain = unseal(self._cipher, token)
        flags, offset = read_uint(plain, 0, 1)
        tag, nonce, secret = None, b"", b""
        if flags & _TAG:
            encoded, offset = read_octets(plain, offset)
            tag = read_utf8(encoded, "tag")
        if flags & _RECEIPTS:
            nonce, offset = read_fixed(plain, offset, NONCE_SIZE)
            secret, offset = read_fixed(plain, offset, SECRET_SIZE)
        return token, Details(tag, nonce, secret)


def check_details(tag: object, receipt_nonce: object, receipt_secret: object) -> Details:
    """Return the details of new credentials.

    Raises:
        TypeError: One has the wrong type.
        InvalidFieldsError: One has the wrong length, or only one of the two for receipts is given.
    """
    if tag is not None and not isinstance(tag, str):
        raise TypeError(f"tag is text, not {type(tag).__name__}")
    if receipt_nonce is None and receipt_secret is None:
        return Details(tag)
    if receipt_nonce is None or receipt_secret is None:
        raise InvalidFieldsError("give both receipt_nonce and receipt_secret, or neither")
    nonce = check_secret(receipt_nonce, "receipt_nonce", NONCE_SIZE)
    secret = check_secret(receipt_secret, "receipt_secret")
    for name, given, size in (("receipt_nonce", nonce, NONCE_SIZE), ("receipt_secret", secret, SECRET_SIZE)):
        if len(given) != size:
            raise InvalidFieldsError(f"{name} has {len(given)} bytes: it must have {size}")
    return Details(tag, nonce, secret)
