"""What users of an ILP network would lose: our plugins at every side of a real ilp-connector, the reference connector.

Its accounts below it are those of ilp-plugin-mini-accounts; the accounts beside and above it are ilp-plugin-btp's. It
runs on Node 20 as it is: its own ``memory`` store needs no native package. Two settings are not its defaults: the
backend ``one-to-one``, since the default fetches exchange rates from the web, and no spread, so that amounts are exact.
"""

from __future__ import annotations

from contextlib import AsyncExitStack
from datetime import timedelta

import pytest
from attrs import evolve

from trio_ledger_plugin import fetch_ildcp, open_plugin
from trio_ledger_plugin.codec import ildcp, ilp

from .connector import CONNECTOR, account_at, running
from .network import FULFILL, HOST, REJECT, TOKEN, Receiver, client, login, offer, routing, send
from .stream import pay

pytestmark = pytest.mark.interop

# The connector keeps this much of a packet's lifetime to itself: its setting minMessageWindow.
WINDOW = timedelta(seconds=1)


def forwarded(packet: ilp.Prepare) -> ilp.Prepare:
    """Return what the connector makes of a packet."""
    return evolve(packet, expires_at=packet.expires_at - WINDOW)


async def test_our_client_gets_an_address_below_the_connectors() -> None:
    async with running(ilpAddress=CONNECTOR) as url, open_plugin(client(url, "alice")) as alice:
        assert await fetch_ildcp(alice) == ildcp.IldcpResponse(f"{CONNECTOR}.children.alice", 9, "XRP")


@pytest.mark.parametrize("answer", [FULFILL, REJECT], ids=["fulfill", "reject"])
async def test_one_client_pays_another_through_the_connector(answer: ilp.Packet) -> None:
    bob = Receiver(answer)
    async with (
        running(ilpAddress=CONNECTOR) as url,
        open_plugin(client(url, "alice")) as alice,
        open_plugin(client(url, "bob"), data_handler=bob.handle),
    ):
        packet = offer(f"{CONNECTOR}.children.bob.order.7")
        assert await send(alice, packet) == answer
        assert bob.packets == [forwarded(packet)]


async def test_a_wrong_preimage_gets_no_money() -> None:
    bob = Receiver(ilp.Fulfill(bytes(32)))
    async with (
        running(ilpAddress=CONNECTOR) as url,
        open_plugin(client(url, "alice")) as alice,
        open_plugin(client(url, "bob"), data_handler=bob.handle),
    ):
        answer = await send(alice, offer(f"{CONNECTOR}.children.bob"))
        assert isinstance(answer, ilp.Reject)
        assert (answer.code, len(bob.packets)) == ("F05", 1)


async def test_the_connector_says_that_a_destination_is_unknown() -> None:
    async with running(ilpAddress=CONNECTOR) as url, open_plugin(client(url, "alice")) as alice:
        answer = await send(alice, offer("test.nowhere"))
        assert isinstance(answer, ilp.Reject)
        assert (answer.code, answer.triggered_by) == ("F02", CONNECTOR)


async def test_a_connector_that_dials_our_listener_is_paid_and_pays() -> None:
    """They are peers, and the account between them is in units a thousand times larger than the children's."""
    shop, alice = Receiver(), Receiver()
    listening = {"plugin": "btp", "listener": {"port": 0, "secret": TOKEN}}
    async with AsyncExitStack() as stack:
        listener = await stack.enter_async_context(open_plugin(listening, data_handler=shop.handle))
        # Its routing protocol is not spoken here: the route is a setting.
        peer = account_at(listener.address, "peer", assetScale=6, sendRoutes=False, receiveRoutes=False)
        routes = [{"targetPrefix": "test.shop", "peerId": "shop"}]
        url = await stack.enter_async_context(running(ilpAddress=CONNECTOR, accounts={"shop": peer}, routes=routes))
        customer = await stack.enter_async_context(open_plugin(client(url, "alice"), data_handler=alice.handle))
        packet = offer("test.shop.order.7")
        assert await send(customer, packet) == FULFILL
        assert shop.packets == [evolve(forwarded(packet), amount=packet.amount // 1000)]
        packet = offer(f"{CONNECTOR}.children.alice")
        assert await send(listener, packet) == FULFILL
        assert alice.packets == [evolve(forwarded(packet), amount=packet.amount * 1000)]


async def test_a_connector_below_our_server_serves_children_of_its_own() -> None:
    """Alice is the connector's child, and the connector our server's, as carol is; each pays the other."""
    to_alice, to_carol = Receiver(), Receiver()
    async with AsyncExitStack() as stack:
        server = await stack.enter_async_context(routing())
        above = account_at(server.address, "parent")
        url = await stack.enter_async_context(running(accounts={"above": above}))
        alice = await stack.enter_async_context(open_plugin(client(url, "alice"), data_handler=to_alice.handle))
        carol = await stack.enter_async_context(
            open_plugin(client(server.address, "carol"), data_handler=to_carol.handle)
        )
        address = (await fetch_ildcp(alice)).client_address
        assert address == f"{HOST}.connector.children.alice"
        for payer, receiver, destination in ((carol, to_alice, address), (alice, to_carol, f"{HOST}.carol")):
            packet = offer(destination)
            assert await send(payer, packet) == FULFILL
            # Our server takes its own margin off the expiry as well.
            (received,) = receiver.packets
            assert received == evolve(packet, expires_at=packet.expires_at - WINDOW - timedelta(seconds=1))


async def test_a_payment_in_many_packets_arrives_to_the_unit() -> None:
    """From our server's child down to the connector's, whose limit of 10,000 a packet the payer has to find out."""
    async with AsyncExitStack() as stack:
        server = await stack.enter_async_context(routing())
        above = account_at(server.address, "parent", maxPacketAmount="10000")
        url = await stack.enter_async_context(running(accounts={"above": above}))
        payment = await pay(login(server.address, "payer"), login(url, "payee"), 100_000)
    assert (payment.payer, payment.payee) == (f"{HOST}.payer", f"{HOST}.connector.children.payee")
    assert payment.sent == payment.delivered == sum(payment.received) == 100_000
    assert max(payment.received) <= 10_000
