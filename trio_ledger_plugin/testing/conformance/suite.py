"""The checks as pytest tests. This module can be imported without pytest."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, ClassVar

import trio

from .runner import CHECKS, DEADLINE, Verdict, run_check

if TYPE_CHECKING:
    from collections.abc import Callable
    from contextlib import AbstractAsyncContextManager

    from .harness import Check
    from .pair import PairConfig, PairFactory, PluginPair

__all__ = ["ConformanceSuite", "make_check"]


class ConformanceSuite:
    """Every check as a test: subclass it, name the class ``Test...``, and write ``pair``.

    Each test has its own Trio run, so it needs no pytest plugin and works beside pytest-trio. A check that is not
    applicable is skipped with the reason.

    Attributes:
        transactional: Whether both ends get a transactional store.
        deadline: Seconds until a check counts as hanging.
    """

    transactional: ClassVar[bool] = False
    deadline: ClassVar[float] = DEADLINE

    def pair(self, conditions: PairConfig) -> AbstractAsyncContextManager[PluginPair]:
        """Give a pair of plugins that are each other's peers. A subclass writes this.

        Args:
            conditions: What the check needs of the pair.
        """
        raise NotImplementedError("a subclass of ConformanceSuite defines in pair() which plugins to check")


def make_check(check: Check, pair: PairFactory, *, transactional: bool = False, deadline: float = DEADLINE) -> None:
    """Run one check as a pytest test, in its own Trio run.

    Args:
        check: The check.
        pair: Opens the plugins.
        transactional: Whether both ends get a transactional store.
        deadline: Seconds until the check counts as hanging.

    Raises:
        Exception: The check failed. If it is not applicable, the test is skipped.
    """
    import pytest  # noqa: PLC0415 (programs that run no tests may lack it)

    outcome = trio.run(partial(run_check, check, pair, transactional=transactional, deadline=deadline))
    if outcome.verdict is Verdict.NOT_APPLICABLE:
        pytest.skip(f"not applicable: {outcome.detail}")
    if outcome.error is not None:
        raise outcome.error


def _as_test(check: Check) -> Callable[[ConformanceSuite], None]:
    def test(self: ConformanceSuite) -> None:
        make_check(check, self.pair, transactional=self.transactional, deadline=self.deadline)

    test.__doc__ = check.sentence
    return test


for _check in CHECKS:
    setattr(ConformanceSuite, f"test_{_check.name}", _as_test(_check))
