"""What a check is made of, and the pairs of plugins that it looks at.

The law of this module: a check passes only when it has looked. What it cannot look at, it says.
"""

from __future__ import annotations

from contextlib import AsyncExitStack, asynccontextmanager
from enum import Enum
from inspect import cleandoc
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, TypeVar

import trio
from attrs import evolve, frozen

from ...errors import PluginFailedError
from ...services import Log, PluginServices
from ...stores import open_sqlite_store
from .assertions import Recorder
from .pair import PairConfig, PairFactory, PluginPair

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable


__all__ = ["Check", "Level", "Listed", "NotApplicableError", "Stage"]

T = TypeVar("T")


class NotApplicableError(Exception):
    """The check cannot be made of this pair; the text says what is missing."""


class Level(Enum):
    """How binding a sentence is.

    Attributes:
        MUST: RFC-0024 demands it.
        SHOULD: RFC-0024 recommends it.
        RULE: This package promises it of every plugin, beyond RFC-0024.
    """

    MUST = "must"
    SHOULD = "should"
    RULE = "rule"


@frozen
class Check:
    """One sentence, and the function that finds out whether a plugin keeps it.

    The function looks at the pairs that its stage opens, and returns when they keep the sentence.

    Attributes:
        section: Where the sentence stands: a heading of RFC-0024, or ``events`` and the like for a rule.
        level: How binding it is.
        money: Whether it is about plugins with money only (True), or without only (False).
        store: Whether it needs a transactional store (True) or that there is none (False).
    """

    function: Callable[[Stage], Awaitable[None]]
    section: str
    level: Level = Level.MUST
    money: bool | None = None
    store: bool | None = None

    @property
    def name(self) -> str:
        """The check's name, which says what is so when it passes."""
        return self.function.__name__

    @property
    def sentence(self) -> str:
        """What is checked, in one sentence or a few."""
        return " ".join(cleandoc(self.function.__doc__ or "").split())

    def __str__(self) -> str:
        """Return the name."""
        return self.name


class Listed:
    """A list of checks that fills itself: an object of it decorates the functions."""

    def __init__(self) -> None:
        self.checks: list[Check] = []

    def __call__(
        self, section: str, level: Level = Level.MUST, *, money: bool | None = None, store: bool | None = None
    ) -> Callable[[Callable[[Stage], Awaitable[None]]], Check]:
        """Make a check of a function; see ``Check`` for the arguments."""

        def make(function: Callable[[Stage], Awaitable[None]]) -> Check:
            self.checks.append(Check(function, section, level, money, store))
            return self.checks[-1]

        return make


class Stage:
    """Where one check gets its pairs from.

    Args:
        check: The check.
        factory: The author's.
        transactional: Whether both ends get a transactional store.

    Raises:
        NotApplicableError: The check is about plugins with such a store, or about those without.
    """

    def __init__(self, check: Check, factory: PairFactory, *, transactional: bool) -> None:
        self._check = check
        self._factory = factory
        self._transactional = transactional
        self._home: trio.Nursery | None = None
        self._tasks_before: frozenset[trio.lowlevel.Task] = frozenset()
        if check.store is True and not transactional:
            raise NotApplicableError("needs a transactional store; run the kit with one")
        if check.store is False and transactional:
            raise NotApplicableError("is about plugins without a transactional store")

    @asynccontextmanager
    async def open(
        self, *, log: Log | None = None, connect: bool = True, silent: bool = True, **limits: object
    ) -> AsyncIterator[PluginPair]:
        """Open a pair for the length of a block.

        Args:
            log: The log of the plugin under test.
            connect: Whether to connect the two.
            silent: Whether to give it a log that nobody sees where ``log`` is None.
            limits: Options of both ends.

        Raises:
            NotApplicableError: The check is about plugins with money, or about those without.
        """
        async with AsyncExitStack() as stack:
            ours = await self._open_store(stack)
            theirs = await self._open_store(stack)
            home = await stack.enter_async_context(_home())
            conditions = PairConfig(
                nursery=home,
                services=evolve(ours, log=Recorder() if log is None and silent else log),
                peer_services=evolve(theirs, log=Recorder()),
                limits=limits,
            )
            subject = await stack.enter_async_context(self._factory(conditions))
            if self._check.money is True and not subject.has_money:
                raise NotApplicableError("the plugin has no money")
            if self._check.money is False and subject.has_money:
                raise NotApplicableError("is about plugins without money")
            self._home, self._tasks_before = home, home.child_tasks
            try:
                if connect:
                    await subject.connect()
                yield subject
            finally:
                home.cancel_scope.cancel()

    async def _open_store(self, stack: AsyncExitStack) -> PluginServices:
        if not self._transactional:
            return PluginServices()
        folder = stack.enter_context(TemporaryDirectory(prefix="conformance-"))
        store = await stack.enter_async_context(open_sqlite_store(Path(folder) / "store.db"))
        return PluginServices(store=store)

    def tasks_left(self) -> list[str]:
        """Return the names of the tasks of the pair that run now, and did not before it was connected."""
        assert self._home is not None
        return [task.name for task in self._home.child_tasks - self._tasks_before]

    def need(self, capability: T | None, what: str) -> T:
        """Return something that not every pair has.

        Raises:
            NotApplicableError: This one has not.
        """
        if capability is None:
            raise NotApplicableError(f"the factory gives no {what}")
        return capability


@asynccontextmanager
async def _home() -> AsyncIterator[trio.Nursery]:
    """Give a nursery for plugins, in a task of its own: a plugin that fails must not cancel the check."""

    async def run(task_status: trio.TaskStatus[trio.Nursery]) -> None:
        try:
            async with trio.open_nursery() as home:
                task_status.started(home)
                await trio.sleep_forever()
        except* PluginFailedError:
            pass

    async with trio.open_nursery() as outer:
        home: trio.Nursery = await outer.start(run)
        try:
            yield home
        finally:
            home.cancel_scope.cancel()
