"""``receive``: a receiver of payments (STREAM), with an SPSP endpoint on this machine."""

from __future__ import annotations

import secrets
from contextlib import suppress
from shlex import quote
from typing import TYPE_CHECKING

import click
import trio
from attrs import define

from ..services import PluginServices
from ..stream import ReceivedPacket, SpspEndpoint, open_receiver
from .dialing import open_client
from .errors import COMMON, Exit
from .output import open_live_output
from .parameters import Command, Seconds, address_of, epilog, insecure_option
from .pay import lacking, plugin_options, server_option, shown_amount, shown_packets
from .serving import client_url, introduce, reporting_bind_errors, write_events
from .signals import open_ending, run_until_sigterm

if TYPE_CHECKING:
    from ..options.base import PluginOptions
    from ..stream import Receiver
    from .output import LiveOutput

__all__ = ["receive"]

HOST = "127.0.0.1"
REPORT_SECONDS = 0.5

EXAMPLES = """
  trio-ledger-plugin serve --accounts                           (in another terminal) a server that forwards packets
  trio-ledger-plugin receive --server btp+ws://:TOKEN@localhost:7768
  trio-ledger-plugin pay http://127.0.0.1:8080/ --send 1000 --server btp+ws://:OTHER@localhost:7768
"""


@click.command(
    cls=Command,
    epilog=epilog(EXAMPLES, *COMMON, Exit.UNREACHABLE, Exit.REFUSED),
    short_help="Receive payments, and show them.",
)
@click.option(
    "--port",
    type=click.IntRange(0, 65535),
    default=8080,
    show_default=True,
    help="The endpoint's port; 0: any free one.",
)
@server_option
@click.option("--timeout", type=Seconds(), default=10.0, show_default=True, help="Seconds for connecting.")
@insecure_option
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object a line and nothing else.")
def receive(port: int, server: str | None, timeout: float, allow_insecure: bool, as_json: bool) -> int:
    """Receive payments over a BTP server, and show what arrives.

    The server is asked for the address and the asset (ILDCP). An SPSP endpoint on this machine gives out credentials;
    each payment has its own, and they work until this command ends. Ctrl-C or SIGTERM ends it, with exit code 0.
    """
    options = plugin_options(server, timeout, allow_insecure=allow_insecure)
    payers_server = "" if server is None else _payers_server(options)
    run_until_sigterm(_receive, options, timeout, lacking(server), port, as_json, payers_server)
    return Exit.OK


@define
class _Totals:
    """What has arrived."""

    amount: int = 0
    packets: int = 0

    def add(self, packet: ReceivedPacket) -> None:
        """Count a packet."""
        self.amount += packet.amount
        self.packets += 1


async def _receive(
    options: PluginOptions, seconds: float, lacks: str, port: int, as_json: bool, payers_server: str
) -> None:
    totals = _Totals()
    async with (
        open_ending() as ending,
        # It connects first: a warning that waited would come after its own repetitions.
        open_live_output(as_json=as_json, holds_warnings=False) as output,
        open_client(options, seconds, PluginServices(log=output.warnings), lacking=lacks) as plugin,
        open_receiver(plugin, secret=secrets.token_bytes(32), on_packet=totals.add) as receiver,
    ):
        with reporting_bind_errors():
            (listener,) = await trio.open_tcp_listeners(port, host=HOST)
        url = f"http://{HOST}:{listener.socket.getsockname()[1]}/"
        asset = "" if receiver.asset is None else f" in {receiver.asset.code}, scale {receiver.asset.scale}"
        lines = (
            f"receiving at {receiver.address}{asset}",
            f"the SPSP endpoint: {url}",
            f"try it: trio-ledger-plugin pay {url} --send 1000{payers_server} (Ctrl-C ends the receiver)",
        )
        introduce(output, lines, address=receiver.address, url=url)
        # The lines above say that it is connected.
        with suppress(trio.WouldBlock):
            plugin.events.receive_nowait()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(trio.serve_listeners, SpspEndpoint(receiver).serve_stream, [listener])
            nursery.start_soon(_report, output, receiver, totals)
            nursery.start_soon(write_events, output, plugin)
            await ending.wait()
            nursery.cancel_scope.cancel()
            text = f"closed; received {totals.amount:,} in {shown_packets(totals.packets)}"
            output.write("closed", text, amount=totals.amount, packets=totals.packets)


def _payers_server(options: PluginOptions) -> str:
    """Return the option of ``pay`` for another account of the same server.

    A server whose accounts are named by tokens takes the one in it.
    """
    return f" --server {quote(client_url(address_of(options), ':another-token'))}"


async def _report(output: LiveOutput, receiver: Receiver, totals: _Totals) -> None:
    """Write what has arrived, at most twice a second."""
    amount, packets = totals.amount, totals.packets
    while True:
        await trio.sleep(REPORT_SECONDS)
        if totals.packets != packets:
            new = totals.amount - amount
            text = f"received {shown_amount(new, receiver.asset)} in {shown_packets(totals.packets - packets)}"
            output.write("received", text, "green", amount=new, packets=totals.packets - packets, total=totals.amount)
            amount, packets = totals.amount, totals.packets
