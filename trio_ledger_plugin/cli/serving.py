"""What ``serve`` needs for one client and for many."""

from __future__ import annotations

import gc
import socket
import ssl
from contextlib import asynccontextmanager, contextmanager
from ipaddress import ip_address
from shlex import quote
from typing import TYPE_CHECKING

import click
import trio
from attrs import frozen
from rich.live import Live

from ..net.url import split_url
from .certificate import NO_NAME, choose_host, names_in_certificate
from .errors import SECRET_VARIABLE
from .stores import open_any_store

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Iterator

    from rich.console import RenderableType

    from ..plugin import LedgerPlugin
    from ..stores import PostgresStore, SqliteStore
    from ..transfer import Transfer
    from .output import LiveOutput, Screen
    from .stores import StoreChoice

__all__ = [
    "CLOSE_SECONDS",
    "REFRESH_SECONDS",
    "SUBJECTS",
    "Where",
    "client_url",
    "collecting_seldom",
    "introduce",
    "money_values",
    "open_store",
    "placeholder_note",
    "reporting_bind_errors",
    "show_live",
    "tls_context",
    "try_it",
    "write_closed",
    "write_events",
]

CLOSE_SECONDS = 0.5
# After how many objects, and after how many collections of the younger objects, garbage is collected. With Python's own
# numbers, requests that happen to be under way count as old objects soon, and cause full collections.
COLLECT = (10_000, 5, 20)
# How errors name the options of the command line.
SUBJECTS = {
    "secret": "--secret:",
    "static_token": "--secret:",
    "host": "--host:",
    "trusted_proxies": "--trusted-proxy:",
    "proxy_protocol": "--proxy-protocol:",
    "listener.proxy_protocol": "--proxy-protocol:",
    "client_address": "--address:",
    "asset_code": "--asset-code:",
}
REFRESH_SECONDS = 0.5


@contextmanager
def collecting_seldom() -> Iterator[None]:
    """Have Python look for garbage less often: with many connections each full collection stops the program for long.

    It is set for the whole process, so it is the program's business and not the plugin's.
    """
    before = gc.get_threshold()
    gc.set_threshold(*COLLECT)
    try:
        yield
    finally:
        gc.set_threshold(*before)


@frozen
class Where:
    """Where a server listens, and for whom."""

    host: str
    port: int
    ssl_context: ssl.SSLContext | None
    trusted_proxies: tuple[str, ...]
    proxy_protocol: bool


def tls_context(certificate: str | None, key: str | None) -> ssl.SSLContext | None:
    """Return the TLS context of a server with a certificate and its key, both files; None without a certificate.

    Raises:
        click.UsageError: The files are not a certificate and its key.
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
        raise click.UsageError(f"--tls-cert and --tls-key are not a certificate and its key: {error}") from error
    return context


def _no_password() -> str:
    raise ValueError("the key is encrypted; give an unencrypted one")


@asynccontextmanager
async def open_store(choice: StoreChoice | None) -> AsyncIterator[SqliteStore | PostgresStore | None]:
    """Open the store that was chosen, if any.

    Raises:
        StoreError: It cannot be opened.
    """
    if choice is None:
        yield None
        return
    async with open_any_store(choice) as store:
        yield store


@contextmanager
def reporting_bind_errors() -> Iterator[None]:
    """Turn a failure to listen into an error that names the options for the address.

    Raises:
        click.ClickException: The block raised ``OSError``, other than for a closed stdout.
    """
    try:
        yield
    except BrokenPipeError:
        raise
    except OSError as error:
        raise click.ClickException(f"{error.strerror or error}; choose another with --host or --port") from error


def client_url(address: str, credentials: str, ssl_context: ssl.SSLContext | None = None) -> str:
    """Return the URL that a client dials.

    Args:
        address: The server's address.
        credentials: The part before the ``@``.
        ssl_context: The server's; the URL has a host that its certificate is for, or a placeholder.
    """
    scheme, _, location = address.partition("://")
    host, _, port = location.rpartition(":")
    try:
        anywhere = ip_address(host.strip("[]")).is_unspecified
    except ValueError:
        anywhere = False
    if anywhere:
        host = socket.gethostname()
    if ssl_context is not None:
        host = choose_host(host, names_in_certificate(ssl_context))
    return f"{scheme}://{credentials}{'@' if credentials else ''}{host}:{port}"


def placeholder_note(url: str) -> str:
    """Return the line that explains the placeholder in a URL; empty if there is none."""
    return f"{NO_NAME} is a host name that the certificate is for" if NO_NAME in url else ""


def introduce(output: LiveOutput, lines: tuple[str, ...], **values: object) -> None:
    """Write where the server listens: lines for people without empty ones, or the values for programs."""
    if output.as_json:
        output.write("listening", "", **values)
    else:
        for line in filter(None, lines):
            output.screen.line(line)
    output.release()


def try_it(command: str, url: str) -> str:
    """Return the line that shows a whole command for another terminal.

    Args:
        command: The command, such as ``"ping"``.
        url: Its URL. If that has no token, the command has it in the environment.
    """
    _, userinfo, _, _ = split_url(url)
    token = "" if userinfo else f"{SECRET_VARIABLE}=... "
    return f"try it: {token}trio-ledger-plugin {command} {quote(url)} (Ctrl-C ends the server)"


def money_values(transfer: Transfer) -> dict[str, object]:
    """Return what an event of money says about a transfer besides its account: the amount, the key and the level."""
    return {"amount": transfer.amount, "key": transfer.key, "level": transfer.level.value}


async def write_events(
    output: LiveOutput,
    plugin: LedgerPlugin,
    kinds: tuple[type, ...] = (object,),
    is_drawn: Callable[[], bool] = lambda: False,
) -> None:
    """Write the plugin's events of these classes as they come, except while a table is drawn that shows the same."""
    async for event in plugin.events:
        if isinstance(event, kinds) and not is_drawn():
            output.write_event(event)


async def show_live(screen: Screen, make: Callable[[], RenderableType]) -> None:
    """Keep the bottom of the terminal up to date until cancelled, while the program is in the foreground.

    Args:
        screen: The terminal.
        make: Returns what to show now.
    """
    while True:
        if screen.in_foreground():
            # By default Rich refreshes from a thread.
            with Live(console=screen.console, auto_refresh=False, transient=True) as live:
                while screen.in_foreground():
                    live.update(make(), refresh=True)
                    await trio.sleep(REFRESH_SECONDS)
                # What is drawn once more at the end.
                live.update("")
        await trio.sleep(REFRESH_SECONDS)


def write_closed(output: LiveOutput, plugin: LedgerPlugin) -> None:
    """Write what a server did until it closed."""
    counts = plugin.statistics()
    values = {name: getattr(counts, name) for name in ("requests_received", "responses_sent", "errors_sent")}
    text = "closed; {requests_received} requests, {responses_sent} answered, {errors_sent} refused".format(**values)
    output.write("closed", text, **values)
