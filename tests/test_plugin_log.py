"""What happens again and again is logged once, and then counted."""

import logging
from pathlib import Path

import pytest
import trio
from support.accounts import enter, open_accounts
from support.ledgers import HeldStore, open_journal, receive, settle
from trio.testing import MockClock

from trio_ledger_plugin import loopback_pair
from trio_ledger_plugin.codec import btp
from trio_ledger_plugin.log import StdlibLog
from trio_ledger_plugin.runtime import plugin_log
from trio_ledger_plugin.runtime.plugin_log import PluginLog
from trio_ledger_plugin.runtime.timers import Timers
from trio_ledger_plugin.secret import Secret
from trio_ledger_plugin.stores import MemoryStore, open_sqlite_store


@pytest.fixture
async def log(nursery: trio.Nursery, caplog: pytest.LogCaptureFixture) -> PluginLog:
    caplog.set_level(logging.DEBUG, "trio_ledger_plugin")
    timers = Timers()
    nursery.start_soon(timers.run, lambda: True)
    return PluginLog(StdlibLog(), [Secret("canary")], timers)


def lines(caplog: pytest.LogCaptureFixture) -> list[str]:
    """Return what was logged since the last call."""
    found = [f"{record.levelname} {record.message}" for record in caplog.records]
    caplog.clear()
    return found


async def test_flood_is_a_bounded_number_of_lines(
    autojump_clock: MockClock, log: PluginLog, caplog: pytest.LogCaptureFixture
) -> None:
    log.once("alice").warn("unreadable: %d", 0)
    await trio.sleep(0.5)
    for number in range(1, 7200):
        log.once("alice").warn("unreadable: %d", number)
        await trio.sleep(1)
    found = lines(caplog)
    assert found[:3] == [
        "WARNING unreadable: 0",
        "WARNING 60 more in 60 s: unreadable: 60",
        "WARNING 120 more in 120 s: unreadable: 180",
    ]
    assert len(found) == 7
    log.end()
    assert len(lines(caplog)) == 1


async def test_number_is_logged_when_the_flood_is_over(
    autojump_clock: MockClock, log: PluginLog, caplog: pytest.LogCaptureFixture
) -> None:
    for _ in range(5):
        log.once().error("the store fails")
    await trio.sleep(59)
    assert lines(caplog) == ["ERROR the store fails"]
    await trio.sleep(2)
    assert lines(caplog) == ["ERROR 4 more in 60 s: the store fails"]
    await trio.sleep(3600)
    assert lines(caplog) == []


async def test_number_is_logged_when_the_plugin_ends(
    autojump_clock: MockClock, log: PluginLog, caplog: pytest.LogCaptureFixture
) -> None:
    for _ in range(3):
        log.once().warn("again")
    log.end()
    assert lines(caplog) == ["WARNING again", "WARNING 2 more in 0 s: again"]
    log.once().warn("again")
    assert lines(caplog) == ["WARNING again"]


async def test_repetitions_are_counted_after_the_end_too(
    autojump_clock: MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    """The admin page still reads the store of a plugin that was closed; of its trouble there would be one line ever."""
    async with loopback_pair() as (plugin, _):
        await plugin.aclose()
        caplog.clear()
        for _ in range(121):
            plugin.log.once().warn("again")
            await trio.sleep(1)
        assert lines(caplog) == ["WARNING again", "WARNING 60 more in 60 s: again"]
        await trio.sleep(3600)
        plugin.log.once().warn("again")
        assert lines(caplog) == ["WARNING 60 more in 3661 s: again", "WARNING again"]


async def test_each_kind_and_each_name_is_logged(
    autojump_clock: MockClock, log: PluginLog, caplog: pytest.LogCaptureFixture
) -> None:
    """A flood must hide neither another trouble nor another peer."""
    for _ in range(100):
        log.once("alice").warn("unreadable")
    log.once("bob").warn("unreadable")
    log.once("alice").warn("read in part")
    assert lines(caplog) == ["WARNING unreadable"] * 2 + ["WARNING read in part"]


async def test_message_is_news_after_an_hour(
    autojump_clock: MockClock, log: PluginLog, caplog: pytest.LogCaptureFixture
) -> None:
    """A client with a wrong token tries again for as long as it runs: that is one line, and then counts."""
    log.once("a").warn("refused")
    await trio.sleep(3500)
    log.once("a").warn("refused")
    await trio.sleep(61)
    assert lines(caplog) == ["WARNING refused", "WARNING 1 more in 3540 s: refused"]
    await trio.sleep(3661)
    log.once("a").warn("refused")
    assert lines(caplog) == ["WARNING refused"]


async def test_memory_for_repeated_messages_is_bounded(
    autojump_clock: MockClock, log: PluginLog, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(plugin_log, "REMEMBERED", 3)
    for name in "aabcd":
        log.once(name).warn("from %s", name)
    assert lines(caplog) == [*(f"WARNING from {name}" for name in "abcd"), "WARNING 1 more in 0 s: from a"]
    assert len(log._repeated) == 3


async def test_number_has_neither_secrets_nor_tracebacks(
    autojump_clock: MockClock, log: PluginLog, caplog: pytest.LogCaptureFixture
) -> None:
    for _ in range(2):
        try:
            int("canary")
        except ValueError as error:
            log.once().error("failed: %O", error)
    assert "test_plugin_log" in lines(caplog)[0]
    log.end()
    (line,) = lines(caplog)
    assert line.startswith("ERROR 1 more in 0 s: failed: ValueError(")
    assert "canary" not in line


async def test_other_levels_are_not_counted(
    autojump_clock: MockClock, log: PluginLog, caplog: pytest.LogCaptureFixture
) -> None:
    for _ in range(2):
        log.once().info("that is %s", "new")
        log.once().debug("this too")
    assert lines(caplog) == ["INFO that is new", "DEBUG this too"] * 2


async def test_unreadable_messages_of_many_connections_are_counted(caplog: pytest.LogCaptureFixture) -> None:
    """The limit of a connection does not help against a client that connects again and again."""
    question = btp.encode_ilp(btp.MESSAGE, 9, b"")
    async with open_accounts(store=MemoryStore()) as plugin:
        for account in ("alice", "alice", "bob", "alice"):
            peer = await enter(plugin, account)
            await peer.send(*(peer.frame(b"nonsense") for _ in range(3)), peer.frame(question))
            await peer.receive_packet()
            await peer.aclose()
        unreadable = [line for line in lines(caplog) if "unreadable" in line]
        assert len(unreadable) == 2
    counts = [line.partition(" more in")[0] for line in lines(caplog) if "unreadable" in line]
    assert counts == ["WARNING 2", "WARNING 8"]


async def test_failing_store_is_logged_once(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Each transfer would be a line, on a disk that may be full."""
    async with open_sqlite_store(tmp_path / "money.db") as inner:
        store = HeldStore(inner)
        async with open_journal(store) as plugin:
            await settle(store)
            store.refuses = True
            for number in range(50):
                receive(plugin, number, f"{number}")
            await settle(store)
            found = lines(caplog)
        found += lines(caplog)
    refused = [line for line in found if "refused a transfer" in line]
    assert refused[0] == "ERROR refused a transfer of 5: the disk is full"
    assert [line.partition(" more in")[0] for line in refused[1:]] == ["ERROR 49"]
