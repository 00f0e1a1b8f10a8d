"""What the command ``serve`` has in common for one client and for many."""

from __future__ import annotations

import socket
import ssl
from contextlib import asynccontextmanager
from ipaddress import ip_address
from typing import TYPE_CHECKING

import click

from ..stores import open_sqlite_store

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from ..plugin import LedgerPlugin
    from ..stores import SqliteStore
    from .report import Report

__all__ = [
    "CLOSE_SECONDS",
    "REFRESH_SECONDS",
    "client_url",
    "not_listening",
    "open_store",
    "tell_closed",
    "tls_context",
]

CLOSE_SECONDS = 0.5
REFRESH_SECONDS = 0.5


def client_url(address: str, credentials: str) -> str:
    """Return the URL that a client dials, ``credentials`` as they stand before the ``@``."""
    scheme, _, location = address.partition("://")
    host, _, port = location.rpartition(":")
    try:
        anywhere = ip_address(host.strip("[]")).is_unspecified
    except ValueError:
        anywhere = False
    return f"{scheme}://{credentials}@{socket.gethostname() if anywhere else host}:{port}"


def tell_closed(report: Report, plugin: LedgerPlugin) -> None:
    """Tell what a server that has closed did in all."""
    counts = plugin.statistics()
    values = {name: getattr(counts, name) for name in ("requests_received", "responses_sent", "errors_sent")}
    text = "closed; {requests_received} requests, {responses_sent} answered, {errors_sent} refused".format(**values)
    report.tell("closed", text, **values)


def not_listening(error: OSError) -> click.ClickException:
    """Return what the user is told when the server cannot listen at its address."""
    return click.ClickException(f"{error.strerror or error}; choose another with --host or --port")


def tls_context(certificate: str | None, key: str | None) -> ssl.SSLContext | None:
    """Return what serves TLS with a certificate and its key, both files; None where none is given.

    Raises:
        click.UsageError: They are none.
    """
    if certificate is None:
        if key is not None:
            raise click.UsageError("--tls-key needs --tls-cert")
        return None
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    try:
        # Without a password function OpenSSL would ask on the terminal, and a service would hang.
        context.load_cert_chain(certificate, key, password=_no_password)
    except (OSError, ValueError) as error:
        raise click.UsageError(f"--tls-cert and --tls-key are no certificate with its key: {error}") from error
    return context


def _no_password() -> str:
    raise ValueError("the key is encrypted; give one that is not")


@asynccontextmanager
async def open_store(path: str | None) -> AsyncIterator[SqliteStore | None]:
    """Open the store at a path, or none.

    Raises:
        StoreError: It cannot be opened.
    """
    if path is None:
        yield None
        return
    async with open_sqlite_store(path) as store:
        yield store
