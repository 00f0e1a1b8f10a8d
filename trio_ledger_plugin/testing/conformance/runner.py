"""Running the checks, and what comes of it."""

from __future__ import annotations

from enum import Enum
from typing import TYPE_CHECKING, Final

import trio
from attrs import frozen

from ...runtime.tasks import unwrap_group
from . import checks_connection, checks_data, checks_events, checks_handlers, checks_instance, checks_money
from .assertions import NonConformanceError
from .harness import Check, NotApplicableError, Stage

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from .pair import PairFactory

__all__ = ["CHECKS", "Outcome", "Report", "Verdict", "run_check", "run_conformance"]

CHECKS: Final[tuple[Check, ...]] = (
    *checks_instance.CHECKS,
    *checks_connection.CHECKS,
    *checks_events.CHECKS,
    *checks_data.CHECKS,
    *checks_handlers.CHECKS,
    *checks_money.CHECKS,
)
# Past it a check hangs: none needs a second.
DEADLINE: Final = 20.0


class Verdict(Enum):
    """What came of a check.

    Attributes:
        PASSED: The plugin keeps the sentence.
        FAILED: It does not, or something else went wrong.
        NOT_APPLICABLE: It could not be looked at.
    """

    PASSED = "passed"
    FAILED = "failed"
    NOT_APPLICABLE = "not applicable"


@frozen
class Outcome:
    """What came of one check.

    Attributes:
        check: The check.
        verdict: What came of it.
        error: Why it failed, or is not applicable; None when it passed. ``NonConformanceError`` names what is wrong
            with the plugin; any other error left the plugin or the factory where none was due.
    """

    check: Check
    verdict: Verdict
    error: Exception | None = None

    @property
    def detail(self) -> str:
        """Why it failed, or is not applicable, in words; empty when it passed."""
        if self.error is None:
            return ""
        if isinstance(self.error, NonConformanceError | NotApplicableError):
            return str(self.error)
        return f"{type(self.error).__name__}: {self.error}"


@frozen
class Report:
    """What came of all the checks.

    Attributes:
        outcomes: One for each check, in the order in which they ran.
    """

    outcomes: tuple[Outcome, ...]

    @property
    def passed(self) -> bool:
        """Whether no check failed, and some passed."""
        return not self.of(Verdict.FAILED) and bool(self.of(Verdict.PASSED))

    def of(self, verdict: Verdict) -> tuple[Outcome, ...]:
        """Return the outcomes of one verdict."""
        return tuple(outcome for outcome in self.outcomes if outcome.verdict is verdict)

    def raise_failures(self) -> None:
        """Raise what failed, if anything did.

        Raises:
            ExceptionGroup: The errors of the checks that failed, each with its check in a note.
        """
        failures: list[Exception] = []
        for outcome in self.of(Verdict.FAILED):
            assert outcome.error is not None
            outcome.error.add_note(f"check: {outcome.check.name} ({outcome.check.section})")
            failures.append(outcome.error)
        if failures:
            raise ExceptionGroup("the plugin does not conform", failures)


async def run_check(
    check: Check, factory: PairFactory, *, transactional: bool = False, deadline: float = DEADLINE
) -> Outcome:
    """Run one check.

    Args:
        check: Which.
        factory: Gives the pair of plugins; called for each pair anew.
        transactional: Whether both ends get a transactional store.
        deadline: Seconds until the check is taken for one that hangs.

    Cancellation: The pair is closed at once.
    """
    try:
        with trio.fail_after(deadline):
            await check.function(Stage(check, factory, transactional=transactional))
    except Exception as raised:  # noqa: BLE001 (the report tells it)
        error = unwrap_group(raised)
        if isinstance(error, trio.TooSlowError):
            error = NonConformanceError(f"it hangs: {str(error) or f'not done after {deadline:g} s'}")
        verdict = Verdict.NOT_APPLICABLE if isinstance(error, NotApplicableError) else Verdict.FAILED
        return Outcome(check, verdict, error)
    return Outcome(check, Verdict.PASSED)


async def run_conformance(
    factory: PairFactory,
    *,
    transactional: bool = False,
    checks: Sequence[Check] = CHECKS,
    deadline: float = DEADLINE,
    tell: Callable[[Outcome], None] | None = None,
) -> Report:
    """Run the checks of the Ledger Plugin Interface on a plugin.

    Args:
        factory: Gives a pair of plugins that are each other's peers, for each check anew.
        transactional: Whether both ends get a transactional store; run the kit both with and without.
        checks: Which checks.
        deadline: Seconds until a check is taken for one that hangs.
        tell: Called with each outcome as it comes.

    Cancellation: The pair is closed at once.
    """
    outcomes: list[Outcome] = []
    for check in checks:
        outcomes.append(await run_check(check, factory, transactional=transactional, deadline=deadline))
        if tell is not None:
            tell(outcomes[-1])
    return Report(tuple(outcomes))
