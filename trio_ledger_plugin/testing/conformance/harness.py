"""Checks, and the pairs of plugins that they test.

Invariant: a check passes only if it has tested its sentence. If it cannot, it raises ``NotApplicableError``.
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
from .pair import PairConfig, PairFactory, PluginPair, open_pair

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable


__all__ = ["Check", "Level", "Listed", "NotApplicableError", "Stage"]

T = TypeVar("T")


class NotApplicableError(Exception):
    """The check does not apply to this pair; the text says what is missing."""


class Level(Enum):
    """How binding a sentence is.

    Attributes:
        MUST: RFC-0024 requires it.
        SHOULD: RFC-0024 recommends it.
        RULE: This package promises it of every plugin, beyond RFC-0024.
    """

    MUST = "must"
    SHOULD = "should"
    RULE = "rule"


@frozen
class Check:
    """One sentence, and the function that checks whether it is true of a plugin.

    The function tests the pairs that its stage opens, and returns if the sentence is true of them.

    Attributes:
        section: The heading in RFC-0024, or for a rule a topic such as ``events``.
        level: How binding it is.
        money: True if it applies only to plugins with money, False if only to plugins without; None for both.
        store: True if it needs a transactional store, False if it needs that there is none; None for both.
    """

    function: Callable[[Stage], Awaitable[None]]
    section: str
    level: Level = Level.MUST
    money: bool | None = None
    store: bool | None = None

    @property
    def name(self) -> str:
        """The check's name, which says what is true if it passes."""
        return self.function.__name__

    @property
    def sentence(self) -> str:
        """What is checked, in one or a few sentences."""
        return " ".join(cleandoc(self.function.__doc__ or "").split())

    def __str__(self) -> str:
        """Return the name."""
        return self.name


class Listed:
    """A decorator that makes functions into checks and lists them."""

    def __init__(self) -> None:
        self.checks: list[Check] = []

    def __call__(
        self, section: str, level: Level = Level.MUST, *, money: bool | None = None, store: bool | None = None
    ) -> Callable[[Callable[[Stage], Awaitable[None]]], Check]:
        """Make a function into a check; see ``Check`` for the arguments."""

        def make(function: Callable[[Stage], Awaitable[None]]) -> Check:
            self.checks.append(Check(function, section, level, money, store))
            return self.checks[-1]

        return make


class Stage:
    """Opens the pairs of one check.

    Args:
        check: The check.
        factory: The factory of the pair.
        transactional: Whether both ends get a transactional store.

    Raises:
        NotApplicableError: The check applies only with such a store, or only without.
    """

    def __init__(self, check: Check, factory: PairFactory, *, transactional: bool) -> None:
        self._check = check
        self._factory = factory
        self._transactional = transactional
        self._nursery: trio.Nursery | None = None
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
            silent: Whether to discard the messages of that plugin if ``log`` is None.
            limits: Options of both ends.

        Raises:
            InvalidFactoryError: The factory gives no pairs.
            NotApplicableError: The check applies only to plugins with money, or only to plugins without.
        """
        async with AsyncExitStack() as stack:
            ours = await self._open_store(stack)
            theirs = await self._open_store(stack)
            nursery = await stack.enter_async_context(_nursery())
            conditions = PairConfig(
                nursery=nursery,
                services=evolve(ours, log=Recorder() if log is None and silent else log),
                peer_services=evolve(theirs, log=Recorder()),
                limits=limits,
            )
            pair = await stack.enter_async_context(open_pair(self._factory, conditions))
            if self._check.money is True and not pair.has_money:
                raise NotApplicableError("the plugin has no money")
            if self._check.money is False and pair.has_money:
                raise NotApplicableError("is about plugins without money")
            self._nursery, self._tasks_before = nursery, nursery.child_tasks
            try:
                if connect:
                    await pair.connect()
                yield pair
            finally:
                nursery.cancel_scope.cancel()

    async def _open_store(self, stack: AsyncExitStack) -> PluginServices:
        if not self._transactional:
            return PluginServices()
        folder = stack.enter_context(TemporaryDirectory(prefix="conformance-"))
        store = await stack.enter_async_context(open_sqlite_store(Path(folder) / "store.db"))
        return PluginServices(store=store)

    def tasks_left(self) -> list[str]:
        """Return the names of the pair's running tasks that were started after it was connected."""
        assert self._nursery is not None
        return [task.name for task in self._nursery.child_tasks - self._tasks_before]

    def need(self, capability: T | None, what: str) -> T:
        """Return something that not every pair has.

        Raises:
            NotApplicableError: This pair lacks it.
        """
        if capability is None:
            raise NotApplicableError(f"the factory gives no {what}")
        return capability


@asynccontextmanager
async def _nursery() -> AsyncIterator[trio.Nursery]:
    """Give a nursery for plugins, in its own task: a plugin that fails must not cancel the check."""

    async def run(task_status: trio.TaskStatus[trio.Nursery]) -> None:
        try:
            async with trio.open_nursery() as nursery:
                task_status.started(nursery)
                await trio.sleep_forever()
        except* PluginFailedError:
            pass

    async with trio.open_nursery() as outer:
        nursery: trio.Nursery = await outer.start(run)
        try:
            yield nursery
        finally:
            nursery.cancel_scope.cancel()
