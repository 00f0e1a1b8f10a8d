"""The checks as tests of pytest; this module can be imported without pytest."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, ClassVar

import trio

from .runner import CHECKS, Verdict, run_check

if TYPE_CHECKING:
    from collections.abc import Callable
    from contextlib import AbstractAsyncContextManager

    from .harness import Check
    from .pair import PairConfig, PairFactory, PluginPair

__all__ = ["ConformanceSuite", "make_check"]


class ConformanceSuite:
    """Every check as a test: subclass it, name the class ``Test...``, and write ``pair``.

    Each test has a Trio run of its own, so that they need no plugin of pytest's, and get along with pytest-trio. A
    check that is not applicable is skipped, with the reason.

    Attributes:
        transactional: Whether both ends get a transactional store.
        deadline: Seconds until a check is taken for one that hangs.
    """

    transactional: ClassVar[bool] = False
    deadline: ClassVar[float] = 20.0

    def pair(self, conditions: PairConfig) -> AbstractAsyncContextManager[PluginPair]:
        """Give a pair of plugins that are each other's peers; what a subclass writes.

        Args:
            conditions: What the check asks of the pair.
        """
        raise NotImplementedError("a subclass of ConformanceSuite says in pair() which plugins to check")


def make_check(check: Check, pair: PairFactory, *, transactional: bool = False, deadline: float = 20.0) -> None:
    """Make one check in a Trio run of its own, as a test of pytest's.

    Args:
        check: The check.
        pair: Gives the plugins.
        transactional: Whether both ends get a transactional store.
        deadline: Seconds until the check is taken for one that hangs.

    Raises:
        Exception: What is wrong with the plugin; a check that is not applicable is skipped.
    """
    import pytest  # noqa: PLC0415 (whoever runs no tests need not have it)

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
