"""Every call has one outcome, and no other call's: ``nox -s outcomes`` makes a million of them.

Were this to fail, a caller would wait for ever, act twice, or take another payment's answer for its own.
"""

import pytest

from .outcomes import GRACE, TIMEOUT, run

pytestmark = pytest.mark.slow

CALLS, FAULTS = 200_000, 5_000


async def test_every_call_has_its_own_single_outcome():
    result = await run(CALLS, FAULTS, seed=20180831)
    assert result.outcomes.total() > CALLS
    assert set(result.outcomes) == {"answered", "ConnectionLostError", "NotConnectedError", "ResponseTimeoutError"}
    assert result.unexpected > 0
    assert result.outcomes["answered"] > CALLS // 2
    assert result.slowest <= TIMEOUT + GRACE
    assert result.faults.total() >= FAULTS * 0.9
    assert set(result.faults) == {"cut", "reset", "stall", "delay", "slice"}
    assert result.links > FAULTS // 10
