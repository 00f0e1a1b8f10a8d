"""``serve --admin``: a page for operators beside the server."""

from __future__ import annotations

from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, TypeVar

import click
from attrs import frozen

from ..errors import InvalidFieldsError
from ..net.url import is_loopback
from ..options.fields import bare_host
from .errors import describe_problems

if TYPE_CHECKING:
    import ssl
    from collections.abc import AsyncIterator, Callable

    from ..http.options import IncomingOptions
    from ..plugin import LedgerPlugin

__all__ = ["AdminChoice", "admin_choices", "open_chosen_admin", "page_line"]

_Decorated = TypeVar("_Decorated", bound="Callable[..., object]")

CHOICES = (
    click.option(
        "--admin",
        type=click.IntRange(0, 65535),
        metavar="PORT",
        help="Serve a page for operators at this port, with /health and /metrics; 0: any free one.",
    ),
    click.option(
        "--admin-host", default="127.0.0.1", show_default=True, help="The page's address; others need a token."
    ),
    click.option(
        "--admin-token",
        envvar="TRIO_LEDGER_PLUGIN_ADMIN_TOKEN",
        show_envvar=True,
        help="What the page asks for. Without it everyone on this machine may look, and settle transfers.",
    ),
    click.option(
        "--admin-name",
        "admin_names",
        multiple=True,
        metavar="NAME",
        help="A host name under which browsers ask for the page. May be given several times.",
    ),
)
# How errors name the options of the command line.
SUBJECTS = {"host": "--admin-host:", "token": "--admin-token:"}


@frozen
class AdminChoice:
    """Where the page is served, and for whom.

    Attributes:
        incoming: The address, the token and the TLS context.
        names: Host names under which browsers ask for it.
    """

    incoming: IncomingOptions
    names: tuple[str, ...]

    @classmethod
    def make(
        cls,
        port: int | None,
        host: str,
        token: str | None,
        names: tuple[str, ...],
        ssl_context: ssl.SSLContext | None,
    ) -> AdminChoice | None:
        """Return the choice; None without a port.

        Args:
            port: The port.
            host: The address.
            token: The token; None for none.
            names: Host names.
            ssl_context: The server's; the page has the same, unless only this machine can reach it.

        Raises:
            click.ClickException: The page cannot be served so, or the extra is not installed.
        """
        if port is None:
            return None
        try:
            from ..admin.opening import incoming_options  # noqa: PLC0415 (an extra)
        except ModuleNotFoundError as error:
            raise click.ClickException(f"--admin: {error}") from error
        host = bare_host(host)
        try:
            incoming = incoming_options(host, port, token, None if is_loopback(host) else ssl_context)
        except InvalidFieldsError as error:
            raise click.UsageError(describe_problems(error, SUBJECTS)) from error
        return cls(incoming, names)


def admin_choices(command: _Decorated) -> _Decorated:
    """Give a command the options above."""
    for option in reversed(CHOICES):
        command = option(command)
    return command


@asynccontextmanager
async def open_chosen_admin(choice: AdminChoice | None, plugin: LedgerPlugin) -> AsyncIterator[str]:
    """Serve the page that was chosen, if any, and yield its URL, or an empty text.

    Raises:
        click.ClickException: The port cannot be opened.

    Cancellation: Closes the page at once.
    """
    if choice is None:
        yield ""
        return
    from ..admin import open_admin  # noqa: PLC0415 (an extra)

    incoming = choice.incoming
    assert incoming.port is not None
    opened = False
    try:
        async with open_admin(
            plugin,
            incoming.host or "*",
            incoming.port,
            incoming.static_token or None,
            ssl_context=incoming.ssl_context,
            names=choice.names,
        ) as admin:
            opened = True
            yield admin.address
    except OSError as error:
        if opened:
            raise
        raise click.ClickException(f"{error.strerror or error}; choose another with --admin") from error


def page_line(page: str) -> tuple[str, ...]:
    """Return the line that says where the page is; none without a page."""
    return (f"the admin page: {page}",) if page else ()
