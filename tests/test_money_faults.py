"""On failing disks, no money is lost or doubled, and data requests continue."""

from contextlib import AsyncExitStack, suppress
from functools import partial
from itertools import count
from random import Random

import pytest
import trio
from support.faulty_vfs import faulty_vfs

from trio_ledger_plugin import (
    PluginServices,
    RemoteError,
    StoreError,
    TransferInDoubtError,
    open_plugin,
)
from trio_ledger_plugin.loopback import LoopbackOptions
from trio_ledger_plugin.stores import open_sqlite_store
from trio_ledger_plugin.testing.conformance.assertions import echo

pytestmark = pytest.mark.slow

AMOUNTS = {f"key-{i}": 10**i for i in range(6)}
TOTAL = sum(AMOUNTS.values())
KNOWN = {"acknowledged", "refused here", "refused there: T00"}
# With a fault of each kind at each of them: 208 points in total.
POINTS = 26
# Much longer than the transactions of a transfer in doubt and their retries take.
TIMEOUT = 0.1
# The disk of a busy machine may be slower than that; so long it is not.
NEXT_DAY = 15.0


@pytest.fixture
def faults():
    with faulty_vfs() as faults:
        yield faults


def book(connection, transfer):
    """Write to the application's own table, as a transactional money handler does."""
    connection.execute("CREATE TABLE IF NOT EXISTS book (key TEXT, amount TEXT)")
    connection.execute("INSERT INTO book VALUES (?, ?)", (transfer.key, transfer.amount))


async def pay(plugin, key, outcomes):
    """Send one transfer and record its outcome."""
    try:
        await plugin.send_money(AMOUNTS[key], idempotency_key=key)
    except TransferInDoubtError as error:
        outcomes[key] = f"in doubt: {error.key} of {error.amount}"
    except StoreError:
        outcomes[key] = "refused here"
    except RemoteError as error:
        outcomes[key] = f"refused there: {error.code}"
    else:
        outcomes[key] = "acknowledged"


async def day(directory, name, inject, outcomes):
    """Open both ends, each with its own store, and send all transfers at once, and a data request."""
    async with AsyncExitStack() as stack:
        first = await stack.enter_async_context(open_sqlite_store(directory / "payer.db"))
        second = await stack.enter_async_context(open_sqlite_store(directory / "payee.db"))
        options = LoopbackOptions(name=name, response_timeout=TIMEOUT, close_timeout=0.1)
        payee = await stack.enter_async_context(
            open_plugin(options, PluginServices(store=second), data_handler=echo, transactional_money_handler=book)
        )
        payer = await stack.enter_async_context(open_plugin(options, PluginServices(store=first)))
        inject()
        async with trio.open_nursery() as nursery:
            for key in AMOUNTS:
                nursery.start_soon(pay, payer, key, outcomes)
        assert await payer.send_data(b"data goes on") == b"data goes on"
        with suppress(StoreError):
            return (
                await payer.transfers.totals(),
                await payee.transfers.totals(),
                await second.transaction(read_book),
            )
    return None


def read_book(connection):
    with suppress(Exception):
        return sorted(connection.execute("SELECT key, amount FROM book").fetchall())
    return []


async def count_operations(faults, directory):
    directory.mkdir()
    before = 0

    def begin():
        nonlocal before
        before = faults.operations

    await day(directory, "counted", begin, {})
    return faults.operations - before


async def check_the_next_day(directory, name, outcomes):
    """Send under every key again: each transfer is acknowledged, and the sums agree to the unit."""
    again: dict[str, str] = {}
    until = trio.current_time() + NEXT_DAY
    for attempt in count():
        payer, payee, entries = await day(directory, f"{name}, again {attempt}", lambda: None, again)
        if set(again.values()) == {"acknowledged"} or trio.current_time() > until:
            break
    assert set(again.values()) == {"acknowledged"}, (outcomes, again)
    assert (payer.sent, payer.in_doubt) == (TOTAL, 0)
    assert payee.received == TOTAL
    assert entries == sorted((key, str(amount)) for key, amount in AMOUNTS.items())


@pytest.mark.parametrize("forever", [False, True], ids=["once", "for good"])
@pytest.mark.parametrize("kind", ["ioerr", "full"])
async def test_failing_disk_loses_and_doubles_no_money(tmp_path, faults, kind, forever):
    total = await count_operations(faults, tmp_path / "counted")
    words: set[str] = set()
    for point in range(POINTS):
        after = 1 + point * total // POINTS
        directory = tmp_path / str(point)
        directory.mkdir()
        outcomes: dict[str, str] = {}
        await day(
            directory, str(point), lambda after=after: faults.arm(after=after, kind=kind, forever=forever), outcomes
        )
        faults.disarm()
        words.update(outcomes.values())
        assert set(outcomes.values()) <= {*KNOWN, *(f"in doubt: {key} of {amount}" for key, amount in AMOUNTS.items())}
        await check_the_next_day(directory, str(point), outcomes)
    assert "acknowledged" in words
    if forever:
        assert len(words) > 1, "with a dead disk, money is refused"
    elif kind == "ioerr":
        assert words == {"acknowledged"}, "a temporary error costs no transfer"


@pytest.mark.parametrize("random", [None, Random(1), Random(2), Random(3)], ids=["nothing", "some", "others", "more"])
async def test_loss_of_power_loses_and_doubles_no_money(tmp_path, faults, random):
    """Data that was not synced is gone, or is there in part."""
    total = await count_operations(faults, tmp_path / "counted")
    acknowledged = 0
    for point in range(POINTS):
        after = 1 + point * total // POINTS
        directory = tmp_path / str(point)
        directory.mkdir()
        outcomes: dict[str, str] = {}
        await day(directory, str(point), partial(faults.arm, after=after, kind="crash"), outcomes)
        faults.recover(random)
        acknowledged += list(outcomes.values()).count("acknowledged")
        await check_the_next_day(directory, str(point), outcomes)
    assert acknowledged > 0
