"""``serve --accounts``: a server for many clients, which forwards ILP packets between them."""

from __future__ import annotations

import signal
from functools import partial
from typing import TYPE_CHECKING

import trio
from rich.live import Live

from ..btp.accounts import AccountsPlugin
from ..codec import ilp
from ..errors import DecodeError, LedgerPluginError
from ..events import AccountConnected, AccountDisconnected, EventsDropped
from ..opening import create_plugin
from ..services import PluginServices
from ..transfer import current_transfer
from .accounts_table import Meter, accounts_table
from .output import Screen
from .replies import REPLIES
from .report import Report
from .serving import REFRESH_SECONDS, client_url, not_listening, open_store, tell_closed

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from ..btp.options import AccountsOptions
    from .account_choices import AccountChoices

__all__ = ["route", "serve_accounts"]

# What the table needs besides its rows: the heading, the totals, and a line for the cursor.
OTHER_LINES = 3


async def route(plugin: AccountsPlugin, address: str, reply: Callable[[bytes], Awaitable[bytes]], data: bytes) -> bytes:
    """Answer a client's request: forward what is for another account, and reply to what is for the server itself.

    Args:
        plugin: The server.
        address: Its ILP address.
        reply: Answers what is for the server: a Prepare to its address or between two peers, and what is no Prepare.
        data: The request.
    """
    try:
        packet = ilp.decode(data)
    except DecodeError:
        return await reply(data)
    if not isinstance(packet, ilp.Prepare) or packet.destination == address or packet.destination.startswith("peer."):
        return await reply(data)
    try:
        return await plugin.send_data(data)
    except LedgerPluginError as error:
        return ilp.encode(ilp.reject_from(error, address))


async def serve_accounts(options: AccountsOptions, choices: AccountChoices, reply: str, path: str | None) -> None:
    """Serve until SIGINT or SIGTERM comes; a path is that of the store.

    Raises:
        click.ClickException: The server cannot listen at its address.
    """
    screen = Screen()
    report = Report(screen, as_json=choices.as_json)

    async def take_money(amount: str) -> None:
        account = current_transfer().account
        report.tell("money", f"received money from {account}: {amount}", "green", account=account, amount=amount)

    with trio.open_signal_receiver(signal.SIGINT, signal.SIGTERM) as signals:
        async with open_store(path) as store, trio.open_nursery() as nursery:
            services = PluginServices(store=store or choices.forgetful_store, log=report.log)
            plugin = create_plugin(options, services, nursery=nursery)
            assert isinstance(plugin, AccountsPlugin)
            own_reply = partial(REPLIES[reply], address=choices.address)
            plugin.register_data_handler(partial(route, plugin, choices.address, own_reply))
            plugin.register_money_handler(take_money)
            try:
                await plugin.connect()
            except OSError as error:
                raise not_listening(error) from error
            _introduce(screen, report, plugin, choices, reply)
            if screen.is_terminal and not choices.as_json:
                nursery.start_soon(_show_table, screen, plugin)
            else:
                nursery.start_soon(_tell_events, report, plugin)
                nursery.start_soon(_tell_totals, report, plugin, choices.totals)
            await anext(signals)
            await plugin.aclose()
            nursery.cancel_scope.cancel()
    tell_closed(report, plugin)


def _introduce(screen: Screen, report: Report, plugin: AccountsPlugin, choices: AccountChoices, reply: str) -> None:
    url = client_url(plugin.address, ":TOKEN" if choices.names == "token" else "NAME:TOKEN")
    if choices.as_json:
        asset = {"asset_scale": choices.asset_scale, "asset_code": choices.asset_code}
        report.tell("listening", "", address=plugin.address, ilp_address=choices.address, **asset)
        return
    screen.line(
        f"listening on {plugin.address}, for accounts below {choices.address}, {choices.asset_code} with scale "
        f"{choices.asset_scale}; answering what is for the server with: {reply}"
    )
    screen.line(f"a client's URL: {url}, with a token that it makes up")
    screen.line("try it: trio-ledger-plugin ildcp URL (Ctrl-C ends the server)")


async def _tell_events(report: Report, plugin: AccountsPlugin) -> None:
    async for event in plugin.events:
        match event:
            case AccountConnected(name):
                report.tell("account_connected", f"{name} connected", account=name)
            case AccountDisconnected(name):
                report.tell("account_disconnected", f"{name} disconnected", account=name)
            case EventsDropped(count):
                report.tell("events_dropped", f"{count} events were lost", count=count)


async def _tell_totals(report: Report, plugin: AccountsPlugin, seconds: float) -> None:
    """Write a line of totals now and then, while they change."""
    meter = Meter(plugin)
    told: tuple[int, ...] = (0,) * 6
    while True:
        await trio.sleep(seconds)
        view = meter.look()
        totals = view.totals
        values = {
            "accounts": len(view.accounts),
            "connections": view.connections,
            "requests_received": totals.requests_received,
            "requests_sent": totals.requests_sent,
            "responses_sent": totals.responses_sent,
            "errors_sent": totals.errors_sent,
        }
        # Not of bytes: heartbeats alone change those.
        if told == (told := tuple(values.values())):
            continue
        text = (
            f"accounts: {values['accounts']:,}, connections: {values['connections']:,}, {view.rate:,.0f} requests/s; "
            f"in all {totals.requests_received:,} in, {totals.requests_sent:,} out, {totals.errors_sent:,} refused"
        )
        traffic = {"bytes_received": totals.bytes_received, "bytes_sent": totals.bytes_sent}
        report.tell("totals", text, **values, **traffic, requests_per_second=round(view.rate, 1))


async def _show_table(screen: Screen, plugin: AccountsPlugin) -> None:
    """Keep a table up to date at the bottom of the terminal."""
    meter = Meter(plugin)
    # Rich would refresh from a thread of its own.
    with Live(console=screen.console, auto_refresh=False, transient=True) as live:
        while True:
            width, height = screen.console.size
            table = accounts_table(meter.look(), max(1, height - OTHER_LINES), width)
            live.update(table, refresh=True)
            await trio.sleep(REFRESH_SECONDS)
