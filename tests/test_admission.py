"""The limits on unauthenticated peers: how many may be connected, and how long failed attempts wait for a reply."""

from contextlib import ExitStack
from typing import Any

import pytest
import trio
from trio.testing import MockClock

from trio_ledger_plugin.net.admission import Admission
from trio_ledger_plugin.options.base import PluginOptions


def make_admission(**options: object) -> Admission:
    return Admission(PluginOptions(**options))  # type: ignore[arg-type]  # each test names fields of its own


def enter(stack: ExitStack, admission: Admission, address: str) -> bool:
    return stack.enter_context(admission.admit(address))


def test_each_address_has_its_own_share() -> None:
    """A thousand sockets from one address must not keep the peer out."""
    admission = make_admission(max_unauthenticated_per_address=2)
    with ExitStack() as stack:
        assert enter(stack, admission, "192.0.2.1")
        assert enter(stack, admission, "192.0.2.1")
        assert not enter(stack, admission, "192.0.2.1")
        assert enter(stack, admission, "192.0.2.2")
    with ExitStack() as stack:
        assert enter(stack, admission, "192.0.2.1")
        assert enter(stack, admission, "192.0.2.1")


def test_rejected_connection_takes_no_place() -> None:
    admission = make_admission(max_unauthenticated_per_address=1)
    with admission.admit("192.0.2.1") as first:
        for _ in range(3):
            with admission.admit("192.0.2.1") as other:
                assert not other
    with admission.admit("192.0.2.1") as again:
        assert first
        assert again


@pytest.mark.parametrize("address", ["127.0.0.1", "127.8.8.8", "::1", "198.51.100.7", "a local socket"])
def test_addresses_shared_by_many_peers_have_no_limit(address: Any) -> None:
    """All peers behind one proxy would count as one."""
    admission = make_admission(max_unauthenticated_per_address=1, trusted_proxies=("198.51.100.7",))
    with ExitStack() as stack:
        assert all(enter(stack, admission, address) for _ in range(20))


@pytest.mark.parametrize("address", ["fe80::1%eth0", "::ffff:192.0.2.1", "2001:db8::1"])
def test_other_addresses_have_a_limit(address: Any) -> None:
    admission = make_admission(max_unauthenticated_per_address=1)
    with ExitStack() as stack:
        assert enter(stack, admission, address)
        assert not enter(stack, admission, address)


def test_total_is_bounded_for_all_addresses() -> None:
    """Each connection costs memory and a descriptor, from any address."""
    admission = make_admission(max_unauthenticated=5)
    with ExitStack() as stack:
        assert all(enter(stack, admission, f"192.0.2.{i}") for i in range(5))
        assert not enter(stack, admission, "192.0.2.77")
        assert not enter(stack, admission, "127.0.0.1")
    with admission.admit("192.0.2.77") as admitted:
        assert admitted


def test_a_place_is_free_again_after_an_error() -> None:
    admission = make_admission(max_unauthenticated=1)

    def enter_and_fail() -> None:
        with admission.admit("192.0.2.1"):
            raise ZeroDivisionError

    for _ in range(3):
        with pytest.raises(ZeroDivisionError):
            enter_and_fail()
    with admission.admit("192.0.2.1") as admitted:
        assert admitted


async def test_replies_to_failures_take_longer_and_longer(autojump_clock: MockClock) -> None:
    """Guessing must not be fast, and a mistake or two must not be punished."""
    admission = make_admission()
    delays = [admission.failure_delay("192.0.2.1") for _ in range(40)]
    assert delays[:5] == [0] * 5
    assert delays[5] > 0
    assert delays == sorted(delays)
    assert delays[5] < delays[10] < delays[-1] <= 5
    assert admission.failure_delay("192.0.2.2") == 0


async def test_failures_are_forgotten_after_a_minute(autojump_clock: MockClock) -> None:
    admission = make_admission()
    for _ in range(10):
        admission.failure_delay("192.0.2.1")
    await trio.sleep(61)
    assert admission.failure_delay("192.0.2.1") == 0


async def test_memory_for_failures_is_bounded(autojump_clock: MockClock) -> None:
    """A botnet has more addresses than this machine has memory; addresses that keep failing are remembered."""
    admission = make_admission()
    for i in range(10_000):
        admission.failure_delay(f"2001:db8::{i:x}")
        if i % 1000 == 0:
            admission.failure_delay("192.0.2.1")
    assert admission.failure_delay("192.0.2.1") > 0
    assert [admission.failure_delay("2001:db8::1") for _ in range(6)][4] == 0
