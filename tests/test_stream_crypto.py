"""Keys of connections, the limit of packets, and a missing extra."""

import hmac
import subprocess
import sys

import pytest

from trio_ledger_plugin.errors import DecodeError, InvalidFieldsError
from trio_ledger_plugin.stream import crypto
from trio_ledger_plugin.stream.crypto import Keys, StreamKeyExhaustedError, check_secret

SECRET = bytes(range(32))


def test_keys_are_those_of_the_specification():
    from cryptography.hazmat.primitives.ciphers.aead import AESGCM  # noqa: PLC0415 (an extra)

    data = Keys(SECRET).seal(b"plain")
    key = hmac.digest(SECRET, b"ilp_stream_encryption", "sha256")
    nonce, tag, text = data[:12], data[12:28], data[28:]
    assert AESGCM(key).decrypt(nonce, text + tag, None) == b"plain"
    fulfillment = hmac.digest(hmac.digest(SECRET, b"ilp_stream_fulfillment", "sha256"), data, "sha256")
    assert Keys(SECRET).fulfillment(data) == fulfillment


def test_each_packet_has_a_nonce_of_its_own():
    keys = Keys(SECRET)
    assert len({keys.seal(b"same")[:12] for _ in range(1000)}) == 1000


def test_damaged_data_does_not_open():
    keys = Keys(SECRET)
    data = keys.seal(b"plain")
    for at in range(len(data)):
        with pytest.raises(DecodeError):
            keys.open(data[:at] + bytes((data[at] ^ 1,)) + data[at + 1 :])
        with pytest.raises(DecodeError):
            keys.open(data[:at])
    with pytest.raises(DecodeError):
        Keys(bytes(32)).open(data)


def test_key_encrypts_a_limited_number_of_packets():
    """Random nonces repeat after too many packets, and then the key is known."""
    keys = Keys(SECRET)
    keys.sealed = crypto.MAX_PACKETS // 2 - 1
    keys.seal(b"the last")
    with pytest.raises(StreamKeyExhaustedError):
        keys.seal(b"one too many")


def test_secrets_are_checked_and_not_shown():
    with pytest.raises(InvalidFieldsError) as caught:
        check_secret(b"canary", "secret")
    assert "canary" not in str(caught.value)
    assert "canary" not in repr(Keys(b"canary" * 6))


def test_missing_extra_is_one_clear_sentence():
    program = """
import sys
sys.modules["cryptography"] = None
sys.modules["cryptography.hazmat.primitives.ciphers.aead"] = None
from trio_ledger_plugin.stream import Credentials
from trio_ledger_plugin import InvalidServicesError
try:
    Credentials("example.a.b", bytes(32)).keys
except InvalidServicesError as error:
    print(error)
"""
    run = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert (
        run.stdout == "STREAM needs the package cryptography, which is an extra; in a clone: pip install '.[stream]'\n"
    )
