"""Payers and payees of JavaScript, a Node process each (see stream_peer.js and payments_peer.js)."""

from __future__ import annotations

from attrs import frozen

from .node import NodeProcess, open_node


class StreamPeer(NodeProcess):
    """One end of payments: ilp-protocol-stream."""

    script = "stream_peer.js"
    preloads = ("rename_closed.js",)


class PaymentsPeer(NodeProcess):
    """One end of payments: the payee @interledger/stream-receiver, and the payer @interledger/pay."""

    script = "payments_peer.js"
    preloads = ("rename_closed.js",)


@frozen
class Payment:
    """What both ends say of a payment.

    Attributes:
        payer: The ILP address that the payer was given.
        payee: The ILP address that the payee was given.
        sent: What the payer's connection says that it sent.
        delivered: What the payer's connection says that arrived.
        received: What the payee took, packet by packet.
    """

    payer: str
    payee: str
    sent: int
    delivered: int
    received: list[int]


async def pay(payer_url: str, payee_url: str, amount: int) -> Payment:
    """Have one end pay the other, each at the account of its URL; returns once both say that it is over."""
    async with open_node(StreamPeer) as payee, open_node(StreamPeer) as payer:
        invoice = await payee.do("receive", url=payee_url)
        where = {"destination": invoice["destination"], "secret": invoice["secret"]}
        paid = await payer.do("pay", url=payer_url, amount=amount, **where)
        await payee.expect("paid")
        received = [int(part) for part in (await payee.do("received"))["amounts"]]
    return Payment(paid["address"], invoice["address"], int(paid["sent"]), int(paid["delivered"]), received)
