"""The host names that a server's certificate is for, so that URLs for clients have one of them."""

from __future__ import annotations

import ssl
from contextlib import suppress
from ipaddress import ip_address
from typing import Any

__all__ = ["NO_NAME", "choose_host", "names_in_certificate"]

# What a URL shows if the certificate does not say which name to use.
NO_NAME = "YOUR-HOST-NAME"
# More than a handshake takes.
ROUNDS = 10


def names_in_certificate(server: ssl.SSLContext) -> tuple[str, ...]:
    """Return the host names and addresses in a server's certificate; none if it has expired or has none.

    The ``ssl`` module shows the contents of a certificate only to a client that has verified it, so two clients shake
    hands with the server in memory: one to get the certificate, and one that trusts just this certificate.
    """
    client = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    client.check_hostname = False
    client.verify_mode = ssl.CERT_NONE
    try:
        certificate = _shake_hands(client, server).getpeercert(binary_form=True)
        if certificate is None:
            return ()
        client.verify_mode = ssl.CERT_REQUIRED
        client.verify_flags |= ssl.VERIFY_X509_PARTIAL_CHAIN
        client.load_verify_locations(cadata=certificate)
        # Its type in typeshed is too wide to be unpacked.
        contents: Any = _shake_hands(client, server).getpeercert() or {}
    except ssl.SSLError:
        return ()
    return tuple(str(value) for kind, value in contents.get("subjectAltName", ()) if kind in {"DNS", "IP Address"})


def choose_host(host: str, names: tuple[str, ...]) -> str:
    """Return the host for URLs: the given one if the certificate is for it, or else the first name that can be used.

    Args:
        host: A host as in a URL: a name, or an address, in brackets if it is one of IPv6.
        names: What the certificate is for.
    """
    hosts = [_in_url(name) for name in names]
    if any(_matches(host, name) for name in hosts):
        return host
    return next((name for name in hosts if "*" not in name), NO_NAME)


def _matches(host: str, name: str) -> bool:
    if name.startswith("*."):
        return host.partition(".")[2].lower() == name[2:].lower()
    return host.lower() == name.lower()


def _in_url(name: str) -> str:
    try:
        address = ip_address(name)
    except ValueError:
        return name
    return f"[{address}]" if address.version == 6 else str(address)


def _shake_hands(client_context: ssl.SSLContext, server_context: ssl.SSLContext) -> ssl.SSLObject:
    to_client, to_server = ssl.MemoryBIO(), ssl.MemoryBIO()
    client = client_context.wrap_bio(to_client, to_server)
    server = server_context.wrap_bio(to_server, to_client, server_side=True)
    for _ in range(ROUNDS):
        for end in (client, server):
            with suppress(ssl.SSLWantReadError):
                end.do_handshake()
    return client
