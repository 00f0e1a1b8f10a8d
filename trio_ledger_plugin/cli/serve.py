"""``serve``: a server for one client, which shows what the client does; with ``--accounts``, for many."""

from __future__ import annotations

import secrets
import signal
from typing import TYPE_CHECKING, Any

import click
import trio
from attrs import fields
from click.core import ParameterSource
from rich.live import Live
from rich.text import Text

from ..btp.options import BtpOptions, ListenerOptions
from ..btp.plugin import BtpPlugin
from ..errors import InvalidFieldsError
from ..events import Connected, Disconnected, EventsDropped, Failed
from ..opening import open_plugin
from ..services import PluginServices
from .account_choices import AccountChoices, accounts_choices, make_accounts_options
from .errors import COMMON, Exit, describe_problems
from .output import Screen, said
from .parameters import SECRET_VARIABLE, Command, epilog
from .replies import REPLIES
from .report import Report
from .serve_accounts import serve_accounts
from .serving import CLOSE_SECONDS, REFRESH_SECONDS, client_url, not_listening, open_store, tell_closed, tls_context
from .signals import run_until_sigterm

if TYPE_CHECKING:
    from ..plugin import LedgerPlugin

__all__ = ["serve"]

DEFAULT_PORT = 7768

EXAMPLES = """
  trio-ledger-plugin serve
  trio-ledger-plugin serve --port 0 --reply fulfill --json
  TRIO_LEDGER_PLUGIN_SECRET=... trio-ledger-plugin serve --host 0.0.0.0 --tls-cert cert.pem --tls-key key.pem
  trio-ledger-plugin serve --accounts
  trio-ledger-plugin serve --accounts --names username --store accounts.db --address test.me --allow-origin https://wallet.example
"""


@click.command(
    cls=Command,
    epilog=epilog(EXAMPLES, *COMMON),
    short_help="A server for one client or for many, which shows what they do.",
)
@click.option("--host", default="127.0.0.1", show_default=True, help="The address to listen on.")
@click.option(
    "--port", type=click.IntRange(0, 65535), default=DEFAULT_PORT, show_default=True, help="The port; 0: any free one."
)
@click.option("--secret", envvar=SECRET_VARIABLE, show_envvar=True, help="The client's token; random when not given.")
@click.option("--tls-cert", type=click.Path(exists=True, dir_okay=False), help="Serve TLS with this certificate (PEM).")
@click.option("--tls-key", type=click.Path(exists=True, dir_okay=False), help="Its key, unless in the same file (PEM).")
@click.option(
    "--reply",
    type=click.Choice(list(REPLIES)),
    default="echo",
    show_default=True,
    help="How requests are answered: with their own bytes; a Prepare with its Fulfill, if its condition is the SHA-256 "
    "digest of the SHA-256 digest of its data; or all with a Reject.",
)
@click.option(
    "--store",
    type=click.Path(dir_okay=False),
    help="A file that remembers transfers, and with --accounts usernames; made when it is missing. Without one nothing "
    "outlives the server, and no transfer has a key: an answer that is lost leaves it in doubt (PLAIN).",
)
@click.option("--json", "as_json", is_flag=True, help="Print a JSON object a line and nothing else.")
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
    reply: str,
    store: str | None,
    as_json: bool,
    accounts: bool,
    **choices: Any,  # noqa: ANN401 (click gives what AccountChoices takes)
) -> int:
    """Listen for one BTP client, answer its requests, take its money, and show what it does.

    A new client with the right token takes the place of the one before. Without --secret a random token is made, and
    shown once, in the URL for the client. On a terminal the last line shows the rates. Ctrl-C or SIGTERM ends the
    server within a second; the exit code is 0 then.

    With --accounts every client has an account of its own, below the server's ILP address, and needs no more than a
    token that it makes up. A Prepare to another account is forwarded there as it is, and no balances are kept. What
    is for the server itself, and a Prepare to peer.ping, is answered as --reply says. On a terminal a table shows
    the accounts; its last line counts those that are gone as well. The options from --accounts on are for this alone.
    """
    _check_choices(context, accounts=accounts)
    ssl_context = tls_context(tls_cert, tls_key)
    if accounts:
        chosen = AccountChoices(as_json=as_json, **choices)
        run_until_sigterm(serve_accounts, make_accounts_options(chosen, host, port, ssl_context), chosen, reply, store)
        return Exit.OK
    shown = "***"
    if secret == "":
        raise click.UsageError("--secret is empty; leave it out to have a random one")
    if secret is None:
        secret = shown = secrets.token_hex(16)
    try:
        listener = ListenerOptions(port=port, secret=secret, host=host, ssl_context=ssl_context)
    except InvalidFieldsError as error:
        subjects = {"secret": "--secret:", "host": "--host:"}
        raise click.UsageError(describe_problems(error, subjects)) from error
    options = BtpOptions(listener=listener, close_timeout=CLOSE_SECONDS)
    try:
        run_until_sigterm(_serve, options, reply, shown, store, as_json)
    except BrokenPipeError:
        raise
    except OSError as error:
        raise not_listening(error) from error
    return Exit.OK


def _check_choices(context: click.Context, *, accounts: bool) -> None:
    """Refuse options of the other kind of server; an environment variable is no choice.

    Raises:
        click.UsageError: One was given.
    """
    needless = {"secret"} if accounts else {field.name for field in fields(AccountChoices)} - {"as_json"}
    for param in context.command.params:
        if param.name in needless and context.get_parameter_source(param.name) is ParameterSource.COMMANDLINE:
            why = (
                "is for one client; with --accounts each brings a token of its own" if accounts else "needs --accounts"
            )
            raise click.UsageError(f"{param.opts[0]} {why}")


async def _serve(options: BtpOptions, reply: str, token: str, path: str | None, as_json: bool) -> None:
    screen = Screen()
    report = Report(screen, as_json=as_json)

    async def take_money(amount: str) -> None:
        report.tell("money", f"received money: {amount}", "green", amount=amount)

    with trio.open_signal_receiver(signal.SIGINT, signal.SIGTERM) as signals:
        async with (
            open_store(path) as store,
            open_plugin(
                options,
                PluginServices(store=store, log=report.log),
                data_handler=REPLIES[reply],
                money_handler=take_money,
            ) as plugin,
        ):
            assert isinstance(plugin, BtpPlugin)
            url = client_url(plugin.address, f":{token}")
            if as_json:
                report.tell("listening", "", address=plugin.address, url=url)
            else:
                _introduce(screen, plugin.address, reply, url)
            async with trio.open_nursery() as nursery:
                nursery.start_soon(_tell_events, report, plugin)
                if screen.is_terminal and not as_json:
                    nursery.start_soon(_show_rates, screen, plugin)
                await anext(signals)
                nursery.cancel_scope.cancel()
    tell_closed(report, plugin)


def _introduce(screen: Screen, address: str, reply: str, url: str) -> None:
    screen.line(f"listening on {address}, answering with: {reply}")
    screen.line(f"the client's URL: {url}")
    screen.line("try it: trio-ledger-plugin ping URL (Ctrl-C ends the server)")


async def _tell_events(report: Report, plugin: LedgerPlugin) -> None:
    async for event in plugin.events:
        match event:
            case Connected():
                report.tell("connected", said(event), "cyan")
            case Disconnected(reason):
                report.tell("disconnected", said(event), "cyan", reason=reason)
            case Failed(error):
                report.tell("failed", said(event), "red", error=str(error))
            case EventsDropped(count):
                report.tell("events_dropped", said(event), "cyan", count=count)


async def _show_rates(screen: Screen, plugin: LedgerPlugin) -> None:
    """Keep a line up to date at the bottom of the terminal."""
    # Rich would refresh from a thread of its own.
    with Live(console=screen.console, auto_refresh=False, transient=True) as live:
        before, then = plugin.statistics().requests_received, trio.current_time()
        while True:
            await trio.sleep(REFRESH_SECONDS)
            counts, now = plugin.statistics(), trio.current_time()
            rate = (counts.requests_received - before) / (now - then)
            before, then = counts.requests_received, now
            state = "connected" if plugin.is_connected() else "waiting for a client"
            text = (
                f"{state}, {rate:,.0f} requests/s, {counts.requests_received:,} in all, {counts.errors_sent:,} refused"
            )
            live.update(Text(text, "bold", no_wrap=True, overflow="ellipsis"), refresh=True)
