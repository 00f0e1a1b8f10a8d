"""Money survives ``kill -9`` of either end at any moment, and every loss of the network: a few kills of many.

Were one of these to fail, a user would lose money, or pay twice. ``nox -s crash`` kills a thousand.
"""

import os

import pytest
from harness import VARIANTS, run

pytestmark = [pytest.mark.slow, pytest.mark.skipif(os.name != "posix", reason="needs SIGKILL")]

KILLS = {"outbox": 4, "transactional": 4, "both ways": 4, "accounts": 4, "accounts, both ways": 4, "plain, no store": 4}
KILLS |= {"other stores": 8, "other stores, both ways": 4}


@pytest.mark.parametrize(("seed", "name"), list(enumerate(VARIANTS)))
async def test_no_unit_is_lost_or_doubled(seed, name, tmp_path):
    result = await run(VARIANTS[name], KILLS.get(name, 2), seed, tmp_path)
    assert result.transfers > 0
    assert result.units > 0
