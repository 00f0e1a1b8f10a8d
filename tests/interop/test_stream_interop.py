"""What payers and payees would lose: real ilp-protocol-stream ends pay each other through our many-account server."""

import pytest

from .network import HOST, login, routing
from .node import open_node_peer
from .stream import pay

pytestmark = pytest.mark.interop

AMOUNT = 100_000


async def test_a_whole_payment_arrives_to_the_unit() -> None:
    async with routing() as server:
        payment = await pay(login(server.address, "payer"), login(server.address, "payee"), AMOUNT)
    assert (payment.payer, payment.payee) == (f"{HOST}.payer", f"{HOST}.payee")
    assert payment.sent == payment.delivered == sum(payment.received) == AMOUNT


async def test_payment_uses_only_the_newest_connection() -> None:
    """ilp-plugin-mini-accounts sends over all of them: there, whichever answers first answers for the payee."""
    async with routing() as server, open_node_peer() as older:
        await older.connect(login(server.address, "payee"))
        await older.handle_data("echo")
        payment = await pay(login(server.address, "payer"), login(server.address, "payee"), AMOUNT)
        assert payment.sent == payment.delivered == sum(payment.received) == AMOUNT
        assert (await older.stats())["handled"] == 0
