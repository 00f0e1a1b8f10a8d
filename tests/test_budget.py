"""Limits and turns count by account: an account gains nothing by opening further links, or by losing them."""

from types import SimpleNamespace
from typing import Any

import pytest
import trio
from support.scripted import scripted
from trio.testing import wait_all_tasks_blocked

from trio_ledger_plugin.request import IncomingRequest
from trio_ledger_plugin.runtime.budget import Budget, Limits
from trio_ledger_plugin.runtime.handlers import Payload
from trio_ledger_plugin.runtime.workers import REQUEST_BYTES, RequestQueue
from trio_ledger_plugin.transfer import Transfer


class Source:
    """A link, with a handler that waits until it is released, and keeps who was served in which order."""

    def __init__(self, server: "Server", budget: Budget, name: str) -> None:
        self.name = name
        self.replies: list[int] = []
        self._server = server
        handlers: Any = SimpleNamespace(answer=self._handle)
        self.queue = RequestQueue(server.pool, budget, self, handlers)

    def describe(self) -> IncomingRequest:
        return IncomingRequest(self.name, 1, "")

    async def _handle(self, payload: Payload) -> bytes:
        self._server.begun.append(self.name)
        await self._server.releases.receive()
        return b""

    async def reply(self, request_id: int, reply: object) -> None:
        self.replies.append(request_id)

    def expire(self, request_id: int) -> None:
        raise AssertionError("no handler is late")

    def ask(self, times: int = 1, payload: Payload = b"request") -> list[bool]:
        return [self.queue.submit(n, payload, 7) for n in range(times)]


class Server:
    """The workers of a server, and what its handlers have begun."""

    def __init__(self, pool: Any, limits: Limits) -> None:
        self.pool = pool
        self.budget = Budget(limits)
        self.begun: list[str] = []
        self.release, self.releases = trio.open_memory_channel[None](1000)

    def account(self, limits: Limits | None = None) -> Budget:
        return Budget(limits or Limits(handlers=4), self.budget)

    async def finish(self, count: int) -> None:
        """Let so many handlers end, one after the other."""
        for _ in range(count):
            self.release.send_nowait(None)
            await wait_all_tasks_blocked()


async def serving(nursery: trio.Nursery, **limits: Any) -> Server:
    plugin = scripted(nursery)
    await plugin.connect()
    return Server(plugin.context.workers, Limits(**limits))


async def test_links_of_an_account_share_its_handlers(nursery):
    server = await serving(nursery)
    account = server.account()
    links = [Source(server, account, f"link {n}") for n in range(10)]
    for link in links:
        assert link.ask(3) == [True] * 3
    await wait_all_tasks_blocked()
    assert account.handlers == server.budget.handlers == len(server.begun) == 4
    await server.finish(30)
    assert [sorted(link.replies) for link in links] == [[0, 1, 2]] * 10
    assert set(server.budget.measure().values()) == set(account.measure().values()) == {0}


async def test_links_of_an_account_share_its_backlog(nursery):
    server = await serving(nursery)
    account = server.account(Limits(handlers=1, backlog_bytes=3 * (REQUEST_BYTES + 7)))
    first, second = Source(server, account, "first"), Source(server, account, "second")
    assert first.ask(3) == [True] * 3
    assert second.ask(2) == [True, False]
    first.queue.abandon()
    assert second.ask(3) == [True, True, False]


async def test_handlers_of_a_lost_link_go_on_counting(nursery):
    """40 reconnections left 2,520 handlers running."""
    server = await serving(nursery)
    account = server.account()
    for _ in range(40):
        link = Source(server, account, "lost")
        link.ask(100)
        link.queue.abandon()
        await wait_all_tasks_blocked()
    assert account.handlers == len(server.begun) == 4
    await server.finish(4)
    assert account.handlers == account.backlog_bytes == 0


async def test_turns_go_round_by_account_and_then_by_link(nursery):
    """An account with ten links has no more turns than one with a single link."""
    server = await serving(nursery, handlers=1)
    many, few = server.account(), server.account()
    links = [Source(server, many, f"many {n}") for n in range(3)]
    for link in links:
        link.ask(2)
    alone = Source(server, few, "few")
    alone.ask(3)
    await wait_all_tasks_blocked()
    await server.finish(9)
    first = "many 0"
    assert server.begun[0] == first
    assert server.begun[1::2][:3] == ["few"] * 3
    others = [name for name in server.begun if name != "few"]
    assert sorted(others[1:4]) == ["many 0", "many 1", "many 2"]


async def test_some_handlers_are_kept_for_accounts_without_any(nursery):
    """Hanging handlers of some accounts must not keep another from its first."""
    server = await serving(nursery, handlers=16, reserve=0.125)
    for n in range(4):
        Source(server, server.account(), f"greedy {n}").ask(5)
    good = Source(server, server.account(), "good")
    good.ask(2)
    await wait_all_tasks_blocked()
    assert server.budget.handlers == 15
    assert server.begun.count("good") == 1


async def test_account_without_a_running_handler_is_served_first(nursery):
    server = await serving(nursery, handlers=2)
    busy, idle = Source(server, server.account(), "busy"), Source(server, server.account(), "idle")
    busy.ask(6)
    await wait_all_tasks_blocked()
    idle.ask()
    await server.finish(1)
    assert server.begun == ["busy", "busy", "idle"]


async def test_transfers_leave_half_of_the_handlers_to_data(nursery):
    server = await serving(nursery)
    account = server.account()
    one, other = Source(server, account, "one"), Source(server, account, "other")
    one.ask(4, Transfer("1"))
    other.ask(4, Transfer("1"))
    await wait_all_tasks_blocked()
    assert account.transfers == 2
    other.ask(2)
    await wait_all_tasks_blocked()
    assert account.handlers == 4
    await server.finish(10)
    assert (len(one.replies), len(other.replies)) == (4, 6)
    assert account.transfers == server.budget.transfers == 0


@pytest.mark.parametrize("accounts", [1, 50])
async def test_every_waiting_request_is_served_in_the_end(nursery, accounts):
    """A request that waits for a turn that never comes would never be answered."""
    server = await serving(nursery, handlers=5, handler_bytes=40, reserve=0.125)
    sources = [Source(server, server.account(), f"{n}") for n in range(accounts)]
    for source in sources:
        source.ask(3)
        source.ask(3, Transfer("1"))
    await server.finish(6 * accounts)
    assert [len(source.replies) for source in sources] == [6] * accounts
    assert server.budget.handlers == server.budget.backlog_bytes == server.budget.handler_bytes == 0
