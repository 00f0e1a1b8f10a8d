"""What users would lose: payments between our ends and JavaScript wallets, both ways and over every kind of network."""

from __future__ import annotations

from contextlib import asynccontextmanager
from fractions import Fraction
from typing import TYPE_CHECKING, Any

import pytest
from attrs import field, frozen

from trio_ledger_plugin import open_plugin
from trio_ledger_plugin.codec import ildcp, ilp
from trio_ledger_plugin.stream import (
    Asset,
    Credentials,
    PaymentFailedError,
    ReceivedPacket,
    Receiver,
    open_receiver,
    pay,
    quote,
    verify_receipt,
)

from .network import HOST
from .node import NodeProcess, open_node
from .payments import MAX_PACKET, over_btp, over_connector, over_http
from .stream import PaymentsPeer, StreamPeer

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from trio_ledger_plugin import LedgerPlugin

pytestmark = pytest.mark.interop

SECRET = bytes(range(32))
AMOUNT = 1_000_000
XRP = Asset("XRP", 9)


@frozen
class Payee:
    """A receiver of JavaScript: the process, and what it needs to know."""

    kind: type[NodeProcess]
    options: dict[str, str] = field(factory=dict)


PAYEES = {
    "ilp-protocol-stream": Payee(StreamPeer),
    "stream-receiver 0.3": Payee(PaymentsPeer),
    "stream-receiver 0.2": Payee(PaymentsPeer, {"receiver": "stream-receiver-0.2"}),
}
PAYERS = {"ilp-protocol-stream": StreamPeer, "pay": PaymentsPeer}
FROM_OURS = pytest.mark.parametrize("payee", list(PAYEES.values()), ids=list(PAYEES))
TO_OURS = pytest.mark.parametrize("peer", list(PAYERS.values()), ids=list(PAYERS))
NETWORKS = pytest.mark.parametrize(
    ("network", "rate"),
    [
        pytest.param(network, Fraction(rate), marks=[] if (name, rate) == ("btp-accounts", "1") else pytest.mark.slow)
        for name, network, rates in (
            ("btp-accounts", over_btp, ("1", "37/100", "5/2")),
            ("http-accounts", over_http, ("1", "37/100", "5/2")),
            ("ilp-connector", over_connector, ("1", "1/10", "10")),
        )
        for rate in rates
    ],
)
AMOUNTS = (1, 1_000, AMOUNT)


@asynccontextmanager
async def direct() -> AsyncIterator[tuple[LedgerPlugin, Receiver, list[ReceivedPacket], str]]:
    """Listen with the plugin btp, and answer a client's question for its address; yield a receiver as well."""
    accepted: list[ReceivedPacket] = []
    receiver = Receiver(secret=SECRET, address=f"{HOST}.ours", asset=XRP, on_packet=accepted.append)

    async def answer(data: bytes) -> bytes:
        prepare = ilp.decode(data)
        if isinstance(prepare, ilp.Prepare) and prepare.destination == ildcp.DESTINATION:
            return ildcp.encode(ildcp.IldcpResponse(f"{HOST}.child", 9, "XRP"))
        return await receiver.handle(data)

    opts = {"plugin": "btp", "listener": {"port": 0, "secret": "token"}}
    async with open_plugin(opts, data_handler=answer) as plugin:
        yield plugin, receiver, accepted, plugin.address.replace("://", "://:token@")


def credentials_of(invoice: dict[str, str]) -> Credentials:
    return Credentials(invoice["destination"], bytes.fromhex(invoice["secret"]))


@FROM_OURS
@NETWORKS
async def test_we_pay_through_a_connector(network: Any, rate: Fraction, payee: Payee) -> None:
    async with (
        network(rate) as connected,
        open_node(payee.kind) as process,
        connected.payer("payer").open() as plugin,
    ):
        await process.do("receive", **connected.payee().options, **payee.options)
        for amount in AMOUNTS:
            credentials = credentials_of(await process.do("invoice"))
            if amount * rate < 1:
                with pytest.raises(PaymentFailedError, match="rounded down to 0"):
                    await pay(plugin, credentials, send=amount)
                continue
            quoted = await quote(plugin, credentials, send=amount)
            assert quoted.rate <= rate
            paid = await pay(plugin, credentials, send=amount)
            received = [int(part) for part in (await process.do("received"))["amounts"]]
            assert paid.sent == amount
            assert paid.delivered == sum(received)
            assert amount * rate - len(received) < paid.delivered <= amount * rate
            assert max(received) <= MAX_PACKET * rate


@FROM_OURS
async def test_we_pay_over_btp(payee: Payee) -> None:
    async with direct() as (plugin, _, _, url), open_node(payee.kind) as process:
        credentials = credentials_of(await process.do("receive", url=url, **payee.options))
        paid = await pay(plugin, credentials, deliver=AMOUNT, max_packet=10_000)
        received = [int(amount) for amount in (await process.do("received"))["amounts"]]
    assert paid.delivered == sum(received) == AMOUNT
    assert paid.asset == XRP


async def test_we_get_receipts() -> None:
    async with direct() as (plugin, _, _, url), open_node(PaymentsPeer) as payee:
        credentials = credentials_of(await payee.do("receive", url=url, receipts=True))
        paid = await pay(plugin, credentials, send=AMOUNT, max_packet=100_000)
    receipt = verify_receipt(paid.receipt, bytes([2]) * 32)
    assert (receipt.nonce, receipt.total_received) == (bytes([1]) * 16, AMOUNT)


@TO_OURS
@NETWORKS
async def test_we_are_paid_through_a_connector(network: Any, rate: Fraction, peer: type[NodeProcess]) -> None:
    accepted: list[ReceivedPacket] = []
    async with (
        network(rate) as connected,
        connected.payee().open() as plugin,
        open_receiver(plugin, secret=SECRET, on_packet=accepted.append) as receiver,
        open_node(peer) as process,
    ):
        for amount in AMOUNTS:
            if amount * rate < 1:
                continue
            accepted.clear()
            credentials = receiver.new_credentials(tag=f"invoice {amount}")
            where = {"destination": credentials.destination_account, "secret": credentials.shared_secret.hex()}
            # The JavaScript packages take the rate from an oracle, which knows nothing of this network's.
            more = {"slippage": 0.9} if rate < 1 else {}
            paid = await process.do("pay", **connected.payer(f"payer{amount}").options, amount=amount, **where, **more)
            assert int(paid["sent"]) == amount
            assert int(paid["delivered"]) == sum(packet.amount for packet in accepted)
            assert amount * rate - len(accepted) < int(paid["delivered"]) <= amount * rate
            assert {packet.tag for packet in accepted} == {f"invoice {amount}"}


@TO_OURS
async def test_we_are_paid_over_btp(peer: type[NodeProcess]) -> None:
    async with direct() as (_, receiver, accepted, url), open_node(peer) as payer:
        credentials = receiver.new_credentials()
        where = {"destination": credentials.destination_account, "secret": credentials.shared_secret.hex()}
        paid = await payer.do("pay", url=url, amount=AMOUNT, **where)
    assert int(paid["sent"]) == int(paid["delivered"]) == sum(packet.amount for packet in accepted) == AMOUNT
