"""The bounds on strangers: how many may knock, and how soon the failing are answered."""

from contextlib import ExitStack
from typing import Any

import pytest
import trio
from trio.testing import MockClock

from trio_ledger_plugin.net.admission import Admission
from trio_ledger_plugin.options.base import PluginOptions


def gate(**options: object) -> Admission:
    return Admission(PluginOptions(**options))  # type: ignore[arg-type]  # each test names fields of its own


def enter(stack: ExitStack, doorkeeper: Admission, address: str) -> bool:
    return stack.enter_context(doorkeeper.admit(address))


def test_an_address_has_a_share_of_its_own() -> None:
    """One stranger's thousand sockets must not keep the peer out."""
    doorkeeper = gate(max_unauthenticated_per_address=2)
    with ExitStack() as stack:
        assert enter(stack, doorkeeper, "192.0.2.1")
        assert enter(stack, doorkeeper, "192.0.2.1")
        assert not enter(stack, doorkeeper, "192.0.2.1")
        assert enter(stack, doorkeeper, "192.0.2.2")
    with ExitStack() as stack:
        assert enter(stack, doorkeeper, "192.0.2.1")
        assert enter(stack, doorkeeper, "192.0.2.1")


def test_one_that_was_turned_away_takes_no_place() -> None:
    doorkeeper = gate(max_unauthenticated_per_address=1)
    with doorkeeper.admit("192.0.2.1") as first:
        for _ in range(3):
            with doorkeeper.admit("192.0.2.1") as other:
                assert not other
    with doorkeeper.admit("192.0.2.1") as again:
        assert first
        assert again


@pytest.mark.parametrize("address", ["127.0.0.1", "127.8.8.8", "::1", "198.51.100.7", "a local socket"])
def test_addresses_that_many_share_have_no_share(address: Any) -> None:
    """All peers behind one proxy would count as one stranger."""
    doorkeeper = gate(max_unauthenticated_per_address=1, trusted_proxies=("198.51.100.7",))
    with ExitStack() as stack:
        assert all(enter(stack, doorkeeper, address) for _ in range(20))


@pytest.mark.parametrize("address", ["fe80::1%eth0", "::ffff:192.0.2.1", "2001:db8::1"])
def test_other_addresses_have(address: Any) -> None:
    doorkeeper = gate(max_unauthenticated_per_address=1)
    with ExitStack() as stack:
        assert enter(stack, doorkeeper, address)
        assert not enter(stack, doorkeeper, address)


def test_the_whole_number_is_bounded_for_everybody() -> None:
    """Each costs memory and a descriptor, wherever it comes from."""
    doorkeeper = gate(max_unauthenticated=5)
    with ExitStack() as stack:
        assert all(enter(stack, doorkeeper, f"192.0.2.{i}") for i in range(5))
        assert not enter(stack, doorkeeper, "192.0.2.77")
        assert not enter(stack, doorkeeper, "127.0.0.1")
    with doorkeeper.admit("192.0.2.77") as welcome:
        assert welcome


def test_a_place_is_free_again_after_an_error() -> None:
    doorkeeper = gate(max_unauthenticated=1)

    def visit_and_fail() -> None:
        with doorkeeper.admit("192.0.2.1"):
            raise ZeroDivisionError

    for _ in range(3):
        with pytest.raises(ZeroDivisionError):
            visit_and_fail()
    with doorkeeper.admit("192.0.2.1") as welcome:
        assert welcome


async def test_failures_are_answered_later_and_later(autojump_clock: MockClock) -> None:
    """Guessing must not be fast, and a mistake or two must not be punished."""
    doorkeeper = gate()
    delays = [doorkeeper.failure_delay("192.0.2.1") for _ in range(40)]
    assert delays[:5] == [0] * 5
    assert delays[5] > 0
    assert delays == sorted(delays)
    assert delays[5] < delays[10] < delays[-1] <= 5
    assert doorkeeper.failure_delay("192.0.2.2") == 0


async def test_failures_are_forgotten_after_a_minute(autojump_clock: MockClock) -> None:
    doorkeeper = gate()
    for _ in range(10):
        doorkeeper.failure_delay("192.0.2.1")
    await trio.sleep(61)
    assert doorkeeper.failure_delay("192.0.2.1") == 0


async def test_the_memory_for_failures_is_bounded(autojump_clock: MockClock) -> None:
    """A botnet has more addresses than this machine has memory; those that fail on are remembered."""
    doorkeeper = gate()
    for i in range(10_000):
        doorkeeper.failure_delay(f"2001:db8::{i:x}")
        if i % 1000 == 0:
            doorkeeper.failure_delay("192.0.2.1")
    assert doorkeeper.failure_delay("192.0.2.1") > 0
    assert [doorkeeper.failure_delay("2001:db8::1") for _ in range(6)][4] == 0
