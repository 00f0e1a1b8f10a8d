"""The keys of a STREAM connection: encryption and fulfillments (RFC-0029, section 4).

Invariant: nothing here shows a key or a secret, neither in a ``repr`` nor in an error. All that decides whether a peer
knows a secret is compared in constant time, by AES-GCM itself or by ``hmac.compare_digest``.
"""

from __future__ import annotations

import hashlib
import hmac
import os
from importlib.util import find_spec
from typing import TYPE_CHECKING, Final

from ..errors import DecodeError, InvalidFieldsError, InvalidServicesError

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.ciphers.aead import AESGCM

__all__ = [
    "MAX_PACKETS",
    "OVERHEAD",
    "SECRET_SIZE",
    "Keys",
    "StreamKeyExhaustedError",
    "check_installed",
    "check_secret",
    "derive",
    "is_installed",
    "new_cipher",
    "seal",
    "unseal",
]

SECRET_SIZE: Final = 32
#: What encryption adds to a packet: a nonce of 12 bytes and a tag of 16.
OVERHEAD: Final = 28
#: The most packets that may be encrypted with one key, both ends together.
MAX_PACKETS: Final = 2**31

_NONCE: Final = 12
_TAG: Final = 16
_BLOCK: Final = 64
_INSTALL: Final = "STREAM needs the package cryptography, which is an extra; in a clone: pip install '.[stream]'"


class StreamKeyExhaustedError(InvalidFieldsError):
    """The key of a connection has encrypted as many packets as it may; new credentials are needed."""

    name: str = InvalidFieldsError.name


def is_installed() -> bool:
    """Whether the extra ``stream`` is installed."""
    return find_spec("cryptography") is not None


def check_installed() -> None:
    """Raise an error unless the extra ``stream`` is installed.

    Raises:
        InvalidServicesError: It is not; the text says how to install it.
    """
    if not is_installed():
        raise InvalidServicesError(_INSTALL)


def new_cipher(key: bytes) -> AESGCM:
    """Return AES-256-GCM with a key.

    Raises:
        InvalidServicesError: The package ``cryptography`` is not installed; the text says how to install it.
    """
    try:
        from cryptography.hazmat.primitives.ciphers.aead import AESGCM  # noqa: PLC0415 (an extra)
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] != "cryptography":
            raise
        raise InvalidServicesError(_INSTALL) from None
    return AESGCM(key)


def check_secret(secret: object, name: str, least: int = SECRET_SIZE) -> bytes:
    """Return a secret as bytes.

    Args:
        secret: The secret.
        name: The argument's name, for the error.
        least: The least number of bytes.

    Raises:
        TypeError: It is not bytes-like.
        InvalidFieldsError: It is too short. The text shows nothing of it.
    """
    if not isinstance(secret, bytes | bytearray | memoryview):
        raise TypeError(f"{name} is bytes, not {type(secret).__name__}")
    value = bytes(secret)
    if len(value) < least:
        raise InvalidFieldsError(f"{name} has {len(value)} bytes: it must have at least {least}")
    return value


def derive(secret: bytes, purpose: bytes) -> bytes:
    """Return the HMAC-SHA256 of a purpose under a secret, 32 bytes."""
    return hmac.digest(secret, purpose, "sha256")


def seal(cipher: AESGCM, plaintext: bytes) -> bytes:
    """Return a random nonce, the tag and the ciphertext."""
    nonce = os.urandom(_NONCE)
    sealed = cipher.encrypt(nonce, plaintext, None)
    # AESGCM appends the tag; STREAM has it in front.
    return nonce + sealed[-_TAG:] + sealed[:-_TAG]


def unseal(cipher: AESGCM, data: bytes) -> bytes:
    """Return the plaintext of what ``seal`` returned.

    Raises:
        DecodeError: The data was not sealed with this key, or has changed.
    """
    if len(data) < OVERHEAD:
        raise DecodeError(f"encrypted data has at least {OVERHEAD} bytes, not {len(data)}")
    try:
        return cipher.decrypt(data[:_NONCE], data[OVERHEAD:] + data[_NONCE:OVERHEAD], None)
    except Exception:  # noqa: BLE001 (InvalidTag, whose module is not imported; nothing else depends on the data)
        raise DecodeError("the data does not open with this key") from None


class Keys:
    """The keys that belong to a shared secret; ``repr`` shows nothing of them.

    Args:
        shared_secret: The connection's secret.

    Attributes:
        sealed: How many packets this end has encrypted.
    """

    __slots__ = ("_cipher", "_inner", "_outer", "sealed")

    def __init__(self, shared_secret: bytes) -> None:
        self._cipher = new_cipher(derive(shared_secret, b"ilp_stream_encryption"))
        key = derive(shared_secret, b"ilp_stream_fulfillment").ljust(_BLOCK, b"\0")
        # HMAC-SHA256 with its first blocks done: a third of the time of hmac.digest(), which looks up the algorithm.
        self._inner = hashlib.sha256(bytes(byte ^ 0x36 for byte in key))
        self._outer = hashlib.sha256(bytes(byte ^ 0x5C for byte in key))
        self.sealed: int = 0

    def seal(self, plaintext: bytes) -> bytes:
        """Encrypt a packet.

        Raises:
            StreamKeyExhaustedError: This end has encrypted its half of the packets that the key may encrypt.
        """
        if self.sealed >= MAX_PACKETS // 2:
            raise StreamKeyExhaustedError("the connection has sent as many packets as its key may encrypt")
        self.sealed += 1
        return seal(self._cipher, plaintext)

    def open(self, data: bytes) -> bytes:
        """Decrypt a packet.

        Raises:
            DecodeError: It was not encrypted with this key, or has changed.
        """
        return unseal(self._cipher, data)

    def fulfillment(self, data: bytes) -> bytes:
        """Return the fulfillment of an ILP packet with this encrypted data."""
        inner, outer = self._inner.copy(), self._outer.copy()
        inner.update(data)
        outer.update(inner.digest())
        return outer.digest()
