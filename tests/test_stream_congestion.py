"""Payments share a path: each gets its part, and together they use it."""

from support.congestion import share_path


async def test_two_payments_share_a_path_fairly_and_use_it(autojump_clock):
    """A sender that does not give way starves others; one that gives way for too long wastes the path."""
    shares = await share_path(100, (1500, 700), later=5)
    together = shares.together()
    assert len(together) > 6
    used = [sum(column) / len(together) for column in zip(*together, strict=True)]
    assert min(used) > 25
    assert sum(used) > 70
    fulfilled = sum(shares.first.values()) + sum(shares.second.values())
    assert fulfilled == 2200
    assert shares.refused < fulfilled / 5
