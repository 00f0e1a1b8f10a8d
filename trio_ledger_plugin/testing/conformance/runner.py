"""Running the checks, and their outcomes."""

from __future__ import annotations

from enum import Enum
from typing import TYPE_CHECKING, Final

import trio
from attrs import frozen

from ...runtime.tasks import unwrap_group
from . import checks_connection, checks_data, checks_events, checks_handlers, checks_instance, checks_money
from .assertions import NonConformanceError
from .harness import Check, NotApplicableError, Stage
from .pair import InvalidFactoryError, PairFactory

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

__all__ = ["CHECKS", "Outcome", "Report", "Verdict", "check_factory", "run_check", "run_conformance"]

CHECKS: Final[tuple[Check, ...]] = (
    *checks_instance.CHECKS,
    *checks_connection.CHECKS,
    *checks_events.CHECKS,
    *checks_data.CHECKS,
    *checks_handlers.CHECKS,
    *checks_money.CHECKS,
)
# Seconds; no check needs more than one.
DEADLINE: Final = 20.0


class Verdict(Enum):
    """The verdict of a check.

    Attributes:
        PASSED: The plugin does what the sentence says.
        FAILED: It does not, or something else went wrong.
        NOT_APPLICABLE: The pair lacks what the check needs.
    """

    PASSED = "passed"
    FAILED = "failed"
    NOT_APPLICABLE = "not applicable"


@frozen
class Outcome:
    """The outcome of one check.

    Attributes:
        check: The check.
        verdict: Its verdict.
        error: Why it failed or is not applicable; None if it passed. ``NonConformanceError`` says what is wrong with
            the plugin; the plugin or the factory raised any other error unexpectedly.
    """

    check: Check
    verdict: Verdict
    error: Exception | None = None

    @property
    def detail(self) -> str:
        """Why it failed or is not applicable, as a text; empty if it passed."""
        if self.error is None:
            return ""
        if isinstance(self.error, NonConformanceError | NotApplicableError):
            return str(self.error)
        return f"{type(self.error).__name__}: {self.error}"


@frozen
class Report:
    """The outcomes of all checks.

    Attributes:
        outcomes: One for each check, in the order in which they ran.
    """

    outcomes: tuple[Outcome, ...]

    @property
    def passed(self) -> bool:
        """Whether no check failed and at least one passed."""
        return not self.of(Verdict.FAILED) and bool(self.of(Verdict.PASSED))

    def of(self, verdict: Verdict) -> tuple[Outcome, ...]:
        """Return the outcomes with a verdict."""
        return tuple(outcome for outcome in self.outcomes if outcome.verdict is verdict)

    def raise_failures(self) -> None:
        """Raise the errors of the checks that failed, if any.

        Raises:
            ExceptionGroup: The errors, each with the name of its check in a note.
        """
        failures: list[Exception] = []
        for outcome in self.of(Verdict.FAILED):
            assert outcome.error is not None
            outcome.error.add_note(f"check: {outcome.check.name} ({outcome.check.section})")
            failures.append(outcome.error)
        if failures:
            raise ExceptionGroup("the plugin does not conform", failures)


async def check_factory(factory: PairFactory, *, transactional: bool = False, deadline: float = DEADLINE) -> None:
    """Check that a factory gives pairs: open one, without connecting it.

    Args:
        factory: The factory.
        transactional: Whether both ends get a transactional store.
        deadline: Seconds until it counts as hanging.

    Raises:
        InvalidFactoryError: It gives something else, raises an error, or hangs.

    Cancellation: The pair is closed at once.
    """

    async def open_one(stage: Stage) -> None:
        async with stage.open(connect=False):
            pass

    outcome = await run_check(Check(open_one, ""), factory, transactional=transactional, deadline=deadline)
    if outcome.error is not None:
        raise InvalidFactoryError(f"the factory gives no pair: {outcome.detail}") from outcome.error


async def run_check(
    check: Check, factory: PairFactory, *, transactional: bool = False, deadline: float = DEADLINE
) -> Outcome:
    """Run one check.

    Args:
        check: The check.
        factory: Opens the pair of plugins; called again for each pair.
        transactional: Whether both ends get a transactional store.
        deadline: Seconds until the check counts as hanging.

    Raises:
        InvalidFactoryError: The factory gives no pairs.

    Cancellation: The pair is closed at once.
    """
    try:
        with trio.fail_after(deadline):
            await check.function(Stage(check, factory, transactional=transactional))
    except Exception as raised:  # noqa: BLE001 (the report has it)
        error = unwrap_group(raised)
        if isinstance(error, InvalidFactoryError):
            raise error from None
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
    """Run the conformance checks on a plugin.

    Args:
        factory: Opens a pair of plugins that are each other's peers; called again for each pair.
        transactional: Whether both ends get a transactional store. Run the checks with and without one.
        checks: The checks to run.
        deadline: Seconds until a check counts as hanging.
        tell: Called with each outcome as it comes.

    Raises:
        InvalidFactoryError: The factory gives no pairs.

    Cancellation: The pair is closed at once.
    """
    outcomes: list[Outcome] = []
    for check in checks:
        outcomes.append(await run_check(check, factory, transactional=transactional, deadline=deadline))
        if tell is not None:
            tell(outcomes[-1])
    return Report(tuple(outcomes))
