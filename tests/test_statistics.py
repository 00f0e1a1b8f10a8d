"""The counters of a plugin."""

from attrs import fields

from trio_ledger_plugin.statistics import GAUGES, Counters, Statistics

NAMES = [each.name for each in fields(Counters)]


def test_every_counter_is_added_and_taken_away():
    """A server's statistics would lack what its accounts have counted."""
    total, other = (Counters(**{name: times * number for number, name in enumerate(NAMES, 1)}) for times in (100, 1))
    total.add(other)
    assert total == Counters(**{name: 101 * number for number, name in enumerate(NAMES, 1)})
    total.add(other, -1)
    assert total == Counters(**{name: 100 * number for number, name in enumerate(NAMES, 1)})


def test_every_statistic_is_a_counter_or_a_gauge():
    """A metric of the wrong kind gives nonsense rates."""
    names = {each.name for each in fields(Statistics)}
    assert names >= GAUGES
    assert names - GAUGES == {*NAMES, "events_dropped"}
