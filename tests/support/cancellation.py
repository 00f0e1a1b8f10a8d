"""Cancelling a call at each of its checkpoints."""

import pytest
import trio

__all__ = ["cancelled_at", "each_checkpoint"]


# More checkpoints than any of these calls has; a call that reaches it never ends.
MOST = 200


class _CancelAt(trio.abc.Instrument):
    """Cancels a scope when a task reaches its n-th checkpoint."""

    def __init__(self, task, scope, step):
        self._task, self._scope, self._left = task, scope, step

    def after_task_step(self, task):
        if task is self._task:
            self._left -= 1
            if self._left == 0:
                self._scope.cancel()


async def cancelled_at(step, function):
    """Run a call and cancel it at its n-th checkpoint; return whether it had that many."""
    with trio.fail_after(20), trio.CancelScope() as scope:
        instrument = _CancelAt(trio.lowlevel.current_task(), scope, step)
        trio.lowlevel.add_instrument(instrument)
        try:
            await function()
        finally:
            trio.lowlevel.remove_instrument(instrument)
    return scope.cancel_called


async def each_checkpoint(attempt):
    """Make an attempt for each checkpoint, until one completes without a cancellation."""
    for step in range(1, MOST):
        if not await attempt(step):
            assert step > 1, "the call has no checkpoint"
            return step
    return pytest.fail("the call has no end")
