"""Ctrl-C ends a busy program as ``KeyboardInterrupt``, wherever it comes.

Were this to fail, nothing would be drained, the peers would not be told, and no ``finally`` would run in order.
"""

import os
import sys
from pathlib import Path

import pytest
import trio

pytestmark = pytest.mark.skipif(os.name != "posix", reason="sends POSIX signals")

TESTS = Path(__file__).parents[1]


async def interrupts(*args: str) -> str:
    done = await trio.run_process(
        [sys.executable, "-m", "faults.interrupts", *args], cwd=TESTS, capture_stdout=True, check=False
    )
    return done.stdout.decode().strip()


async def test_random_interruptions():
    assert (await interrupts("--runs", "10")).endswith("{'KeyboardInterrupt': 10}")


@pytest.mark.slow
async def test_two_hundred_random_interruptions():
    assert (await interrupts("--runs", "200")).endswith("{'KeyboardInterrupt': 200}")


@pytest.mark.parametrize("waiter", ["Call", "Waiter", "_Worker", "Job", "_Reading"])
async def test_interruption_as_a_task_parks(waiter: str):
    assert (await interrupts("--at", waiter)).endswith("{'KeyboardInterrupt': 1}")
