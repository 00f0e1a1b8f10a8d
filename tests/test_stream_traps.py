"""Faults that users of other implementations have reported, and answers that a payer must read with care."""

from __future__ import annotations

from hashlib import sha256
from typing import TYPE_CHECKING, Any

import pytest
import trio
from attrs import evolve
from support.stream_paths import ADDRESS, CONNECTOR, SECRET, Path, open_path

from trio_ledger_plugin import loopback_pair
from trio_ledger_plugin.codec import ilp, stream
from trio_ledger_plugin.stream import Credentials, PaymentFailedError, open_receiver, pay
from trio_ledger_plugin.stream.crypto import Keys

if TYPE_CHECKING:
    from collections.abc import Callable


def read(prepare: ilp.Prepare, credentials: Credentials) -> stream.Packet:
    return stream.decode(Keys(credentials.shared_secret).open(prepare.data))


def is_money(prepare: ilp.Prepare, credentials: Credentials) -> bool:
    return stream.StreamMoney(1, 1) in read(prepare, credentials).frames


def change_reply(credentials: Credentials, change: Callable[[stream.Packet], stream.Packet], *, rejected: bool) -> Any:
    """Return a function for a path, which changes the receiver's word in each Fulfill, or makes a Reject of it."""
    keys = Keys(credentials.shared_secret)

    def answers(prepare: ilp.Prepare, answer: bytes) -> bytes:
        packet = ilp.decode(answer)
        if not isinstance(packet, ilp.Fulfill):
            return answer
        data = keys.seal(stream.encode(change(stream.decode(keys.open(packet.data)))))
        return ilp.encode(ilp.Reject("F99", CONNECTOR, "", data) if rejected else evolve(packet, data=data))

    return answers


async def test_probe_that_lacks_liquidity_is_not_tried_for_ever(autojump_clock):
    path = Path(liquidity=0)
    async with open_path(path) as ends:
        with pytest.raises(PaymentFailedError, match="no packet reached the receiver: T04"):
            await pay(ends.payer, ends.receiver.new_credentials(), send=100_000)
    assert len(path.seen) < 100
    assert trio.current_time() < 120


async def test_payment_begins_with_an_amount_that_a_probe_had(autojump_clock):
    """A sender whose probes had to go lower began with the first amount nevertheless, and failed."""
    path = Path(max_packet=7_777, f08_data=lambda received, maximum: b"")
    async with open_path(path) as ends:
        credentials = ends.receiver.new_credentials()
        await pay(ends.payer, credentials, send=100_000)
    money = [prepare.amount for prepare in path.seen if is_money(prepare, credentials)]
    probed = [prepare.amount for prepare in path.seen if not is_money(prepare, credentials)]
    assert money[0] <= 7_777
    assert money[0] <= max(amount for amount in probed if amount <= 7_777)
    assert path.fulfilled[0].amount == money[0]


async def test_replies_are_not_lost_when_a_receiver_ends(autojump_clock):
    """The payer would count packets as lost that the receiver has booked."""
    accepted: list[int] = []

    async def decide(packet: Any) -> None:
        await trio.sleep(1)
        accepted.append(packet.amount)

    async with loopback_pair() as (payer, end), trio.open_nursery() as nursery:

        async def receive(task_status: trio.TaskStatus[Credentials]) -> None:
            async with open_receiver(end, secret=SECRET, address=ADDRESS, on_packet=decide) as receiver:
                task_status.started(receiver.new_credentials())
                await trio.sleep(0.5)
            await end.aclose()

        paid = await pay(payer, await nursery.start(receive), send=10_000, max_packet=1000)
    assert paid.sent == paid.delivered == sum(accepted) == 10_000
    assert paid.unanswered == 0


async def test_payers_that_vanish_leave_nothing_at_a_receiver(autojump_clock):
    """A server without an idle timer keeps a connection for each of them, and one with a timer a task."""
    async with open_path(Path(max_packet=100)) as ends:
        before = trio.lowlevel.current_statistics().tasks_living
        for _ in range(20):
            with trio.move_on_after(0.5):
                await pay(ends.payer, ends.receiver.new_credentials(), send=1_000_000)
        await trio.sleep(60)
        assert trio.lowlevel.current_statistics().tasks_living <= before + 1
        assert ends.receiver._deciding == {}


@pytest.mark.parametrize("order", [{"send": 100_000}, {"deliver": 100_000}])
async def test_connector_that_forwards_nothing_ends_a_payment(autojump_clock, order):
    """The receiver says of each packet that 0 arrived. A sender that takes this for the rate divides by it."""
    path = Path(max_packet=1000)

    def keep(prepare: ilp.Prepare) -> ilp.Reject | None:
        packet = read(prepare, credentials)
        if len(path.fulfilled) < 5 or not is_money(prepare, credentials):
            return None
        reply = stream.Packet(packet.sequence, stream.REJECT, 0)
        return ilp.Reject("F99", ADDRESS, "", credentials.keys.seal(stream.encode(reply)))

    async with open_path(path) as ends:
        credentials = ends.receiver.new_credentials()
        path.intercept = keep
        with pytest.raises(PaymentFailedError, match="the rate has fallen: of 1000 only 0 arrive") as caught:
            await pay(ends.payer, credentials, **order)
        assert caught.value.delivered == ends.received > 0


async def test_receiver_that_claims_less_has_accepted_the_minimum(autojump_clock):
    path = Path()
    async with open_path(path) as ends:
        credentials = ends.receiver.new_credentials()
        path.answers = change_reply(credentials, lambda reply: evolve(reply, amount=1), rejected=False)
        paid = await pay(ends.payer, credentials, send=1000)
    assert (paid.sent, paid.delivered) == (1000, 990)


async def test_reply_of_the_wrong_type_does_not_count(autojump_clock):
    """A connector may put an earlier reply of the receiver's into a Fulfill."""
    path = Path()
    async with open_path(path) as ends:
        credentials = ends.receiver.new_credentials()
        path.answers = change_reply(
            credentials, lambda reply: evolve(reply, packet_type=stream.REJECT, amount=10**9), rejected=False
        )
        paid = await pay(ends.payer, credentials, send=1000)
    assert paid.delivered == 990


async def test_fulfill_that_a_connector_dropped_counts_as_delivered(autojump_clock):
    """The connector sends a Reject with the receiver's word for a Fulfill: the receiver has the money."""
    path = Path()
    async with open_path(path) as ends:
        credentials = ends.receiver.new_credentials()
        path.answers = change_reply(credentials, lambda reply: reply, rejected=True)
        paid = await pay(ends.payer, credentials, deliver=1000)
        assert (paid.sent, paid.delivered, ends.received) == (0, 1000, 1000)


async def test_greeting_ends_with_the_first_authentic_reply(autojump_clock):
    """Until then it is repeated: the packet that carried it may be lost."""
    path = Path()

    def lose_some(prepare: ilp.Prepare) -> ilp.Reject | None:
        return ilp.Reject("T00", CONNECTOR) if len(path.seen) <= 3 else None

    path.intercept = lose_some
    async with open_path(path) as ends:
        credentials = ends.receiver.new_credentials()
        await pay(ends.payer, credentials, send=1000)
    greets = [stream.ConnectionNewAddress("") in read(prepare, credentials).frames for prepare in path.seen]
    assert greets == [True] * 4 + [False] * (len(greets) - 4)


async def test_numbers_of_packets_count_up_from_one(autojump_clock):
    path = Path(max_packet=1000)
    async with open_path(path) as ends:
        credentials = ends.receiver.new_credentials()
        await pay(ends.payer, credentials, send=50_000)
    numbers = [read(prepare, credentials).sequence for prepare in path.seen]
    assert sorted(numbers) == list(range(1, len(numbers) + 1))


async def test_close_and_probes_cannot_be_fulfilled(autojump_clock):
    """A receiver that ignored the close frame, or the missing stream, could otherwise take money for nothing."""
    path = Path()
    async with open_path(path) as ends:
        credentials = ends.receiver.new_credentials()
        await pay(ends.payer, credentials, send=1000)
    keys = Keys(credentials.shared_secret)
    for prepare in path.seen:
        right = ilp.fulfills(keys.fulfillment(prepare.data), prepare.execution_condition)
        assert right is is_money(prepare, credentials)
    assert len({prepare.execution_condition for prepare in path.seen}) == len(path.seen)


async def test_frames_that_a_receiver_does_not_know_are_ignored():
    accepted: list[int] = []
    async with (
        loopback_pair() as (payer, end),
        open_receiver(end, secret=SECRET, address=ADDRESS, on_packet=lambda p: accepted.append(p.amount)) as receiver,
    ):
        credentials = receiver.new_credentials()
        frames = (stream.UnknownFrame(0x77, b"later"), stream.StreamMoney(1, 1), stream.StreamData(1, 0, b"memo"))
        data = credentials.keys.seal(stream.encode(stream.Packet(1, stream.PREPARE, 5, frames)))
        condition = sha256(credentials.keys.fulfillment(data)).digest()
        prepare = ilp.make_prepare(5, credentials.destination_account, condition, 10, data)
        assert isinstance(ilp.decode(await payer.send_data(ilp.encode(prepare))), ilp.Fulfill)
    assert accepted == [5]
