"""Payments over a simulated network: rates, limits, loss, reordering, and every way in which a path misbehaves."""

from __future__ import annotations

from collections import Counter
from fractions import Fraction
from typing import TYPE_CHECKING, Any

import pytest
import trio
from attrs import evolve
from support.stream_paths import CONNECTOR, Path, open_path

from trio_ledger_plugin import InvalidFieldsError, loopback_pair
from trio_ledger_plugin.codec import ilp, stream
from trio_ledger_plugin.stream import Asset, Credentials, PaymentFailedError, Progress, pay, quote
from trio_ledger_plugin.stream.crypto import Keys

if TYPE_CHECKING:
    from collections.abc import Callable

    from trio_ledger_plugin import LedgerPlugin

MILLION = 1_000_000


async def pay_over(path: Path, **order: Any) -> Any:
    """Pay, and check that both ends agree on what was paid."""
    async with open_path(path) as ends:
        paid = await pay(ends.payer, ends.receiver.new_credentials(), **order)
        assert paid.sent == ends.sent
        assert paid.delivered == ends.received
        assert paid.asset == Asset("EUR", 2)
        return paid


async def fail_over(path: Path, decide: Callable[[Any], object] | None = None, **order: Any) -> PaymentFailedError:
    """Pay without success, and check that the error says what was delivered."""
    async with open_path(path, decide) as ends:
        with pytest.raises(PaymentFailedError) as caught:
            await pay(ends.payer, ends.receiver.new_credentials(), **order)
        assert caught.value.sent == ends.sent
        assert caught.value.delivered == ends.received
        return caught.value


def amounts(path: Path) -> list[int]:
    """Return the amounts of the fulfilled packets."""
    return [prepare.amount for prepare in path.fulfilled]


def stream_packet(prepare: ilp.Prepare, credentials: Credentials) -> stream.Packet:
    return stream.decode(Keys(credentials.shared_secret).open(prepare.data))


@pytest.mark.parametrize("rate", [Fraction(1), Fraction(1, 3), Fraction(137, 10), Fraction(999, 1000)])
@pytest.mark.parametrize("max_packet", [None, 20_011])
async def test_amount_to_send_is_sent_to_the_unit(autojump_clock, rate, max_packet):
    path = Path(rate=rate, max_packet=max_packet)
    paid = await pay_over(path, send=MILLION)
    assert paid.sent == MILLION
    assert paid.delivered >= MILLION * rate * 99 / 100


@pytest.mark.parametrize("rate", [Fraction(1), Fraction(1, 3), Fraction(137, 10), Fraction(999, 1000)])
@pytest.mark.parametrize("max_packet", [None, 20_011])
async def test_amount_to_deliver_is_delivered(autojump_clock, rate, max_packet):
    """Rounding may deliver a little more, never less; and no more may be sent than the slippage allows."""
    path = Path(rate=rate, max_packet=max_packet)
    paid = await pay_over(path, deliver=MILLION)
    assert MILLION <= paid.delivered <= MILLION * (1 + Fraction(1, 500)) + rate
    assert paid.sent <= MILLION / rate * 102 / 100


async def test_many_packets_are_in_flight_at_once(autojump_clock):
    """ilp-protocol-stream has one in flight: over a slow path this payment would take 20 times as long."""
    path = Path(max_packet=1000, latency=0.5)
    start = trio.current_time()
    await pay_over(path, send=200_000)
    assert path.most_at_once > 50
    assert trio.current_time() - start < 12


async def test_reordered_packets_change_nothing(autojump_clock):
    path = Path(max_packet=1000, latency=0.01, jitter=2.0)
    assert (await pay_over(path, send=50_000)).delivered == 50_000


async def test_lost_packets_are_sent_again_once_expired(autojump_clock):
    path = Path(max_packet=10_000, lose=0.1)
    paid = await pay_over(path, send=300_000)
    assert paid.sent == 300_000
    assert paid.unanswered > 0


async def test_lost_answer_is_reported_as_unanswered(autojump_clock):
    """The receiver has the money of a Fulfill that was lost: the peer may count it as sent."""
    path = Path(max_packet=10_000, lose_replies=0.1)
    async with open_path(path) as ends:
        paid = await pay(ends.payer, ends.receiver.new_credentials(), send=200_000)
    assert paid.sent == 200_000
    assert paid.sent < ends.received <= paid.sent + paid.unanswered


async def test_greeting_has_the_empty_address(autojump_clock):
    """With another address, ilp-protocol-stream's server probes back, fails, and closes the connection."""
    path = Path()
    async with open_path(path) as ends:
        credentials = ends.receiver.new_credentials()
        await pay(ends.payer, credentials, send=5000)
    frames = [frame for prepare in path.seen for frame in stream_packet(prepare, credentials).frames]
    assert {frame.source_account for frame in frames if isinstance(frame, stream.ConnectionNewAddress)} == {""}


async def test_receiver_that_refuses_the_empty_address_is_greeted_otherwise(autojump_clock):
    """interledger-rs refuses it; it gets another one, behind a segment that other receivers stumble over."""
    path = Path()
    async with open_path(path) as ends:
        credentials = ends.receiver.new_credentials()
        server, _, token = credentials.destination_account.rpartition(".")

        def refuse(prepare):
            frames = stream_packet(prepare, credentials).frames
            return ilp.Reject("F06", CONNECTOR) if stream.ConnectionNewAddress("") in frames else None

        path.intercept = refuse
        path.rewrite = lambda prepare: evolve(prepare, destination=credentials.destination_account)
        assert (await pay(ends.payer, credentials, send=1000)).delivered == 1000
    assert stream.ConnectionNewAddress("private.SEND_ONLY_CLIENT") in stream_packet(path.seen[1], credentials).frames
    greeted = [prepare.destination for prepare in path.seen]
    assert greeted[:2] == [f"{server}.{token}", f"{server}._.{token}"]


async def test_no_probe_is_larger_than_the_payment(autojump_clock):
    """Connectors recognise a probe of 10**12 and quote a rate for it that they do not give."""
    path = Path()
    await pay_over(path, send=12_345)
    assert max(prepare.amount for prepare in path.seen) == 12_345


async def test_rate_below_the_minimum_is_refused(autojump_clock):
    """A connector that gives a bad rate gives it to probes as well: only another source shows it."""
    path = Path(rate=Fraction(1, 2))
    async with open_path(path) as ends:
        with pytest.raises(PaymentFailedError, match="rate is too low") as caught:
            await pay(ends.payer, ends.receiver.new_credentials(), send=10_000, min_rate=0.9)
    assert (caught.value.sent, caught.value.delivered) == (0, 0)


@pytest.mark.parametrize("scale", [0, 2, 9])
async def test_outside_rate_is_checked_in_units_of_the_assets(autojump_clock, scale):
    """Connectors can quote any rate: only another source shows that it is bad. The scales must not matter."""
    path = Path(rate=Fraction(9, 10) * Fraction(10) ** (2 - scale), scale=scale)
    send = 100 * 10**scale
    async with open_path(path) as ends:
        for outside in (0.92, 5):
            with pytest.raises(PaymentFailedError, match="rate is too low") as caught:
                await pay(ends.payer, ends.receiver.new_credentials(), send=send, outside_rate=outside)
            assert (caught.value.sent, ends.received) == (0, 0)
        paid = await pay(ends.payer, ends.receiver.new_credentials(), send=send, outside_rate=0.905)
        assert paid.delivered == 9000


async def test_outside_rate_needs_the_receivers_asset(autojump_clock):
    async with open_path(Path()) as ends:
        ends.receiver.asset = None
        with pytest.raises(PaymentFailedError, match="does not say its asset"):
            await pay(ends.payer, ends.receiver.new_credentials(), send=1000, outside_rate=1)


async def test_payment_survives_the_loss_of_its_link(autojump_clock):
    """What was in flight is sent again only when it can no longer be fulfilled."""
    path = Path(max_packet=1000)
    async with open_path(path) as ends, trio.open_nursery() as nursery:

        async def lose_link() -> None:
            await trio.sleep(0.5)
            await ends.peer.disconnect()
            await trio.sleep(2)
            await ends.peer.connect()

        nursery.start_soon(lose_link)
        began = trio.current_time()
        paid = await pay(ends.payer, ends.receiver.new_credentials(), send=200_000, expiry=5)
        assert trio.current_time() - began > 5
    assert paid.sent == 200_000
    assert paid.unanswered > 0
    assert paid.sent <= ends.received <= paid.sent + paid.unanswered


async def test_connector_that_keeps_money_after_the_probes_gets_none(autojump_clock):
    """Without a minimum for each packet, a connector may keep all but one unit."""
    path = Path(max_packet=1000)

    def steal(prepare):
        if len(path.seen) > 5:
            path.rate = Fraction(1, 2)

    path.intercept = steal
    failure = await fail_over(path, send=MILLION)
    assert "the rate has fallen" in failure.reason
    assert failure.delivered >= failure.sent * 99 // 100


async def test_rate_that_falls_for_a_moment_does_not_end_a_payment(autojump_clock):
    path = Path(max_packet=10_000)

    def change(prepare):
        path.rate = Fraction(1, 2) if 20 < len(path.seen) < 30 else Fraction(1)

    path.intercept = change
    assert (await pay_over(path, send=MILLION)).sent == MILLION


@pytest.mark.parametrize(
    "f08_data",
    [
        lambda received, maximum: received.to_bytes(8) + maximum.to_bytes(8),
        lambda received, maximum: b"",
        lambda received, maximum: b"short",
        lambda received, maximum: maximum.to_bytes(8) + received.to_bytes(8),
        lambda received, maximum: bytes(16),
        lambda received, maximum: received.to_bytes(8) + (received - 1).to_bytes(8),
    ],
    ids=["exact", "none", "short", "swapped", "zeros", "nearly"],
)
async def test_packets_shrink_after_f08_whatever_it_says(autojump_clock, f08_data):
    """A sender that takes the data at its word sends the same packet for ever."""
    path = Path(max_packet=5000, f08_data=f08_data)
    paid = await pay_over(path, send=MILLION)
    assert paid.sent == MILLION
    assert path.rejected.count("F08") < 50


async def test_path_that_accepts_nothing_ends_a_payment(autojump_clock):
    failure = await fail_over(Path(max_packet=0), send=1000)
    assert "every packet is too large" in failure.reason


async def test_maximum_that_shrinks_later_is_followed(autojump_clock):
    path = Path(max_packet=10_000)

    def shrink(prepare):
        if len(path.seen) > 20:
            path.max_packet = 3000

    path.intercept = shrink
    assert (await pay_over(path, send=300_000)).sent == 300_000


@pytest.mark.parametrize("liquidity", [700, 5000, 50_000])
async def test_little_liquidity_makes_smaller_packets(autojump_clock, liquidity):
    """A probe that is too large for the liquidity (T04) was tried for ever, and the payment began with its amount."""
    path = Path(liquidity=liquidity)
    paid = await pay_over(path, send=100_000)
    assert paid.sent == 100_000
    assert max(amounts(path)) <= liquidity
    assert len(path.seen) < 2000


async def test_few_packets_are_tried_while_a_limit_lasts(autojump_clock):
    """The whole window was sent again after each pause, and refused as a whole."""
    refused = Counter[float]()

    def refuse(_prepare):
        now = trio.current_time() - began
        if not 2 < now < 4:
            return None
        refused[round(now, 3)] += 1
        return ilp.Reject("T05", CONNECTOR)

    path = Path(max_packet=100, intercept=refuse)
    began = trio.current_time()
    assert (await pay_over(path, send=300_000)).sent == 300_000
    first = min(refused)
    # What was in flight is refused within the time of a round trip.
    in_flight = sum(count for when, count in refused.items() if when <= first + 0.15)
    tries = [count for when, count in refused.items() if when > first + 0.15]
    assert in_flight > 50
    assert 2 <= len(tries) <= 7
    assert max(tries) <= 2


class Faulty(Path):
    """Loses two packets, and then refuses one."""

    count = 0

    async def forward(self, prepare: ilp.Prepare, onward: LedgerPlugin) -> bytes:
        self.count += 1
        if self.count in (20, 21):
            await trio.sleep_forever()
        return self.reject("T00") if self.count == 60 else await super().forward(prepare, onward)


async def test_lost_packets_do_not_take_the_places_of_those_tried(autojump_clock):
    """The others would wait until the lost ones expire."""
    path = Faulty(max_packet=1000, latency=0.1)
    fulfilled: list[int] = []

    def look(progress: Progress) -> None:
        if trio.current_time() < began + 10:
            fulfilled.append(progress.packets)

    began = trio.current_time()
    assert (await pay_over(path, send=3_000_000, on_progress=look)).sent == 3_000_000
    assert fulfilled[-1] > 1000


async def test_limit_of_packets_a_second_slows_down(autojump_clock):
    path = Path(max_packet=1000, per_second=10)
    start = trio.current_time()
    assert (await pay_over(path, send=50_000)).sent == 50_000
    assert trio.current_time() - start > 4
    assert path.rejected.count("T05") < 200


@pytest.mark.parametrize(
    ("send", "rate", "max_packet"), [(1001, Fraction(1, 100), 1000), (10_001, Fraction(1, 500), 5000)]
)
async def test_last_packet_is_no_dust(autojump_clock, send, rate, max_packet):
    """What is left after packets of the greatest amount would deliver nothing, and never arrive."""
    path = Path(rate=rate, max_packet=max_packet)
    paid = await pay_over(path, send=send)
    assert paid.sent == send
    assert min(amounts(path)) > 400


async def test_packet_whose_amount_is_rounded_to_nothing_ends(autojump_clock):
    failure = await fail_over(Path(rate=Fraction(1, 1000)), send=100)
    assert "rounded down to 0" in failure.reason


async def test_small_packets_with_a_bad_rate_do_not_loop(autojump_clock):
    """Packets cut down to one unit by T04 are rounded to 0 (R01), for ever."""
    failure = await fail_over(Path(rate=Fraction(1, 10), liquidity=5), send=1000)
    assert failure.delivered == 0


@pytest.mark.parametrize("code", ["F00", "F01", "F02", "F03", "F05", "F06", "F07", "R02", "F98"])
async def test_final_reject_without_a_reply_ends_a_payment(autojump_clock, code):
    path = Path(max_packet=1000)

    def refuse(prepare):
        return ilp.Reject(code, CONNECTOR, "no way\n") if len(path.fulfilled) >= 5 else None

    path.intercept = refuse
    failure = await fail_over(path, send=MILLION)
    assert failure.reason.startswith(f"{code} from {CONNECTOR}: no way")
    assert "\n" not in failure.reason
    assert 5000 <= failure.sent < 50_000


@pytest.mark.parametrize("code", ["T00", "T01", "T03", "T05", "T99", "R00", "R01", "F99"])
async def test_temporary_reject_is_tried_again(autojump_clock, code):
    path = Path(max_packet=1000)
    path.intercept = lambda prepare: ilp.Reject(code, CONNECTOR) if path.random.random() < 0.1 else None
    assert (await pay_over(path, send=100_000)).sent == 100_000


async def test_reject_with_a_reply_is_the_receivers_word(autojump_clock):
    """Rafiki's receiver answers probes with F05, on which @interledger/pay ends."""

    def answers(prepare, answer):
        packet = ilp.decode(answer)
        return ilp.encode(evolve(packet, code="F05")) if isinstance(packet, ilp.Reject) else answer

    assert (await pay_over(Path(answers=answers), send=5000)).sent == 5000


async def test_reply_to_another_packet_does_not_count(autojump_clock):
    """A connector could repeat an old answer, and make any packet look delivered or refused."""
    path = Path(max_packet=1000)
    kept: list[bytes] = []

    def answers(prepare, answer):
        packet = ilp.decode(answer)
        if packet.type != ilp.REJECT:
            return answer
        kept.append(packet.data)
        return ilp.encode(ilp.Reject("F05", CONNECTOR, "", kept[0]))

    path.answers = answers
    async with open_path(path) as ends:
        with pytest.raises(PaymentFailedError, match="F05"):
            await pay(ends.payer, ends.receiver.new_credentials(), send=MILLION)
    assert ends.received == 0


async def test_fulfill_without_the_preimage_ends_a_payment(autojump_clock):
    path = Path()

    def answers(prepare, answer):
        packet = ilp.decode(answer)
        return ilp.encode(ilp.Fulfill(bytes(32), packet.data)) if packet.type == ilp.FULFILL else answer

    path.answers = answers
    async with open_path(path) as ends:
        with pytest.raises(PaymentFailedError, match="preimage") as caught:
            await pay(ends.payer, ends.receiver.new_credentials(), send=1000)
    assert caught.value.delivered == 0


async def test_fulfill_without_a_reply_counts_as_the_minimum(autojump_clock):
    path = Path()

    def answers(prepare, answer):
        packet = ilp.decode(answer)
        return ilp.encode(evolve(packet, data=b"")) if isinstance(packet, ilp.Fulfill) else answer

    path.answers = answers
    async with open_path(path) as ends:
        paid = await pay(ends.payer, ends.receiver.new_credentials(), send=1000)
    assert (paid.sent, paid.delivered, ends.received) == (1000, 990, 1000)


async def test_silent_path_ends_a_payment(autojump_clock):
    path = Path(max_packet=1000)

    def lose_all(prepare):
        if len(path.fulfilled) >= 10:
            path.lose = 1.0

    path.intercept = lose_all
    start = trio.current_time()
    async with open_path(path) as ends:
        with pytest.raises(PaymentFailedError, match="no packet was fulfilled for 15 seconds") as caught:
            await pay(ends.payer, ends.receiver.new_credentials(), send=MILLION, expiry=5)
        assert caught.value.sent == ends.sent
    assert caught.value.unanswered > 0
    assert trio.current_time() - start < 60


async def test_receiver_that_refuses_ends_a_payment(autojump_clock):
    failure = await fail_over(
        Path(max_packet=1000), lambda packet: None if packet.sequence < 30 else False, send=MILLION
    )
    assert "the receiver closed the connection (application error)" in failure.reason
    assert failure.delivered > 0


async def test_receiver_that_says_later_gets_its_money_later(autojump_clock):
    said: list[int] = []

    def decide(packet):
        said.append(packet.sequence)
        if len(said) < 20:
            raise RuntimeError("the books are closed")

    async with open_path(Path(max_packet=10_000), decide) as ends:
        paid = await pay(ends.payer, ends.receiver.new_credentials(), send=100_000)
        assert (paid.sent, paid.delivered) == (100_000, ends.received)


async def test_connection_is_closed_at_the_end(autojump_clock):
    path = Path()
    async with open_path(path) as ends:
        credentials = ends.receiver.new_credentials()
        await pay(ends.payer, credentials, send=1000)
    last = stream_packet(path.seen[-1], credentials)
    assert last.frames == (stream.ConnectionClose(stream.ErrorCode.NO_ERROR),)
    assert path.seen[-1].amount == 0


@pytest.mark.parametrize("seconds", [0.0, 0.05, 0.12, 0.25, 0.33, 0.47, 1.01, 2.2, 5.0])
async def test_cancelled_payment_says_what_was_delivered(autojump_clock, seconds):
    path = Path(max_packet=100)
    reports: list[Progress] = []
    async with open_path(path) as ends:
        credentials = ends.receiver.new_credentials()
        with trio.move_on_after(seconds) as scope:
            await pay(ends.payer, credentials, send=MILLION, on_progress=reports.append)
        assert scope.cancelled_caught
        await trio.sleep(3)
    assert trio.current_time() < seconds + 10
    final = reports[-1]
    assert final.done
    assert final.sent <= ends.sent <= final.sent + final.in_flight
    assert final.delivered <= ends.received <= final.delivered + final.in_flight
    if any(isinstance(frame, stream.StreamMoney) for p in path.seen for frame in stream_packet(p, credentials).frames):
        assert any(
            frame == stream.ConnectionClose(1) for p in path.seen for frame in stream_packet(p, credentials).frames
        )


async def test_error_of_on_progress_ends_a_payment(autojump_clock):
    def fail(progress):
        if not progress.done:
            raise ZeroDivisionError("the application's own")

    async with open_path(Path(max_packet=100)) as ends:
        with pytest.raises(ZeroDivisionError):
            await pay(ends.payer, ends.receiver.new_credentials(), send=10_000, on_progress=fail)


async def test_closed_plugin_ends_a_payment(autojump_clock):
    async with open_path(Path(max_packet=100)) as ends, trio.open_nursery() as nursery:

        async def close() -> None:
            await trio.sleep(1.5)
            await ends.payer.disconnect()

        nursery.start_soon(close)
        with pytest.raises(PaymentFailedError) as caught:
            await pay(ends.payer, ends.receiver.new_credentials(), send=MILLION)
        assert caught.value.delivered > 0
        assert caught.value.__cause__ is not None


async def test_credentials_are_for_one_payment_at_a_time(autojump_clock):
    """Both would use the same numbers, and the receiver would take packets of one for those of the other."""
    async with open_path(Path()) as ends:
        credentials = ends.receiver.new_credentials()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(lambda: pay(ends.payer, credentials, send=1000))
            await trio.sleep(0.01)
            with pytest.raises(InvalidFieldsError, match="in use"):
                await pay(ends.payer, credentials, send=1000)
        assert (await pay(ends.payer, credentials, send=1000)).sent == 1000
        assert ends.received == 2000


async def test_quote_moves_no_money_and_keeps_the_connection(autojump_clock):
    path = Path(rate=Fraction(9, 10), max_packet=5000)
    async with open_path(path) as ends:
        credentials = ends.receiver.new_credentials()
        quoted = await quote(ends.payer, credentials, send=100_000)
        assert (quoted.send, quoted.deliver, quoted.max_packet) == (100_000, 89_100, 5000)
        assert quoted.rate == Fraction(9, 10)
        assert not ends.accepted
        quoted = await quote(ends.payer, credentials, deliver=9000)
        assert (quoted.send, quoted.deliver) == (10_102, 9000)
        assert (await pay(ends.payer, credentials, deliver=9000)).delivered == 9000


async def test_echoing_peer_gives_a_clear_error(autojump_clock):
    async def echo(data: bytes) -> bytes:
        return data

    async with loopback_pair() as (payer, peer):
        peer.register_data_handler(echo)
        with pytest.raises(PaymentFailedError, match="only echoes"):
            await pay(payer, Credentials("example.nobody.x", bytes(32)), send=1)


@pytest.mark.parametrize(
    ("order", "error", "said"),
    [
        ({}, InvalidFieldsError, "either send or deliver"),
        ({"send": 1, "deliver": 1}, InvalidFieldsError, "either send or deliver"),
        ({"send": 0}, InvalidFieldsError, "send is 0"),
        ({"deliver": 2**64}, InvalidFieldsError, "deliver is"),
        ({"send": "5"}, TypeError, "send is an int"),
        ({"send": True}, TypeError, "send is an int"),
        ({"send": 1, "slippage": 1}, InvalidFieldsError, "less than 1"),
        ({"send": 1, "slippage": -0.1}, InvalidFieldsError, "slippage"),
        ({"send": 1, "slippage": float("nan")}, InvalidFieldsError, "slippage"),
        ({"send": 1, "min_rate": "high"}, TypeError, "min_rate is a number"),
        ({"send": 1, "min_rate": float("inf")}, InvalidFieldsError, "min_rate"),
        ({"send": 1, "expiry": 0}, InvalidFieldsError, "expiry"),
        ({"send": 1, "expiry": "soon"}, TypeError, "expiry"),
        ({"send": 1, "max_packet": 0}, InvalidFieldsError, "max_packet"),
    ],
)
async def test_bad_order_gets_a_clear_error(autojump_clock, order, error, said):
    async with loopback_pair() as (payer, _):
        with pytest.raises(error, match=said):
            await pay(payer, Credentials("example.nobody.x", bytes(32)), **order)
        with pytest.raises(error, match=said):
            await quote(payer, Credentials("example.nobody.x", bytes(32)), **order)


def test_credentials_hide_their_secret():
    secret = b"canary-canary-canary-canary-0123"
    assert "canary" not in repr(Credentials("example.nobody.x", secret))
    with pytest.raises(InvalidFieldsError) as caught:
        Credentials("example.nobody.x", secret[:20])
    assert "canary" not in str(caught.value)
    with pytest.raises(InvalidFieldsError, match="ILP address"):
        Credentials("nobody", secret)
