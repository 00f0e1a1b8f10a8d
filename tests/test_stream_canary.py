"""The secrets of a payment are shown nowhere: whoever reads one can take the payment, or forge receipts."""

from __future__ import annotations

import logging
from typing import Any

import pytest
import trio
from support.collector import Collector

from trio_ledger_plugin import PluginServices, loopback_pair
from trio_ledger_plugin.stream import (
    Credentials,
    PaymentFailedError,
    ReceivedPacket,
    SpspEndpoint,
    fetch_spsp,
    open_receiver,
    pay,
    quote,
)

SECRET = b"the-canary-of-the-receiver-01234"
SHARED = b"the-canary-of-a-payment-01234567"
RECEIPT = b"the-canary-of-its-receipts-01234"


async def test_secrets_of_payments_are_shown_nowhere(autojump_clock: Any, caplog: Any, capfd: Any) -> None:
    caplog.set_level(logging.DEBUG)
    collector = Collector(SECRET, SHARED, RECEIPT, SECRET[1:], SHARED[1:], RECEIPT[1:])

    def decide(packet: ReceivedPacket) -> bool | None:
        collector.show(packet)
        if packet.tag == "broken" and packet.sequence < 8:
            raise RuntimeError("the books are closed")
        return False if packet.tag == "refused" else None

    services = PluginServices(log=collector)
    async with (
        loopback_pair(services) as (payer, end),
        open_receiver(end, secret=SECRET, address="example.end", on_packet=decide) as receiver,
    ):
        for tag in ("good", "broken", "refused"):
            credentials = receiver.new_credentials(tag, receipt_nonce=bytes(16), receipt_secret=RECEIPT)
            shown = Collector(SECRET, RECEIPT, credentials.shared_secret)
            shown.show(credentials, credentials.keys, await quote(payer, credentials, send=1000))
            with trio.move_on_after(60):
                try:
                    shown.show(await pay(payer, credentials, send=1000, max_packet=100, on_progress=shown.show))
                except PaymentFailedError as error:
                    shown.show(error)
            shown.show(*receiver._connections.values(), receiver._addresses, vars(receiver._addresses))
            shown.show(receiver, vars(receiver), SpspEndpoint(receiver), *collector.seen)
            shown.check(caplog, capfd)
        stranger = Credentials("example.end.nobody", SHARED)
        collector.show(stranger)
        await collector.fail(pay, payer, stranger, send=1)
        await collector.fail(pay, payer, Credentials, send=1)
        for bad in (SHARED[1:], SHARED.decode(), None):
            await collector.fail(make_credentials, bad)
        await collector.fail(fetch_spsp, "$wallet.example", receipt_nonce=bytes(16), receipt_secret=RECEIPT[1:])
        await collector.fail(open_short, end)
    collector.check(caplog, capfd)


async def make_credentials(secret: Any) -> None:
    Credentials("example.end.x", secret)


async def open_short(plugin: Any) -> None:
    async with open_receiver(plugin, secret=SECRET[1:], address="example.end"):
        pytest.fail("a short secret is accepted")
