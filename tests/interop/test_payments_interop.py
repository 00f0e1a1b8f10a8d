"""What users would lose: payments between our ends and JavaScript wallets, both ways, over btp and btp-accounts."""

from __future__ import annotations

from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

import pytest
import trio

from trio_ledger_plugin import open_plugin
from trio_ledger_plugin.codec import ildcp, ilp
from trio_ledger_plugin.stream import (
    Asset,
    Credentials,
    ReceivedPacket,
    Receiver,
    open_receiver,
    pay,
    quote,
    verify_receipt,
)

from .network import HOST, client, login, routing
from .node import NodeProcess, open_node
from .stream import StreamPeer

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from trio_ledger_plugin import LedgerPlugin

pytestmark = pytest.mark.interop

SECRET = bytes(range(32))
AMOUNT = 1_000_000
XRP = Asset("XRP", 9)


class PaymentsPeer(NodeProcess):
    """@interledger/stream-receiver and @interledger/pay over ilp-plugin-btp."""

    script = "payments_peer.js"
    preloads = ("rename_closed.js",)


PEERS = pytest.mark.parametrize("peer", [StreamPeer, PaymentsPeer], ids=["ilp-protocol-stream", "interledger"])


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


@PEERS
async def test_we_pay_over_accounts(peer: type[NodeProcess]) -> None:
    async with routing() as server, open_node(peer) as payee, open_plugin(client(server.address, "payer")) as payer:
        credentials = credentials_of(await payee.do("receive", url=login(server.address, "payee")))
        quoted = await quote(payer, credentials, send=AMOUNT)
        assert quoted.rate == 1
        paid = await pay(payer, credentials, send=AMOUNT, max_packet=10_000)
        received = [int(amount) for amount in (await payee.do("received"))["amounts"]]
    assert paid.sent == paid.delivered == sum(received) == AMOUNT
    assert len(received) == 100
    assert paid.asset == XRP


@PEERS
async def test_we_pay_over_btp(peer: type[NodeProcess]) -> None:
    async with direct() as (plugin, _, _, url), open_node(peer) as payee:
        credentials = credentials_of(await payee.do("receive", url=url))
        paid = await pay(plugin, credentials, deliver=AMOUNT, max_packet=10_000)
        received = [int(amount) for amount in (await payee.do("received"))["amounts"]]
    assert paid.delivered == sum(received) == AMOUNT


async def test_we_get_receipts() -> None:
    async with direct() as (plugin, _, _, url), open_node(PaymentsPeer) as payee:
        credentials = credentials_of(await payee.do("receive", url=url, receipts=True))
        paid = await pay(plugin, credentials, send=AMOUNT, max_packet=100_000)
    receipt = verify_receipt(paid.receipt, bytes([2]) * 32)
    assert (receipt.nonce, receipt.total_received) == (bytes([1]) * 16, AMOUNT)


@PEERS
async def test_we_are_paid_over_accounts(peer: type[NodeProcess]) -> None:
    accepted: list[ReceivedPacket] = []
    async with (
        routing() as server,
        open_plugin(client(server.address, "payee")) as payee,
        open_receiver(payee, secret=SECRET, on_packet=accepted.append) as receiver,
        open_node(peer) as payer,
    ):
        assert receiver.address == f"{HOST}.payee"
        credentials = receiver.new_credentials(tag="invoice 17")
        where = {"destination": credentials.destination_account, "secret": credentials.shared_secret.hex()}
        with trio.fail_after(15):
            paid = await payer.do("pay", url=login(server.address, "payer"), amount=AMOUNT, **where)
    assert int(paid["sent"]) == int(paid["delivered"]) == sum(packet.amount for packet in accepted) == AMOUNT
    assert {packet.tag for packet in accepted} == {"invoice 17"}


@PEERS
async def test_we_are_paid_over_btp(peer: type[NodeProcess]) -> None:
    async with direct() as (_, receiver, accepted, url), open_node(peer) as payer:
        credentials = receiver.new_credentials()
        where = {"destination": credentials.destination_account, "secret": credentials.shared_secret.hex()}
        paid = await payer.do("pay", url=url, amount=AMOUNT, **where)
    assert int(paid["sent"]) == int(paid["delivered"]) == sum(packet.amount for packet in accepted) == AMOUNT
