"""``serve --accounts``: a server for many clients, which forwards ILP packets between them."""

from __future__ import annotations

from contextlib import AsyncExitStack
from functools import partial
from typing import TYPE_CHECKING, TypeVar

import click
import trio
from attrs import evolve, frozen

from ..accounts.info import HostInfo
from ..accounts.server import AccountsServer
from ..btp.options import AccountsOptions
from ..errors import InvalidFieldsError
from ..events import AccountConnected, AccountDisconnected, EventsDropped, TransfersInDoubt
from ..http.options import HttpAccountsOptions, IncomingOptions, OutgoingOptions
from ..ilp.routing import route
from ..opening import create_plugin
from ..services import PluginServices
from ..stores import MemoryStore
from ..transfer import current_transfer
from .accounts_table import Meter, View, accounts_table, busiest
from .administration import AdminChoice, open_chosen_admin, page_line
from .errors import describe_problems
from .money_meter import MoneyMeter
from .output import open_live_output
from .parameters import Seconds, split_credentials
from .replies import ADDRESS, REPLIES
from .serving import (
    CLOSE_SECONDS,
    REFRESH_SECONDS,
    SUBJECTS,
    Where,
    client_url,
    introduce,
    money_values,
    open_store,
    placeholder_note,
    reporting_bind_errors,
    show_live,
    try_it,
    write_closed,
    write_events,
)
from .signals import open_ending

if TYPE_CHECKING:
    from collections.abc import Callable

    from rich.console import RenderableType

    from ..services import Store
    from .output import LiveOutput, Screen
    from .stores import StoreChoice

__all__ = [
    "AccountChoices",
    "accounts_choices",
    "make_accounts_options",
    "make_http_accounts_options",
    "serve_accounts",
]

_Decorated = TypeVar("_Decorated", bound="Callable[..., object]")

# The table's lines besides its rows: the heading, the totals, and one for the cursor.
OTHER_LINES = 3
# Connected and Disconnected only say that the server listens.
EVENTS = (AccountConnected, AccountDisconnected, EventsDropped, TransfersInDoubt)


def _checked_origins(_: click.Context, __: click.Parameter, origins: tuple[str, ...]) -> tuple[str, ...]:
    try:
        AccountsOptions(allowed_origins=origins)
    except InvalidFieldsError as error:
        raise click.BadParameter("it is an origin such as https://wallet.example, or a regular expression") from error
    return origins


CHOICES = (
    click.option("--accounts", is_flag=True, help="Serve many clients, and forward packets between their accounts."),
    click.option(
        "--address", default=ADDRESS, show_default=True, help="The server's ILP address; accounts are below it."
    ),
    click.option(
        "--asset-scale", type=click.IntRange(0, 255), default=9, show_default=True, help="The accounts' scale."
    ),
    click.option("--asset-code", default="XRP", show_default=True, help="The accounts' asset."),
    click.option(
        "--account-mode",
        "--names",
        "account_mode",
        type=click.Choice(["token", "username"]),
        default="token",
        show_default=True,
        help="How accounts are named. token: by the hash of the client's token. username: by the username in the "
        "client's URL, which belongs to the first token used with it, until the server ends unless there is a --store.",
    ),
    click.option(
        "--allow-origin",
        multiple=True,
        callback=_checked_origins,
        help="The origin of a web page that may connect, or a regular expression; may be repeated.",
    ),
    click.option(
        "--client-url",
        help="Where clients listen, with --http: a URL with % for the account's name and a token, such as "
        "https://:TOKEN@clients.example/%. Without it packets to other accounts are rejected.",
    ),
    click.option(
        "--report-interval",
        "--totals",
        "report_interval",
        type=Seconds(),
        default=10.0,
        show_default=True,
        help="Seconds between lines of totals, when stdout is not a terminal.",
    ),
)


@frozen(kw_only=True)
class AccountChoices:
    """The values of the options above, except ``--accounts`` itself."""

    address: str
    asset_scale: int
    asset_code: str
    account_mode: str
    allow_origin: tuple[str, ...]
    client_url: str | None
    report_interval: float

    @property
    def forgetful_store(self) -> Store | None:
        """A store that keeps the tokens of usernames until the server ends; None if accounts are named by tokens."""
        return MemoryStore() if self.account_mode == "username" else None


def accounts_choices(command: _Decorated) -> _Decorated:
    """Give a command the options above."""
    for option in reversed(CHOICES):
        command = option(command)
    return command


def make_accounts_options(choices: AccountChoices, where: Where) -> AccountsOptions:
    """Return the server's options.

    Raises:
        click.UsageError: One is wrong. The text names the command line's options.
    """
    try:
        info = HostInfo(client_address=choices.address, asset_scale=choices.asset_scale, asset_code=choices.asset_code)
        return AccountsOptions(
            port=where.port,
            host=where.host,
            ssl_context=where.ssl_context,
            trusted_proxies=where.trusted_proxies,
            proxy_protocol=where.proxy_protocol,
            allowed_origins=choices.allow_origin,
            generate_account=choices.account_mode == "token",
            debug_host_ildcp_info=info,
            close_timeout=CLOSE_SECONDS,
        )
    except InvalidFieldsError as error:
        raise click.UsageError(describe_problems(error, SUBJECTS)) from error


def make_http_accounts_options(choices: AccountChoices, where: Where) -> HttpAccountsOptions:
    """Return the options of a server over HTTP.

    Raises:
        click.UsageError: One is wrong. The text names the command line's options.
    """
    if choices.allow_origin:
        raise click.UsageError("--allow-origin is for browsers, which cannot be clients over HTTP")
    outgoing = None
    try:
        if choices.client_url is not None:
            name, token, url = split_credentials(choices.client_url)
            outgoing = OutgoingOptions(url=url, static_token=token, name=name or None)
        info = HostInfo(client_address=choices.address, asset_scale=choices.asset_scale, asset_code=choices.asset_code)
        return HttpAccountsOptions(
            incoming=IncomingOptions(port=where.port, host=where.host, ssl_context=where.ssl_context),
            outgoing=outgoing,
            generate_account=choices.account_mode == "token",
            ildcp=info,
            trusted_proxies=where.trusted_proxies,
            close_timeout=CLOSE_SECONDS,
        )
    except InvalidFieldsError as error:
        subjects = {
            "url": "--client-url:",
            "outgoing.url": "--client-url:",
            "outgoing.allow_insecure": "--client-url:",
            "static_token": "--client-url's token:",
        }
        raise click.UsageError(describe_problems(error, SUBJECTS | subjects)) from error


async def serve_accounts(
    options: AccountsOptions | HttpAccountsOptions,
    choices: AccountChoices,
    reply: str,
    store_choice: StoreChoice | None,
    admin: AdminChoice | None,
    as_json: bool,
) -> None:
    """Serve until SIGINT or SIGTERM arrives.

    Args:
        options: The server's options.
        choices: The options of the command line.
        reply: How the server answers requests to itself, a key of ``REPLIES``.
        store_choice: The store, if there is one.
        admin: The admin page, if there is one.
        as_json: Whether to write JSON.

    Raises:
        click.ClickException: The server cannot listen at its address.
    """

    async def take_money(amount: str) -> None:
        transfer = current_transfer()
        money.count(transfer)
        text = f"received money from {transfer.account}: {amount}"
        output.write("money", text, "green", account=transfer.account, **money_values(transfer))

    async with AsyncExitStack() as stack:
        ending = await stack.enter_async_context(open_ending())
        output = await stack.enter_async_context(open_live_output(as_json=as_json))
        async with open_store(store_choice) as store, trio.open_nursery() as nursery:
            services = PluginServices(store=store or choices.forgetful_store, log=output.log)
            plugin = create_plugin(options, services, nursery=nursery)
            assert isinstance(plugin, AccountsServer)
            own_reply = partial(REPLIES[reply], address=choices.address)
            money = MoneyMeter(plugin.transfers if plugin.money.keeps_journal else None)
            plugin.register_data_handler(
                partial(route, send=plugin.send_data, address=choices.address, reply=own_reply)
            )
            has_money = isinstance(options, AccountsOptions)
            if has_money:
                plugin.register_money_handler(take_money)
            with reporting_bind_errors():
                await plugin.connect()
            async with open_chosen_admin(admin, plugin) as page:
                _introduce(output, plugin, options, choices, reply, page)
                if output.has_live_lines:
                    nursery.start_soon(money.follow)
                    table = _LiveTable(output.screen, Meter(plugin), money if has_money else None)
                    nursery.start_soon(table.follow)
                    nursery.start_soon(show_live, output.screen, table.update)
                is_drawn = output.screen.in_foreground if output.has_live_lines else lambda: False
                nursery.start_soon(write_events, output, plugin, EVENTS, is_drawn)
                nursery.start_soon(_write_totals, output, Meter(plugin), choices.report_interval, is_drawn)
                await ending.wait()
            await plugin.aclose()
            nursery.cancel_scope.cancel()
        write_closed(output, plugin)


def _introduce(
    output: LiveOutput,
    plugin: AccountsServer,
    options: AccountsOptions | HttpAccountsOptions,
    choices: AccountChoices,
    reply: str,
    page: str,
) -> None:
    ssl_context = options.ssl_context if isinstance(options, AccountsOptions) else options.incoming.ssl_context
    named = choices.account_mode != "token"
    credentials, example = ("NAME:TOKEN", "alice:a-token") if named else (":TOKEN", ":a-token")
    url = client_url(plugin.address, credentials, ssl_context)
    where = (
        f"listening on {plugin.address}, for accounts below {choices.address}, {choices.asset_code} with scale "
        f"{choices.asset_scale}; answering requests to the server with: {reply}"
    )
    lines = (
        where,
        f"a client's URL: {url}, with a token that the client chooses",
        *page_line(page),
        try_it("ildcp", url.replace(credentials, example)),
        placeholder_note(url),
    )
    more: dict[str, object] = {"asset_scale": choices.asset_scale, "asset_code": choices.asset_code}
    if page:
        more["admin"] = page
    introduce(output, lines, address=plugin.address, ilp_address=choices.address, **more)


async def _write_totals(output: LiveOutput, meter: Meter, seconds: float, is_drawn: Callable[[], bool]) -> None:
    """Write a line of totals at intervals, if they have changed, except while the table is drawn."""
    written: tuple[int, ...] = (0,) * 6
    while True:
        await trio.sleep(seconds)
        if is_drawn():
            continue
        view = await meter.look()
        totals = view.totals
        values = {
            "accounts": len(view.accounts),
            "connections": view.connections,
            "requests_received": totals.requests_received,
            "requests_sent": totals.requests_sent,
            "responses_sent": totals.responses_sent,
            "errors_sent": totals.errors_sent,
        }
        # Without the bytes, which heartbeats change.
        if written == (written := tuple(values.values())):
            continue
        text = (
            f"accounts: {values['accounts']:,}, connections: {values['connections']:,}, {view.rate:,.0f} requests/s; "
            f"in all {totals.requests_received:,} in, {totals.requests_sent:,} out, {totals.errors_sent:,} refused"
        )
        traffic = {"bytes_received": totals.bytes_received, "bytes_sent": totals.bytes_sent}
        output.write("totals", text, **values, **traffic, requests_per_second=round(view.rate, 1))


class _LiveTable:
    """The table at the bottom of the terminal.

    Args:
        screen: The terminal.
        meter: Looks at the server.
        money: The money of the accounts; None if the server has none.
    """

    def __init__(self, screen: Screen, meter: Meter, money: MoneyMeter | None) -> None:
        self._screen = screen
        self._meter = meter
        self._money = money
        self._table: RenderableType = ""
        # The size of the terminal that it was made for.
        self._size: tuple[int, int] | None = None

    async def follow(self) -> None:
        """Keep the table up to date until cancelled."""
        await self._meter.follow(REFRESH_SECONDS, self._see)

    def _see(self, view: View) -> None:
        width, height = self._size = self._screen.console.size
        rows = max(1, height - OTHER_LINES)
        if self._money is not None:
            self._money.shown = tuple(account.name for account in busiest(view, rows))
            view = evolve(view, money=self._money.accounts, money_total=self._money.total)
        self._table = accounts_table(view, rows, width)

    def update(self) -> RenderableType:
        """Return the table."""
        if self._meter.view is not None and self._size != self._screen.console.size:
            self._see(self._meter.view)
        return self._table
