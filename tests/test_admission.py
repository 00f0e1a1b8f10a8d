"""The limits on unauthenticated peers: how many may be connected, and how long failed attempts wait for a reply."""

import logging
from collections.abc import Callable
from typing import Any

import pytest
import trio
from trio.testing import MockClock

from trio_ledger_plugin.log import RedactingLog, StdlibLog
from trio_ledger_plugin.net.admission import Admission, PendingPeer
from trio_ledger_plugin.options.base import PluginOptions
from trio_ledger_plugin.statistics import Counters


def make_admission(**options: object) -> Admission:
    limits = PluginOptions(**options)  # type: ignore[arg-type]  # each test names its own fields
    return Admission(limits, Counters(), RedactingLog(StdlibLog(), ()))


def fail(admission: Admission, address: str, account: str = "") -> float:
    """Refuse a connection; return the delay of the reply."""
    return admission.refuse("a connection", address, account, "invalid auth_token")


class Waiting:
    """Connections that authenticate, each in a task of its own, until they are dropped."""

    def __init__(self, nursery: trio.Nursery, admission: Admission) -> None:
        self._nursery = nursery
        self._admission = admission

    async def enter(self, *addresses: str) -> list[PendingPeer]:
        return [await self._nursery.start(self._wait, address) for address in addresses]

    async def _wait(self, address: str, *, task_status: trio.TaskStatus[PendingPeer]) -> None:
        with self._admission.admit(address) as peer:
            task_status.started(peer)
            await trio.sleep_forever()


@pytest.fixture
def waiting_under(nursery: trio.Nursery) -> Callable[..., Waiting]:
    return lambda **options: Waiting(nursery, make_admission(**options))


def left(peers: list[PendingPeer]) -> list[bool]:
    return [not peer.is_dropped for peer in peers]


async def test_each_address_has_its_own_share(waiting_under: Any) -> None:
    """A thousand sockets from one address must not keep the peer out."""
    waiting = waiting_under(max_unauthenticated_per_address=2)
    peers = await waiting.enter("192.0.2.1", "192.0.2.1", "192.0.2.2", "192.0.2.1", "192.0.2.1")
    assert left(peers) == [False, False, True, True, True]


async def test_total_is_bounded_for_all_addresses(waiting_under: Any) -> None:
    """Each connection costs memory and a descriptor, from any address."""
    waiting = waiting_under(max_unauthenticated=5)
    peers = await waiting.enter(*(f"192.0.2.{i}" for i in range(7)))
    assert left(peers) == [False] * 2 + [True] * 5
    peers += await waiting.enter("127.0.0.1")
    assert left(peers) == [False] * 3 + [True] * 5


async def test_peer_that_makes_progress_makes_way_last(waiting_under: Any) -> None:
    waiting = waiting_under(max_unauthenticated=3)
    peers = await waiting.enter(*["192.0.2.1"] * 3)
    peers[0].progress()
    peers += await waiting.enter(*["192.0.2.2"] * 2)
    assert left(peers) == [True, False, False, True, True]
    peers += await waiting.enter("192.0.2.2")
    assert left(peers)[0] is False


async def test_authenticated_peer_does_not_make_way(waiting_under: Any) -> None:
    waiting = waiting_under(max_unauthenticated=1)
    first = await waiting.enter("192.0.2.1")
    first[0].leave()
    assert left(first + await waiting.enter("192.0.2.1")) == [True, True]


async def test_dropped_peer_is_cancelled_without_an_error() -> None:
    admission = make_admission(max_unauthenticated=1)
    with trio.fail_after(5), admission.admit("192.0.2.1"):
        with admission.admit("192.0.2.2"):
            pass
        await trio.sleep_forever()


@pytest.mark.parametrize("address", ["127.0.0.1", "127.8.8.8", "::1", "198.51.100.7", "a local socket"])
async def test_addresses_shared_by_many_peers_have_no_limit(address: Any, waiting_under: Any) -> None:
    """All peers behind one proxy would count as one."""
    waiting = waiting_under(max_unauthenticated_per_address=1, trusted_proxies=("198.51.100.7",))
    assert all(left(await waiting.enter(*[address] * 20)))


@pytest.mark.parametrize("address", ["fe80::1%eth0", "::ffff:192.0.2.1", "2001:db8::1"])
async def test_other_addresses_have_a_limit(address: Any, waiting_under: Any) -> None:
    waiting = waiting_under(max_unauthenticated_per_address=1)
    assert left(await waiting.enter(address, address)) == [False, True]


async def test_a_place_is_free_again_after_an_error() -> None:
    admission = make_admission(max_unauthenticated=1)

    def enter_and_fail() -> None:
        with admission.admit("192.0.2.1"):
            raise ZeroDivisionError

    for _ in range(3):
        with pytest.raises(ZeroDivisionError):
            enter_and_fail()
    with admission.admit("192.0.2.1") as peer:
        assert not peer.is_dropped


async def test_replies_to_failures_take_longer_and_longer(autojump_clock: MockClock) -> None:
    """Guessing must not be fast, and a mistake or two must not be punished."""
    admission = make_admission()
    delays = [fail(admission, "192.0.2.1") for _ in range(40)]
    assert delays[:5] == [0] * 5
    assert delays[5] > 0
    assert delays == sorted(delays)
    assert delays[5] < delays[10] < delays[-1] <= 5
    assert fail(admission, "192.0.2.2") == 0


async def test_failures_are_forgotten_after_a_minute(autojump_clock: MockClock) -> None:
    admission = make_admission()
    for _ in range(10):
        fail(admission, "192.0.2.1")
    await trio.sleep(61)
    assert fail(admission, "192.0.2.1") == 0


async def test_first_refused_token_of_an_address_is_a_warning(
    autojump_clock: MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    """An operator who reads warnings would not see it, or would see a thousand."""
    caplog.set_level(logging.INFO, "trio_ledger_plugin")
    admission = make_admission()
    for _ in range(3):
        fail(admission, "192.0.2.1", "alice\n")
        await trio.sleep(61)
    fail(admission, "192.0.2.2")
    await trio.sleep(3601)
    fail(admission, "192.0.2.1", "a" * 200)
    refused, named = "refused a connection from 192.0.2", r"1 for account alice\n"
    assert [(record.levelname, record.message) for record in caplog.records] == [
        ("WARNING", f"{refused}.{named}: invalid auth_token"),
        ("INFO", f"{refused}.{named}, 2 times so far: invalid auth_token"),
        ("INFO", f"{refused}.{named}, 3 times so far: invalid auth_token"),
        ("WARNING", f"{refused}.2: invalid auth_token"),
        ("WARNING", f"{refused}.1 for account {'a' * 100}: invalid auth_token"),
    ]


async def test_memory_for_failures_is_bounded(autojump_clock: MockClock) -> None:
    """A botnet has more addresses than this machine has memory; addresses that keep failing are remembered."""
    admission = make_admission()
    for i in range(10_000):
        fail(admission, f"2001:db8::{i:x}")
        if i % 1000 == 0:
            fail(admission, "192.0.2.1")
    assert fail(admission, "192.0.2.1") > 0
    assert [fail(admission, "2001:db8::1") for _ in range(6)][4] == 0
