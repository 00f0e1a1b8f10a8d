"""A receiver of payments survives ``kill -9`` at any moment: a hundred kills of many.

Were this to fail, an application would credit a payment twice, or never. ``nox -s crash`` kills more.
"""

import os

import pytest
from payments import run

pytestmark = [pytest.mark.slow, pytest.mark.skipif(os.name != "posix", reason="needs SIGKILL")]


async def test_killed_receiver_books_each_fulfilled_packet_once(tmp_path):
    result = await run(100, 1, tmp_path)
    assert result.kills == 100
    assert result.fulfilled > 200
    # Packets met their receiver's death between their booking and their Fulfill, and came again.
    assert result.repeated > 10
