"""How often something may happen, and an account may connect."""

import trio
from support.accounts import ask, enter, open_accounts
from support.peers import dial
from trio.testing import MockClock, wait_all_tasks_blocked

from trio_ledger_plugin.btp.accounts import CONNECTIONS, CONNECTIONS_A_SECOND
from trio_ledger_plugin.btp.auth import auth_message
from trio_ledger_plugin.codec import btp
from trio_ledger_plugin.net.pace import REMEMBERED, Pace
from trio_ledger_plugin.testing.conformance.assertions import echo


async def test_first_times_do_not_wait_and_later_ones_have_a_rate(mock_clock: MockClock) -> None:
    pace = Pace(10, 4.0, 100.0)
    assert [pace.delay("a") for _ in range(10)] == [0.0] * 10
    assert [pace.delay("a") for _ in range(2)] == [0.25, 0.5]
    assert pace.delay("another") == 0.0
    mock_clock.jump(0.75)
    assert [pace.delay("a") for _ in range(2)] == [0.0, 0.25]
    mock_clock.jump(100)
    assert [pace.delay("a") for _ in range(10)] == [0.0] * 10


async def test_wait_is_limited(mock_clock: MockClock) -> None:
    """It must end before the authentication takes too long."""
    pace = Pace(10, 4.0, 3.0)
    assert max(pace.delay("a") for _ in range(1000)) == 3.0


async def test_number_of_names_that_are_remembered_is_limited(mock_clock: MockClock) -> None:
    pace = Pace(10, 4.0, 3.0)
    for number in range(REMEMBERED + 10):
        pace.delay(f"name {number}")
    assert len(pace._due) == REMEMBERED


async def test_account_that_connects_all_the_time_is_served_later(clock: MockClock) -> None:
    """What it sends with its credentials is not lost, and others are not delayed."""
    async with open_accounts(data_handler=echo) as server:
        for _ in range(CONNECTIONS):
            await (await enter(server, token="a")).aclose()
        peer = await dial(server.address)
        await peer.send(peer.frame(auth_message(1, "", "a", {})))
        await peer.send_request(7, b"early")
        await wait_all_tasks_blocked()
        other = await enter(server, token="b")
        await ask(other, b"?")
        began = trio.current_time()
        assert await peer.receive_packet() == btp.Response(1)
        assert trio.current_time() - began >= 1 / CONNECTIONS_A_SECOND - 1e-6
        assert (await peer.receive_packet()).protocol_data[0].data == b"early"
        await peer.aclose()
        await other.aclose()
