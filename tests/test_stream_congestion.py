"""Payments share a path: each gets its part, and together they use it."""

from support.congestion import share_path

# Trio runs tasks in a random order, so that one run says little about how many packets are refused.
RUNS = 3


async def test_two_payments_share_a_path_fairly_and_use_it(autojump_clock):
    """A sender that does not give way starves others; one that gives way for too long wastes the path."""
    fulfilled = refused = 0
    for _ in range(RUNS):
        shares = await share_path(100, (1500, 700), later=5)
        together = shares.together()
        assert len(together) > 6
        used = [sum(column) / len(together) for column in zip(*together, strict=True)]
        assert min(used) > 25
        assert sum(used) > 70
        fulfilled += sum(shares.first.values()) + sum(shares.second.values())
        refused += shares.refused
    assert fulfilled == RUNS * 2200
    assert refused < fulfilled / 5
