"""Payment pointers (RFC-0026), and the credentials behind them (RFC-0009, SPSP).

Invariant: credentials come only over TLS with a trusted certificate, or from this machine. Redirects are not followed:
the payer has to see whom a payment goes to.
"""

from __future__ import annotations

import base64
import binascii
import json
import re
import ssl
from typing import Any, Final

import h11
import trio

from ..codec.ilp import is_address
from ..errors import DecodeError, InvalidFieldsError, RemoteError, UnreachableError
from ..log import escape
from ..net.dial import dial
from ..net.sockets import abort_stream
from ..net.url import HOST_CHARACTERS, ServerUrl, parse_http
from ..options.fields import CLIENT_CONTEXT, VALIDATOR
from .addresses import check_details
from .credentials import Credentials
from .crypto import SECRET_SIZE

__all__ = ["check_endpoint", "decode_base64", "fetch_spsp", "resolve_payment_pointer"]

_ACCEPT: Final = "application/spsp4+json, application/spsp+json"
_WELL_KNOWN: Final = "/.well-known/pay"
_MAX_BODY: Final = 64 * 1024
_MAX_HEAD: Final = 16 * 1024
_READ: Final = 16 * 1024
_BASE64: Final = re.compile(r"[A-Za-z0-9+/_-]*={0,2}")


def resolve_payment_pointer(pointer: str) -> str:
    """Return the URL that a payment pointer stands for (RFC-0026): ``$host/path`` is ``https://host/path``.

    Args:
        pointer: Such as ``"$wallet.example/alice"``. Without a path, the URL's path is ``/.well-known/pay``.

    Raises:
        TypeError: It is not text.
        InvalidFieldsError: It is not a payment pointer; the text says what is wrong.
    """
    if not isinstance(pointer, str):
        raise TypeError(f"a payment pointer is text, not {type(pointer).__name__}")
    if not pointer.startswith("$"):
        raise InvalidFieldsError("a payment pointer begins with $, such as $wallet.example/alice")
    host, slash, path = pointer[1:].partition("/")
    for mark, name in (("@", "user name"), (":", "port"), ("?", "query"), ("#", "fragment")):
        if mark in pointer:
            raise InvalidFieldsError(f"a payment pointer has no {name} ('{mark}'), such as $wallet.example/alice")
    if not host or not HOST_CHARACTERS.issuperset(host):
        raise InvalidFieldsError("a payment pointer has a host name in ASCII, such as $wallet.example/alice")
    if not all("!" <= character <= "~" for character in path):
        raise InvalidFieldsError("a payment pointer has a path without spaces and in ASCII; percent-encode others")
    return f"https://{host}{slash + path if path else _WELL_KNOWN}"


def _parse_endpoint(to: str) -> ServerUrl:
    """Return the endpoint of a payment pointer or a URL.

    Raises:
        InvalidFieldsError: It is neither.
    """
    url = resolve_payment_pointer(to) if to.startswith("$") else to
    scheme, mark, rest = url.partition("://")
    try:
        endpoint = parse_http(scheme.lower() + mark + rest)
    except ValueError:
        raise InvalidFieldsError(
            "give a payment pointer such as $wallet.example/alice, or an https URL without @ and #"
        ) from None
    if not endpoint.tls and not endpoint.is_loopback:
        raise InvalidFieldsError("the URL begins with http://: credentials need https://, except on this machine")
    return endpoint


def check_endpoint(to: str) -> None:
    """Raise an error unless the text is a payment pointer, or a URL that an endpoint can have.

    Raises:
        InvalidFieldsError: It is neither.
    """
    _parse_endpoint(to)


async def fetch_spsp(
    to: str,
    *,
    receipt_nonce: bytes | None = None,
    receipt_secret: bytes | None = None,
    ssl_context: ssl.SSLContext | None = None,
    within: float = 10.0,
) -> Credentials:
    """Ask an SPSP endpoint for the credentials of one payment (RFC-0009).

    Args:
        to: A payment pointer such as ``"$wallet.example/alice"``, or the endpoint's URL. ``http://`` is accepted for
            this machine only.
        receipt_nonce: 16 bytes that the receipts shall contain (RFC-0039); None for no receipts.
        receipt_secret: The secret that signs the receipts, 32 bytes; needed with the nonce.
        ssl_context: The TLS context; None verifies the endpoint with the system's certificates.
        within: Seconds for everything.

    Returns:
        The credentials, which are for one payment.

    Raises:
        TypeError: ``to`` is not text.
        InvalidFieldsError: ``to`` is not a payment pointer or such a URL, or the nonce, the secret or the TLS context
            is wrong.
        UnreachableError: The endpoint cannot be reached in time, or its certificate is not trusted.
        RemoteError: It refuses: ``F02`` if it does not know the receiver, ``F00``, or ``T00`` if it may help to try
            again. A redirect is refused; the text shows where it leads.
        DecodeError: Its answer is not one of SPSP.

    Cancellation: Safe at any time; the connection is closed.
    """
    if not isinstance(to, str):
        raise TypeError(f"to is a payment pointer or a URL, not {type(to).__name__}")
    if problem := CLIENT_CONTEXT[VALIDATOR].find_problem(ssl_context):
        raise InvalidFieldsError(f"ssl_context: {problem}", problems=(("ssl_context", problem),))
    endpoint = _parse_endpoint(to)
    headers = [("Host", endpoint.host_header), ("Accept", _ACCEPT), ("Connection", "close")]
    headers += _receipt_headers(receipt_nonce, receipt_secret)
    response, body = None, b""
    with trio.move_on_after(within):
        response, body = await _get(endpoint, headers, ssl_context)
    if response is None:
        raise UnreachableError(f"no answer from {endpoint.address} within {within:g} s")
    _check_status(endpoint, response)
    return _read_credentials(endpoint, body)


def _receipt_headers(nonce: bytes | None, secret: bytes | None) -> list[tuple[str, str]]:
    details = check_details(None, nonce, secret)
    if not details.receipt_nonce:
        return []
    return [
        ("Receipt-Nonce", base64.b64encode(details.receipt_nonce).decode()),
        ("Receipt-Secret", base64.b64encode(details.receipt_secret).decode()),
    ]


async def _get(
    endpoint: ServerUrl, headers: list[tuple[str, str]], ssl_context: ssl.SSLContext | None
) -> tuple[h11.Response, bytes]:
    """Send a GET and return the response and its body."""
    if not endpoint.tls:
        ssl_context = None
    elif ssl_context is None:
        ssl_context = await trio.to_thread.run_sync(ssl.create_default_context)
    stream = await dial(endpoint.host, endpoint.port, endpoint.address, ssl_context=ssl_context)
    connection = h11.Connection(h11.CLIENT, max_incomplete_event_size=_MAX_HEAD)
    try:
        request = connection.send(h11.Request(method="GET", target=endpoint.resource, headers=headers))
        await stream.send_all((request or b"") + (connection.send(h11.EndOfMessage()) or b""))
        return await _receive(connection, stream)
    except (trio.BrokenResourceError, h11.RemoteProtocolError) as error:
        if isinstance(error, h11.RemoteProtocolError):
            raise DecodeError(f"the answer of {endpoint.address} is not HTTP, is too long or incomplete") from error
        raise UnreachableError(f"the connection to {endpoint.address} was lost") from error
    finally:
        await abort_stream(stream)  # noqa: ASYNC102 (it waits for nothing)


async def _receive(connection: h11.Connection, stream: trio.abc.Stream) -> tuple[h11.Response, bytes]:
    response: h11.Response | None = None
    body = bytearray()
    while True:
        event = connection.next_event()
        if event is h11.NEED_DATA:
            connection.receive_data(bytes(await stream.receive_some(_READ)))
        elif isinstance(event, h11.Response):
            response = event
        elif isinstance(event, h11.Data):
            body += event.data
            if len(body) > _MAX_BODY:
                raise DecodeError(f"the answer has more than {_MAX_BODY} bytes")
        elif isinstance(event, h11.EndOfMessage):
            assert response is not None
            return response, bytes(body)


def _check_status(endpoint: ServerUrl, response: h11.Response) -> None:
    status = response.status_code
    if status == 200:
        return
    code, name = ("T00" if status == 429 or status >= 500 else "F00"), "NotAcceptedError"
    text = f"{endpoint.address} answers with the HTTP status {status}"
    if status == 404:
        code, name, text = "F02", "InvalidReceiverError", f"{endpoint.address} knows no such receiver"
    elif 300 <= status < 400:
        location = next((value.decode("ascii", "replace") for key, value in response.headers if key == b"location"), "")
        text = f"{endpoint.address} redirects to {escape(location[:200])}; if that is right, pay that URL"
    elif status == 406:
        text = f"{endpoint.address} is no SPSP endpoint: it has no application/spsp4+json"
    raise RemoteError(code, name, data=text.encode())


def _read_credentials(endpoint: ServerUrl, body: bytes) -> Credentials:
    """Return the credentials in an answer; no error shows the secret."""
    try:
        answer: Any = json.loads(body)
    except (ValueError, RecursionError):
        raise DecodeError(f"the answer of {endpoint.address} is not JSON") from None
    if not isinstance(answer, dict):
        raise DecodeError(f"the answer of {endpoint.address} is not a JSON object")
    address, secret = answer.get("destination_account"), answer.get("shared_secret")
    if not isinstance(address, str) or not is_address(address):
        raise DecodeError(f"the answer of {endpoint.address} has no destination_account that is an ILP address")
    shared_secret = decode_base64(secret)
    if shared_secret is None or len(shared_secret) != SECRET_SIZE:
        raise DecodeError(f"the answer of {endpoint.address} has no shared_secret of {SECRET_SIZE} bytes in base64")
    return Credentials(address, shared_secret, receipts_enabled=answer.get("receipts_enabled") is True)


def decode_base64(text: object) -> bytes | None:
    """Return the bytes of base64 in either alphabet, with or without padding; None if it is not base64."""
    if not isinstance(text, str) or not _BASE64.fullmatch(text):
        return None
    digits = text.rstrip("=").replace("-", "+").replace("_", "/")
    try:
        return base64.b64decode(digits + "=" * (-len(digits) % 4), validate=True)
    except binascii.Error:
        return None
