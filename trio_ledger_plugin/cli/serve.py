"""``serve``: a server for one client, which shows what the client does; with ``--accounts``, for many clients."""

from __future__ import annotations

import secrets
from contextlib import AsyncExitStack
from typing import TYPE_CHECKING, Any

import click
import trio
from attrs import evolve, fields
from click.core import ParameterSource
from rich.text import Text

from ..btp.options import BtpOptions, ListenerOptions
from ..errors import InvalidFieldsError
from ..events import EventsDropped, Failed
from ..http.options import HttpOptions, IncomingOptions
from ..opening import open_plugin
from ..services import PluginServices
from ..stores.postgres import is_dsn
from ..transfer import current_transfer
from .administration import AdminChoice, admin_choices, open_chosen_admin, page_line
from .errors import COMMON, SECRET_VARIABLE, Exit, describe_problems
from .output import open_live_output
from .parameters import Command, epilog
from .replies import REPLIES
from .serve_accounts import (
    AccountChoices,
    accounts_choices,
    make_accounts_options,
    make_http_accounts_options,
    serve_accounts,
)
from .serving import (
    CLOSE_SECONDS,
    SUBJECTS,
    Where,
    client_url,
    collecting_seldom,
    introduce,
    money_values,
    open_store,
    placeholder_note,
    reporting_bind_errors,
    show_live,
    tls_context,
    try_it,
    write_closed,
    write_events,
)
from .signals import open_ending, run_until_sigterm
from .stores import StoreChoice, StoreName

if TYPE_CHECKING:
    import ssl

    from ..plugin import LedgerPlugin

__all__ = ["serve"]

DEFAULT_PORT = 7768
# What is shown in place of a secret that the user has given.
HIDDEN = "***"
# What is shown over HTTP, where Connected and Disconnected only say that the server listens.
HTTP_EVENTS = (Failed, EventsDropped)

EXAMPLES = """
  trio-ledger-plugin serve
  trio-ledger-plugin serve --port 0 --reply fulfill --json
  TRIO_LEDGER_PLUGIN_SECRET=... trio-ledger-plugin serve --host 0.0.0.0 --tls-cert cert.pem --tls-key key.pem
  trio-ledger-plugin serve --accounts
  trio-ledger-plugin serve --http --reply fulfill
  trio-ledger-plugin serve --accounts --admin 7780
  trio-ledger-plugin serve --accounts --account-mode username --store accounts.db --allow-origin https://wallet.example
"""


@click.command(
    cls=Command,
    epilog=epilog(EXAMPLES, *COMMON),
    short_help="A server for one client or for many, which shows what they do.",
)
@click.option(
    "--host",
    default="127.0.0.1",
    show_default=True,
    help="The address to listen on; '*' is every one.",
)
@click.option(
    "--port", type=click.IntRange(0, 65535), default=DEFAULT_PORT, show_default=True, help="The port; 0: any free one."
)
@click.option(
    "--secret", envvar=SECRET_VARIABLE, show_envvar=True, help="The client's token; a random one if not given."
)
@click.option("--tls-cert", type=click.Path(exists=True, dir_okay=False), help="Serve TLS with this certificate (PEM).")
@click.option("--tls-key", type=click.Path(exists=True, dir_okay=False), help="Its key, unless in the same file (PEM).")
@click.option(
    "--trusted-proxy",
    "trusted_proxies",
    multiple=True,
    metavar="ADDRESS",
    help="A proxy before the server, by its IP address or network: the clients' addresses are those in its "
    "X-Forwarded-For. May be given several times.",
)
@click.option(
    "--proxy-protocol",
    is_flag=True,
    help="Expect a PROXY protocol header from --trusted-proxy at the beginning of each connection.",
)
@click.option(
    "--reply",
    type=click.Choice(list(REPLIES)),
    default="echo",
    show_default=True,
    help="How to answer requests. echo: with the same bytes. fulfill: a Prepare with its Fulfill, if the condition is "
    "the SHA-256 digest of the SHA-256 digest of the data. reject: all with a Reject.",
)
@click.option(
    "--store",
    type=StoreName(dir_okay=False),
    help="A file for transfers and, with --accounts, usernames; created if it is missing. Or the URL of a PostgreSQL "
    "database; a password is better in ~/.pgpass than in the URL. Without a store the server "
    "remembers nothing after it ends, and transfers have no keys: a lost answer leaves a transfer in doubt (PLAIN).",
)
@click.option(
    "--replication",
    type=click.Choice(["checked", "trusted", "none"]),
    default="checked",
    show_default=True,
    help="Of PostgreSQL. checked: refuse a server without a synchronous standby. trusted: the storage replicates. "
    "none: the loss of the server may lose money.",
)
@click.option(
    "--standby", is_flag=True, help="Wait while another process keeps the ledger in the database, then take its place."
)
@click.option("--http", "over_http", is_flag=True, help="Serve ILP over HTTP instead of BTP.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object a line and nothing else.")
@admin_choices
@accounts_choices
@click.pass_context
def serve(
    context: click.Context,
    /,
    host: str,
    port: int,
    secret: str | None,
    tls_cert: str | None,
    tls_key: str | None,
    trusted_proxies: tuple[str, ...],
    proxy_protocol: bool,
    reply: str,
    store: str | None,
    replication: str,
    standby: bool,
    over_http: bool,
    as_json: bool,
    admin: int | None,
    admin_host: str,
    admin_token: str | None,
    admin_names: tuple[str, ...],
    accounts: bool,
    **choices: Any,  # noqa: ANN401 (click gives what AccountChoices takes)
) -> int:
    """Listen for one client, answer its requests, accept its money, and show what it does.

    A new client with the right token replaces the previous one. Without --secret the server makes a random token and
    shows it at its start, in the URL for the client. On a terminal the last line shows the rates. Ctrl-C or SIGTERM
    ends the server within a second, with exit code 0.

    With --accounts every client has an account of its own, below the server's ILP address, and a token of its own
    choice. A Prepare to another account is forwarded there unchanged; the server keeps no balances. Requests to the
    server itself, and a Prepare to peer.ping, are answered as --reply says. On a terminal a table shows the accounts;
    its last line includes accounts that have disconnected. The options from --accounts on need --accounts.

    With --http the client sends ILP over HTTP (RFC-0035). HTTP carries no money, and the server sends no requests,
    unless --client-url says where to.

    With --admin the server also serves a page for operators: what accounts do, rates, limits and events, and
    transfers in doubt, which can be settled there. It has the server's certificate, except on 127.0.0.1.
    """
    _check_choices(context, accounts=accounts, over_http=over_http)
    ssl_context = tls_context(tls_cert, tls_key)
    page = AdminChoice.make(admin, admin_host, admin_token, admin_names, ssl_context)
    choice = None if store is None else StoreChoice(store, replication)
    if accounts:
        chosen = AccountChoices(**choices)
        where = Where(host, port, ssl_context, trusted_proxies, proxy_protocol)
        make = make_http_accounts_options if over_http else make_accounts_options
        accounts_options = evolve(make(chosen, where), standby=standby)
        with collecting_seldom():
            run_until_sigterm(serve_accounts, accounts_options, chosen, reply, choice, page, as_json)
        return Exit.OK
    shown = HIDDEN
    if secret == "":
        raise click.UsageError("--secret is empty; leave it out to have a random one")
    if secret is None:
        secret = shown = secrets.token_hex(16)
    options: BtpOptions | HttpOptions
    try:
        if over_http:
            incoming = IncomingOptions(port=port, static_token=secret, host=host, ssl_context=ssl_context)
            options = HttpOptions(incoming=incoming, trusted_proxies=trusted_proxies, close_timeout=CLOSE_SECONDS)
        else:
            listener = ListenerOptions(
                port=port, secret=secret, host=host, ssl_context=ssl_context, proxy_protocol=proxy_protocol
            )
            options = BtpOptions(listener=listener, trusted_proxies=trusted_proxies, close_timeout=CLOSE_SECONDS)
    except InvalidFieldsError as error:
        raise click.UsageError(describe_problems(error, SUBJECTS)) from error
    with reporting_bind_errors():
        run_until_sigterm(_serve, evolve(options, standby=standby), shown, reply, choice, page, as_json)
    return Exit.OK


def _check_choices(context: click.Context, *, accounts: bool, over_http: bool) -> None:
    """Refuse options that would do nothing. A value from an environment variable is ignored instead.

    Raises:
        click.UsageError: One was given.
    """
    in_database = is_dsn(context.params.get("store") or "")
    unused = {"secret"} if accounts else {field.name for field in fields(AccountChoices)}
    for param in context.command.params:
        if param.name in unused and _is_given(context, param):
            why = "is for one client; with --accounts each has its own token" if accounts else "needs --accounts"
            raise click.UsageError(f"{param.opts[0]} {why}")
        if (
            param.name in {"admin_host", "admin_token", "admin_names"}
            and context.params.get("admin") is None
            and _is_given(context, param)
        ):
            raise click.UsageError(f"{param.opts[0]} needs --admin")
        if param.name == "client_url" and not over_http and context.params.get("client_url") is not None:
            raise click.UsageError("--client-url needs --http; over BTP the clients dial")
        if param.name == "replication" and not in_database and _is_given(context, param):
            raise click.UsageError("--replication needs --store with the URL of a PostgreSQL database")
    if context.params.get("standby"):
        if over_http:
            raise click.UsageError("--standby is for BTP: over HTTP there is no ledger to wait for")
        if not in_database:
            raise click.UsageError("--standby needs --store with the URL of a PostgreSQL database")
    if context.params.get("proxy_protocol"):
        if over_http:
            raise click.UsageError("--proxy-protocol is for BTP; a proxy in front of --http sends X-Forwarded-For")
        if not context.params.get("trusted_proxies"):
            raise click.UsageError("--proxy-protocol needs --trusted-proxy: no other address may connect then")


def _is_given(context: click.Context, param: click.Parameter) -> bool:
    return param.name is not None and context.get_parameter_source(param.name) is ParameterSource.COMMANDLINE


async def _serve(
    options: BtpOptions | HttpOptions,
    token: str,
    reply: str,
    store_choice: StoreChoice | None,
    admin: AdminChoice | None,
    as_json: bool,
) -> None:
    async def take_money(amount: str) -> None:
        output.write("money", f"received money: {amount}", "green", **money_values(current_transfer()))

    async with AsyncExitStack() as stack:
        ending = await stack.enter_async_context(open_ending())
        output = await stack.enter_async_context(open_live_output(as_json=as_json))
        async with (
            open_store(store_choice) as store,
            open_plugin(
                options,
                PluginServices(store=store, log=output.log),
                data_handler=REPLIES[reply],
                money_handler=None if isinstance(options, HttpOptions) else take_money,
            ) as plugin,
            open_chosen_admin(admin, plugin) as page,
        ):
            ssl_context = _ssl_context_of(options)
            url = client_url(plugin.address, f":{token}", ssl_context)
            shown = client_url(plugin.address, "", ssl_context) if token == HIDDEN else url
            lines = (
                f"listening on {plugin.address}, answering with: {reply}",
                f"the client's URL: {url}",
                *page_line(page),
                try_it("ping", shown),
                note := placeholder_note(url),
            )
            if note:
                # No program can use the placeholder.
                url = client_url(plugin.address, f":{token}")
            introduce(output, lines, address=plugin.address, url=url, **({"admin": page} if page else {}))
            async with trio.open_nursery() as nursery:
                is_http = isinstance(options, HttpOptions)
                nursery.start_soon(write_events, output, plugin, HTTP_EVENTS if is_http else (object,))
                if output.has_live_lines:
                    line = _RateLine(plugin, has_link=not is_http)
                    nursery.start_soon(show_live, output.screen, line.update)
                await ending.wait()
                nursery.cancel_scope.cancel()
        write_closed(output, plugin)


def _ssl_context_of(options: BtpOptions | HttpOptions) -> ssl.SSLContext | None:
    listens = options.listener if isinstance(options, BtpOptions) else options.incoming
    return None if listens is None else listens.ssl_context


class _RateLine:
    """The line at the bottom of the terminal.

    Args:
        plugin: The server.
        has_link: Whether ``is_connected()`` says that there is a client; over HTTP it says that the server listens.
    """

    def __init__(self, plugin: LedgerPlugin, *, has_link: bool) -> None:
        self._plugin = plugin
        self._has_link = has_link
        self._at = trio.current_time()
        self._requests = plugin.statistics().requests_received

    def update(self) -> Text:
        """Return the line, with the rate since the last one."""
        counts, now = self._plugin.statistics(), trio.current_time()
        elapsed = now - self._at
        rate = (counts.requests_received - self._requests) / elapsed if elapsed > 0 else 0.0
        self._requests, self._at = counts.requests_received, now
        state = ""
        if self._has_link:
            state = "connected, " if self._plugin.is_connected() else "waiting for a client, "
        text = f"{state}{rate:,.0f} requests/s, {counts.requests_received:,} in all, {counts.errors_sent:,} refused"
        return Text(text, "bold", no_wrap=True, overflow="ellipsis")
