"""Money over BTP links: what is negotiated, what a hostile or broken peer can do, and what survives lost links."""

import gc
import json
import re
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from functools import partial
from typing import Any

import pytest
import trio
from attrs import evolve
from support.accounts import enter, hashed, open_accounts, options
from support.calls import start
from support.ledgers import (
    DAY,
    PEER_OFFER,
    WEEK,
    Handler,
    HeldStore,
    dial_keyed,
    keyed,
    new_store,
    settle,
    sqlite_store,
    states,
    sums,
    until,
)
from support.peers import BINARY, TOKEN, Peer, dial_in, listening, open_btp, serving, welcome
from trio.testing import wait_all_tasks_blocked

from trio_ledger_plugin import (
    MoneyLevel,
    MoneyLevelError,
    NotAcceptedError,
    PluginServices,
    RemoteError,
    TransferInDoubtError,
    UnreachableError,
    create_plugin,
    current_transfer,
    open_plugin,
)
from trio_ledger_plugin.accounts.account import AccountPlugin
from trio_ledger_plugin.btp.accounts import AccountsPlugin
from trio_ledger_plugin.btp.session import read_transfer, transfer_packet
from trio_ledger_plugin.codec import btp
from trio_ledger_plugin.errors import InvalidFieldsError
from trio_ledger_plugin.money import outcomes
from trio_ledger_plugin.negotiation import TRANSFER_KEYS, PeerJournal, PeerNumbers
from trio_ledger_plugin.stores import open_sqlite_store
from trio_ledger_plugin.testing.conformance.assertions import Recorder, echo
from trio_ledger_plugin.transfer import IDEMPOTENCY_KEY, TRANSFER_NUMBER, Transfer, TransferState

NOW = datetime(2024, 1, 1, tzinfo=UTC)


@pytest.fixture
async def other(tmp_path):
    async with open_sqlite_store(tmp_path / "other.db") as inner:
        yield HeldStore(inner)


@asynccontextmanager
async def listener(store, *, money_handler=None, transactional=None, **more):
    services = PluginServices(store=store)
    # Credited without a handler, too: most of these tests only look at the totals.
    if store is not None:
        more = {"accept_money": "journal", **more}
    async with open_btp(
        listening(**more), services, money_handler=money_handler, transactional_money_handler=transactional
    ) as plugin:
        yield plugin


async def give(peer, packet):
    """Send a transfer and return its reply."""
    await peer.send_packet(packet)
    return await peer.receive_packet()


def entry_of(packet, name):
    return next((entry.data for entry in packet.protocol_data if entry.protocol_name == name), None)


# Negotiation.

# What a peer may say about its journal, with its retention to fill in.
THEIRS = PeerJournal.of(PEER_OFFER)
OFFER = '{"retention": %s, "journal": "theirs", "age": 5}'


@new_store
@pytest.mark.parametrize(("offered", "kept"), [(WEEK, WEEK), (DAY, DAY), (365 * DAY, 30 * DAY)])
async def test_listener_agrees_to_keyed_with_a_peer_that_offers_it(store, offered, kept):
    async with listener(store) as plugin:
        peer, answer = await dial_keyed(plugin.address, offer=evolve(PEER_OFFER, retention=offered))
        told = json.loads(entry_of(answer, TRANSFER_KEYS))
        assert told["retention"] == WEEK
        assert re.fullmatch("[0-9a-f]{32}", told["journal"])
        assert 0 <= told["age"] < 60
        assert told["peer"] is None
        assert plugin.peer_journal().id == PEER_OFFER.journal
        assert plugin.peer_journal().retention == kept
        await peer.aclose()


async def test_journal_has_one_id_and_an_age_that_grows(store):
    told = []
    for _ in range(2):
        async with listener(store) as plugin:
            peer, answer = await dial_keyed(plugin.address)
            told.append(json.loads(entry_of(answer, TRANSFER_KEYS)))
            await peer.aclose()
    assert told[0]["journal"] == told[1]["journal"]
    assert told[0]["age"] < told[1]["age"]


@new_store
@pytest.mark.parametrize(
    "offer", [None, "", str(WEEK), OFFER % (DAY - 1), OFFER % -1, OFFER % "null", "{}", "[", "9" * 2000]
)
async def test_listener_is_plain_with_other_peers(store, offer):
    """A peer that removes keys within hours would credit a transfer again that is sent again later."""
    async with listener(store) as plugin:
        peer, answer = await dial_keyed(plugin.address, offer=offer)
        assert answer.protocol_data == ()
        assert plugin.peer_journal() is None
        await peer.aclose()


@new_store
@pytest.mark.parametrize("more", [{"money": "plain"}, None])
async def test_listener_without_keys_agrees_to_nothing(store, more):
    async with listener(None if more is None else store, **(more or {})) as plugin:
        peer, answer = await dial_keyed(plugin.address)
        assert answer.protocol_data == ()
        assert plugin.peer_journal() is None
        await peer.aclose()


@pytest.mark.parametrize(
    ("has_store", "answer", "agreed"),
    [
        (True, OFFER % WEEK, WEEK),
        (True, None, None),
        (True, OFFER % 3600, None),
        (True, "soon", None),
        (False, OFFER % WEEK, None),
    ],
)
async def test_client_is_keyed_only_if_both_ends_agree(store, has_store, answer, agreed):
    """An end must not use a level that it did not offer."""
    offers = []

    async def serve(stream):
        peer = await welcome(stream)
        packet = await peer.receive_packet()
        offers.append(entry_of(packet, TRANSFER_KEYS))
        entries = () if answer is None else (btp.ProtocolData(TRANSFER_KEYS, btp.JSON, answer.encode()),)
        await peer.send_packet(btp.Response(packet.request_id, entries))
        await peer.receive_close()

    async with (
        serving(serve) as url,
        open_btp({"server": url}, PluginServices(store=store if has_store else None)) as plugin,
    ):
        peer_journal = plugin.peer_journal()
        assert (None if peer_journal is None else peer_journal.retention) == agreed
    assert (offers[0] is not None) == has_store
    if has_store:
        assert json.loads(offers[0])["retention"] == WEEK


async def test_money_keyed_neither_sends_nor_accepts_at_plain(store):
    async with listener(store, money="keyed") as plugin:
        peer = await dial_in(plugin.address)
        with pytest.raises(MoneyLevelError):
            await plugin.send_money(5)
        refusal = await give(peer, btp.Transfer(9, 5))
        assert (refusal.code, refusal.name) == ("F00", "NotAcceptedError")
        assert await states(plugin) == {}
        await peer.aclose()


# Keys on the wire.


@pytest.mark.parametrize("key", [b"", b"k" * 65, "ü".encode(), b"\x80", b"\xff"])
async def test_bad_key_is_refused(store, key):
    async with listener(store) as plugin:
        peer, _ = await dial_keyed(plugin.address)
        refusal = await give(peer, keyed(9, 5, key))
        assert (refusal.code, refusal.name) == ("F01", "InvalidFieldsError")
        assert await states(plugin) == {}
        await peer.aclose()


@pytest.mark.parametrize("key", [b"k", b"k" * 64, b"a b", b"~", b"\x01\r\n\x1b\x7f"])
async def test_key_is_found_at_any_position_among_the_entries(store, key):
    async with listener(store) as plugin:
        peer, _ = await dial_keyed(plugin.address)
        before = (btp.ProtocolData("first", btp.OCTET_STREAM, b"1"), btp.ProtocolData("second", btp.TEXT, b"2"))
        assert isinstance(await give(peer, keyed(9, 5, key, *before)), btp.Response)
        assert list(await states(plugin)) == [key.decode()]
        await peer.aclose()


async def test_amount_of_zero_is_refused(store):
    async with listener(store) as plugin:
        peer, _ = await dial_keyed(plugin.address)
        assert (await give(peer, keyed(9, 0, b"k"))).code == "F01"
        assert await states(plugin) == {}
        await peer.aclose()


async def test_key_is_sent_at_keyed_only(store):
    for level in MoneyLevel:
        packet: Any = btp.decode(transfer_packet(7, Transfer("5", key="k", level=level, number=3), THEIRS))
        assert packet.amount == 5
        assert entry_of(packet, IDEMPOTENCY_KEY) == (b"k" if level is MoneyLevel.KEYED else None)
        assert entry_of(packet, TRANSFER_NUMBER) == (b"3" if level is MoneyLevel.KEYED else None)


def test_number_is_sent_to_peers_that_use_it_only():
    transfer = Transfer("5", key="k", level=MoneyLevel.KEYED, number=3)
    without = transfer_packet(7, evolve(transfer, number=0), THEIRS)
    assert transfer_packet(7, transfer, PeerJournal.of(evolve(PEER_OFFER, numbers=False))) == without
    assert transfer_packet(7, transfer, THEIRS) != without


def test_digest_is_the_same_for_a_resent_transfer():
    """The digest distinguishes a transfer that is sent again from another one under its key."""
    once: Any = btp.decode(transfer_packet(7, Transfer("5", key="k", level=MoneyLevel.KEYED), THEIRS))
    # A journal that was restored from a copy may give a transfer another number.
    again: Any = btp.decode(transfer_packet(8, Transfer("5", key="k", level=MoneyLevel.KEYED, number=9), THEIRS))
    read, repeated = read_transfer(once, "", THEIRS), read_transfer(again, "", THEIRS)
    assert read == repeated
    assert (read.number, repeated.number) == (0, 9)
    assert read.digest != read_transfer(evolve(once, amount=6), "", THEIRS).digest
    assert read_transfer(once, "", None) == Transfer("5")
    with pytest.raises(InvalidFieldsError):
        read_transfer(evolve(once, amount=0), "", None)


@pytest.mark.parametrize("digits", [b"", b"-1", b"+1", b"1.0", b" 1", b"x", b"1" * 16, b"\xd9\xa3", b"\xff"])
def test_odd_number_is_none(digits):
    """The key alone says which transfer it is."""
    entries = (btp.ProtocolData(IDEMPOTENCY_KEY, btp.TEXT, b"k"), btp.ProtocolData(TRANSFER_NUMBER, btp.TEXT, digits))
    assert read_transfer(btp.Transfer(7, 5, entries), "", THEIRS).number == 0


# Receiving.


async def test_sender_that_numbers_its_transfers_gets_receipts(store):
    async with listener(store, money_handler=Handler()) as plugin:
        peer, _ = await dial_keyed(plugin.address)
        number = btp.ProtocolData(TRANSFER_NUMBER, btp.TEXT, b"12")
        replies = [await give(peer, keyed(9, 5, key, number)) for key in (b"a", b"b", b"a")]
        assert [entry_of(reply, TRANSFER_NUMBER) for reply in replies] == [b"1", b"2", b"1"]
        offer = await plugin.money.make_offer("", PEER_OFFER)
        assert offer.peer == PeerNumbers(PEER_OFFER.journal, received=12, credited=2)
        await peer.aclose()


async def test_resent_transfer_gets_the_same_reply_and_has_one_effect(store):
    handler = Handler()
    async with listener(store, money_handler=handler) as plugin:
        peer, _ = await dial_keyed(plugin.address)
        assert await give(peer, keyed(9, 5, b"k")) == btp.Response(9)
        assert await give(peer, keyed(10, 5, b"k")) == btp.Response(10)
        await peer.aclose()
        peer, _ = await dial_keyed(plugin.address)
        assert await give(peer, keyed(1, 5, b"k")) == btp.Response(1)
        other = await give(peer, keyed(11, 6, b"k"))
        assert (other.code, other.name) == ("F05", "DuplicateIdError")
        await settle(store)
        assert handler.keys == ["k"]
        assert await sums(plugin) == (0, 5, 0)
        await peer.aclose()


async def test_concurrent_duplicates_have_one_effect(store):
    handler = Handler()
    async with listener(store, money_handler=handler) as plugin:
        peer, _ = await dial_keyed(plugin.address)
        await peer.send(*[peer.frame(btp.encode(keyed(number, 5, b"k"))) for number in range(1, 21)])
        answers = [await peer.receive_packet() for _ in range(20)]
        assert sorted(answer.request_id for answer in answers) == list(range(1, 21))
        assert all(isinstance(answer, btp.Response) for answer in answers)
        await settle(store)
        assert handler.keys == ["k"]
        assert await sums(plugin) == (0, 5, 0)
        await peer.aclose()


@pytest.mark.parametrize("error", [NotAcceptedError("not today"), RuntimeError("secret")])
async def test_stored_refusal_is_repeated_byte_for_byte(store, error):
    """A peer that got a reference with its refusal must not get another one, and the transfer must not be applied."""
    calls = []

    def handle(connection, transfer):
        calls.append(transfer.key)
        raise error

    async with listener(store, transactional=handle) as plugin:
        peer, _ = await dial_keyed(plugin.address)
        first = await give(peer, keyed(9, 5, b"k"))
        second = await give(peer, keyed(9, 5, b"k"))
        assert first.code == "F00"
        assert evolve(first, triggered_at=second.triggered_at) == second
        assert calls == ["k"]
        assert b"secret" not in first.data
        assert await sums(plugin) == (0, 0, 0)
        await peer.aclose()


async def test_keyed_account_refuses_a_transfer_without_a_key(store):
    """A peer that lost its journal does not know which transfers it has sent already."""
    async with listener(store) as plugin:
        peer, _ = await dial_keyed(plugin.address)
        assert await give(peer, keyed(9, 5, b"k")) == btp.Response(9)
        refusal = await give(peer, btp.Transfer(10, 5))
        assert (refusal.code, b"reset" in refusal.data) == ("F00", True)
        await peer.aclose()
        peer = await dial_in(plugin.address)
        assert (await give(peer, btp.Transfer(9, 5))).code == "F00"
        with pytest.raises(MoneyLevelError):
            await plugin.send_money(5)
        assert await sums(plugin) == (0, 5, 0)
        await plugin.transfers.reset_level()
        assert await give(peer, btp.Transfer(10, 5)) == btp.Response(10)
        assert await sums(plugin) == (0, 10, 0)
        await peer.aclose()


async def test_plain_transfer_gets_a_generated_key_in_the_journal(store):
    seen: list[Any] = []

    async def handle(amount):
        seen.append(current_transfer())

    async with listener(store, money_handler=handle) as plugin:
        peer = await dial_in(plugin.address)
        assert await give(peer, keyed(9, 5, b"theirs")) == btp.Response(9)
        assert await give(peer, keyed(10, 5, b"theirs")) == btp.Response(10)
        await settle(store)
        assert await sums(plugin) == (0, 10, 0)
        assert len({transfer.key for transfer in seen} - {"theirs"}) == 2
        # Nobody can send a PLAIN transfer again: it does not stay once it is delivered.
        assert await states(plugin) == {}
        assert "theirs" not in await states(plugin)
        assert {transfer.level for transfer in seen} == {MoneyLevel.PLAIN}
        await peer.aclose()


async def test_handler_timeout_sends_no_reply_to_a_transfer(store):
    async with listener(store, handler_timeout=0.05, ping_interval=0.05) as plugin:
        peer, _ = await dial_keyed(plugin.address)
        await settle(store)
        store.may_return = trio.Event()
        await peer.send_packet(keyed(9, 5, b"k"))
        with trio.move_on_after(0.3) as waiting:
            await peer.receive_packet()
        assert waiting.cancelled_caught
        store.may_return.set()
        assert await peer.receive_packet() == btp.Response(9)
        await peer.aclose()


async def test_link_lost_during_a_commit_leaves_one_effect(store):
    async with listener(store) as plugin:
        peer, _ = await dial_keyed(plugin.address)
        await settle(store)
        store.may_return = trio.Event()
        await peer.send_packet(keyed(9, 5, b"k"))
        await until(lambda: store.running)
        await peer.aclose()
        store.may_return.set()
        peer, _ = await dial_keyed(plugin.address)
        assert await give(peer, keyed(9, 5, b"k")) == btp.Response(9)
        assert await sums(plugin) == (0, 5, 0)
        await peer.aclose()


async def test_running_commit_is_acknowledged_when_the_nursery_ends(store):
    async with trio.open_nursery() as outer, listener(store) as plugin:
        peer, _ = await dial_keyed(plugin.address)
        await settle(store)
        store.may_return = trio.Event()
        await peer.send_packet(keyed(9, 5, b"k"))
        await until(lambda: store.running)
        began = trio.current_time()
        outer.cancel_scope.cancel()
        with trio.CancelScope(shield=True):
            await trio.sleep(0.05)
            store.may_return.set()
            assert await peer.receive_packet() == btp.Response(9)
            await peer.aclose()
    assert trio.current_time() - began < 0.6


# Both ends.


@asynccontextmanager
async def both(store, other, *, handler=None, **more):
    """A client that pays and a listener that is paid, each with its own store."""
    async with listener(other, money_handler=handler) as payee:
        url = payee.address.replace("btp+ws://", f"btp+ws://:{TOKEN}@")
        async with open_btp({"server": url, "accept_money": "journal", **more}, PluginServices(store=store)) as payer:
            yield payer, payee


async def test_money_goes_both_ways_at_keyed(store, other):
    handler = Handler()
    async with both(store, other, handler=handler) as (payer, payee):
        await payer.send_money("250", idempotency_key="k")
        await payer.send_money("250", idempotency_key="k")
        await payee.send_money(2**64 - 1)
        await settle(store, other)
        assert (await sums(payer), await sums(payee)) == ((250, 2**64 - 1, 0), (2**64 - 1, 250, 0))
        assert handler.keys == ["k"]
        entries = [entry async for entry in payer.transfers.walk(state=TransferState.ACKED)]
        assert [(entry.key, entry.level) for entry in entries] == [("k", MoneyLevel.KEYED)]


async def test_repeatedly_cut_link_neither_loses_nor_doubles_money(store, other):
    handler = Handler()
    async with both(store, other, handler=handler) as (payer, payee), trio.open_nursery() as nursery:
        await settle(store, other)
        for number in range(60):
            nursery.start_soon(lambda number: payer.send_money(10 + number, idempotency_key=f"k{number}"), number)
        for _ in range(6):
            await trio.sleep(0.005)
            link = payee._link
            if link is not None:
                link.abort("cut")
            await payer.wait_connected()
    await settle(store, other)
    total = sum(10 + number for number in range(60))
    assert sorted(handler.keys) == sorted(f"k{number}" for number in range(60))
    await_sums = []
    async with both(store, other) as (payer, payee):
        await_sums += [await sums(payer), await sums(payee)]
    assert await_sums == [(total, 0, 0), (0, total, 0)]


async def test_failing_store_of_the_payee_loses_no_money(store, other):
    async with both(store, other) as (payer, payee):
        await settle(store, other)
        other.refuses = True
        with pytest.raises(RemoteError) as caught:
            await payer.send_money(7, idempotency_key="k")
        assert caught.value.code == "T00"
        other.refuses = False
        await payer.send_money(7, idempotency_key="k")
        assert (await sums(payer), await sums(payee)) == ((7, 0, 0), (0, 7, 0))


async def test_plain_peer_that_drops_the_link_is_paid_only_once(store):
    taken = []

    async def serve(stream):
        peer = await welcome(stream)
        await peer.let_in()
        received = await peer.receive()
        if received.opcode == BINARY:
            taken.append(btp.decode(received.payload))
        await peer.aclose()

    async with serving(serve) as url, open_btp({"server": url}, PluginServices(store=store)) as plugin:
        with pytest.raises(TransferInDoubtError) as caught:
            await plugin.send_money(7)
        key = caught.value.key
        await plugin.wait_connected()
        with pytest.raises(TransferInDoubtError):
            await plugin.send_money(7, idempotency_key=key)
        await settle(store)
        assert len(taken) == 1
        assert await states(plugin) == {key: "in_doubt"}


# Accounts.


async def enter_keyed(plugin, account) -> Peer:
    peer, answer = await dial_keyed(plugin.address, account=account)
    assert entry_of(answer, TRANSFER_KEYS) is not None
    return peer


@new_store
async def test_keys_are_separate_for_each_account(store):
    """Otherwise one client's transfers could be taken for duplicates of another's."""
    async with open_accounts(options(acceptMoney="journal", generateAccount=False), store=store) as plugin:
        alice, bob = await enter_keyed(plugin, "alice"), await enter_keyed(plugin, "bob")
        assert await give(alice, keyed(9, 5, b"k")) == btp.Response(9)
        assert await give(bob, keyed(9, 6, b"k")) == btp.Response(9)
        assert await sums(plugin) == (0, 11, 0)
        assert await sums(plugin.account("alice")) == (0, 5, 0)
        assert await sums(plugin.account("bob")) == (0, 6, 0)
        entries = [(entry.account, entry.amount) async for entry in plugin.transfers.walk()]
        assert entries == [("alice", 5), ("bob", 6)]
        assert [entry.amount async for entry in plugin.account("bob").transfers.walk()] == [6]
        await alice.aclose()
        await bob.aclose()


async def test_accounts_money_handler_comes_before_the_servers(store):
    common, own = Handler(), Handler()
    async with open_accounts(options(acceptMoney="journal", generateAccount=False), store=store) as plugin:
        plugin.register_money_handler(common)
        plugin.account("alice").register_money_handler(own)
        for name in ("alice", "bob"):
            peer = await enter_keyed(plugin, name)
            assert await give(peer, keyed(9, 5, name.encode())) == btp.Response(9)
            await peer.aclose()
        await settle(store)
        assert (own.keys, common.keys) == (["alice"], ["bob"])


@new_store
async def test_transactional_handler_of_an_account_is_separate(store):
    def refuse(connection, transfer):
        raise NotAcceptedError(f"nothing from {transfer.account}")

    async with open_accounts(options(acceptMoney="journal", generateAccount=False), store=store) as plugin:
        plugin.account("alice").register_transactional_money_handler(refuse)
        alice, bob = await enter_keyed(plugin, "alice"), await enter_keyed(plugin, "bob")
        assert b"nothing from alice" in (await give(alice, keyed(9, 5, b"k"))).data
        assert await give(bob, keyed(9, 5, b"k")) == btp.Response(9)
        assert await sums(plugin) == (0, 5, 0)
        await alice.aclose()
        await bob.aclose()


@new_store
async def test_restart_resends_to_an_account_that_is_not_used(store):
    async with (
        open_accounts(options(acceptMoney="journal", generateAccount=False), store=store) as plugin,
        trio.open_nursery() as nursery,
    ):
        peer = await enter_keyed(plugin, "alice")
        outcome = await start(nursery, lambda: plugin.account("alice").send_money(7, idempotency_key="k"))
        assert entry_of(await peer.receive_packet(), IDEMPOTENCY_KEY) == b"k"
        await peer.aclose()
        nursery.cancel_scope.cancel()
    assert outcome == []
    async with open_accounts(options(acceptMoney="journal", generateAccount=False), store=store) as plugin:
        peer = await enter_keyed(plugin, "alice")
        packet = await peer.receive_packet()
        assert (packet.amount, entry_of(packet, IDEMPOTENCY_KEY)) == (7, b"k")
        await peer.send_packet(btp.Response(packet.request_id))
        await until(lambda: plugin.calls_in_flight() == 0)
        await settle(store)
        assert await sums(plugin) == (7, 0, 0)
        await peer.aclose()


@new_store
@pytest.mark.parametrize("asked", ["never", "before the client connected", "while a transfer was open"])
async def test_closed_account_leaves_its_transfers_to_the_next(store, asked):
    opts = options(acceptMoney="journal", generateAccount=False, close_timeout=0.05)
    async with open_accounts(opts, store=store) as plugin, trio.open_nursery() as nursery:
        peer = await enter_keyed(plugin, "alice")
        outcome = await start(nursery, lambda: plugin.account("alice").send_money(7, idempotency_key="k"))
        await peer.receive_packet()
        if asked == "while a transfer was open":
            await plugin.account("alice").aclose()
            await settle(store)
            assert isinstance(outcome[0], TransferInDoubtError)
            await peer.aclose()
            peer = await enter_keyed(plugin, "alice")
            assert entry_of(await peer.receive_packet(), IDEMPOTENCY_KEY) == b"k"
        await peer.aclose()
        nursery.cancel_scope.cancel()
    async with open_accounts(options(acceptMoney="journal", generateAccount=False), store=store) as plugin:
        if asked == "before the client connected":
            await plugin.account("alice").aclose()
        peer = await enter_keyed(plugin, "alice")
        with trio.fail_after(5):
            packet = await peer.receive_packet()
        assert entry_of(packet, IDEMPOTENCY_KEY) == b"k"
        await peer.send_packet(btp.Response(packet.request_id))
        await until(lambda: plugin.calls_in_flight() == 0)
        await settle(store)
        assert await states(plugin) == {"k": "acked"}
        await peer.aclose()


def count_account_plugins() -> int:
    gc.collect()
    return sum(isinstance(each, AccountPlugin) for each in gc.get_objects())


@new_store
async def test_account_that_was_asked_for_is_forgotten(store):
    """A handler that asks for the plugin of each of a million customers would keep them all."""
    async with open_accounts(options(acceptMoney="journal", generateAccount=False), store=store) as plugin:
        for number in range(20):
            name = f"customer-{number}"
            assert not plugin.account(name).is_connected()
            peer = await enter_keyed(plugin, name)
            assert plugin.account(name).is_connected()
            await settle(store)
            await peer.aclose()
            await until(lambda: not plugin.accounts())
        await until(lambda: not plugin.table)
        assert count_account_plugins() <= 1


@new_store
async def test_account_with_money_to_send_is_kept_until_it_is_sent(store):
    async with open_accounts(options(acceptMoney="journal", generateAccount=False), store=store) as plugin:
        peer = await enter_keyed(plugin, "alice")
        async with trio.open_nursery() as nursery:
            await start(nursery, lambda: plugin.account("alice").send_money(7, idempotency_key="k"))
            assert entry_of(await peer.receive_packet(), IDEMPOTENCY_KEY) == b"k"
            nursery.cancel_scope.cancel()
        await peer.aclose()
        await until(lambda: not plugin.accounts())
        await settle(store)
        assert count_account_plugins() == 1
        peer = await enter_keyed(plugin, "alice")
        packet = await peer.receive_packet()
        assert entry_of(packet, IDEMPOTENCY_KEY) == b"k"
        await peer.send_packet(btp.Response(packet.request_id))
        await until(lambda: plugin.calls_in_flight() == 0)
        await settle(store)
        assert await sums(plugin) == (7, 0, 0)
        await peer.aclose()
        await until(lambda: not plugin.table)
        assert count_account_plugins() <= 1


async def test_closed_account_withdraws_nothing_that_the_next_sends(store, monkeypatch):
    """The peer would have the money, but the journal would have no record of it."""
    monkeypatch.setattr(outcomes, "FIRST_PAUSE", 0.1)
    log, opts = Recorder(), options(acceptMoney="journal", generateAccount=False)
    async with open_accounts(opts, store=store, log=log) as plugin, trio.open_nursery() as nursery:
        alice = plugin.account("alice")
        peer = await enter_keyed(plugin, "alice")
        outcome = await start(nursery, lambda: alice.send_money(7, idempotency_key="k"))
        packet = await peer.receive_packet()
        store.refuses = True
        later = btp.Error(packet.request_id, "T00", "UnreachableError", NOW, b'{"message": "later"}')
        await peer.send_packet(later)
        await until(lambda: any("cannot record" in line for line in log.lines))
        with trio.CancelScope() as scope:
            scope.cancel()
            await alice.aclose()
        await until(lambda: outcome)
        assert isinstance(outcome[0], TransferInDoubtError)
        await peer.aclose()
        store.refuses = False
        following = plugin.account("alice")
        peer = await enter_keyed(plugin, "alice")
        packet = await peer.receive_packet()
        await plugin.tasks.wait_committed()
        await peer.send_packet(btp.Response(packet.request_id))
        await until(lambda: not following.calls_in_flight())
        await settle(store)
        assert await states(following) == {"k": "acked"}
        assert await sums(following) == (7, 0, 0)
        await peer.aclose()


@new_store
async def test_reconciliation_on_a_server_needs_the_account(store):
    async with (
        open_accounts(options(acceptMoney="journal", generateAccount=False), store=store) as plugin,
        trio.open_nursery() as nursery,
    ):
        for name in ("alice", "bob"):
            peer = await enter(plugin, name)
            send = partial(plugin.account(name).send_money, 7, idempotency_key="k")
            outcome = await start(nursery, send)
            await peer.receive_packet()
            await peer.aclose()
            await until(partial(len, outcome))
            assert isinstance(outcome[0], TransferInDoubtError)
        await settle(store)
        with pytest.raises(InvalidFieldsError, match="account is missing"):
            await plugin.transfers.confirm("k")
        await plugin.transfers.confirm("k", account="alice")
        with pytest.raises(InvalidFieldsError, match="shows 'bob'"):
            await plugin.account("bob").transfers.reject("k", account="alice")
        await plugin.account("bob").transfers.reject("k")
        assert await sums(plugin) == (7, 0, 0)
        assert [entry.state.value async for entry in plugin.transfers.walk()] == ["acked", "rejected"]


@new_store
async def test_server_itself_sends_no_money(store):
    async with open_accounts(options(acceptMoney="journal", generateAccount=False), store=store) as plugin:
        with pytest.raises(InvalidFieldsError, match=r"account\(name\)"):
            await plugin.send_money(5)
        assert await states(plugin) == {}


async def test_failing_store_of_a_server_is_a_temporary_refusal(store):
    async with open_accounts(options(acceptMoney="journal", generateAccount=False), store=store) as plugin:
        peer = await enter_keyed(plugin, "alice")
        await settle(store)
        store.refuses = True
        refusal = await give(peer, keyed(9, 5, b"k"))
        assert refusal.code == UnreachableError.code
        await peer.aclose()


@new_store
@pytest.mark.parametrize("kind", ["listener", "account", "account with a plugin of its own"])
async def test_commit_during_a_cancellation_is_acknowledged(store, kind):
    """Without the reply, a peer at PLAIN would be in doubt about money that has moved."""
    opts = (
        listening(accept_money="journal")
        if kind == "listener"
        else options(acceptMoney="journal", generateAccount=True)
    )
    scope = trio.CancelScope()

    async def serve(*, task_status):
        with scope:
            async with open_plugin(opts, PluginServices(store=store)) as plugin:
                if kind == "account with a plugin of its own":
                    assert isinstance(plugin, AccountsPlugin)
                    plugin.account(hashed(TOKEN))
                task_status.started(plugin.address)
                await trio.sleep_forever()

    async with trio.open_nursery() as nursery:
        peer = await dial_in(await nursery.start(serve))
        store.may_return = trio.Event()
        await peer.send_packet(btp.Transfer(7, 250, ()))
        await until(lambda: store.running)
        await wait_all_tasks_blocked(0.05)
        scope.cancel()
        await wait_all_tasks_blocked(0.02)
        store.may_return.set()
        assert await peer.receive_packet() == btp.Response(7)
        await peer.aclose()


@sqlite_store
async def test_account_is_resent_to_although_the_store_started_slowly(store):
    """It would wait for weeks if the network is good."""
    opts = options(acceptMoney="journal", generateAccount=True, closeTimeout=500)
    async with open_accounts(opts, store=store) as server, trio.open_nursery() as nursery:
        peer, _ = await dial_keyed(server.address)
        account = server.account(hashed(TOKEN))
        await account.wait_connected()
        await start(nursery, lambda: account.send_money(7, idempotency_key="invoice"))
        await peer.receive_packet()
        await peer.aclose()
        nursery.cancel_scope.cancel()
    store.may_begin = trio.Event()
    async with open_accounts(opts, store=store) as server:
        # The server listens after two seconds, although the store does not answer.
        peer, answer = await dial_keyed(server.address)
        assert answer.protocol_data == ()
        store.may_begin.set()
        # It is dropped once the journal is open, so that the client connects again, at KEYED.
        with trio.fail_after(5), pytest.raises(EOFError):
            await peer.receive()
        await peer.aclose()
        peer, answer = await dial_keyed(server.address)
        assert entry_of(answer, TRANSFER_KEYS) is not None
        assert (await server.transfers.totals()).in_doubt == 7
        with trio.fail_after(5):
            packet = await peer.receive_packet()
        assert isinstance(packet, btp.Transfer)
        assert packet.amount == 7
        await peer.aclose()


async def test_server_disconnect_releases_callers_paying_its_accounts(store):
    """While a handler runs, they would wait for the whole response timeout."""
    async with trio.open_nursery() as nursery:
        services = PluginServices(store=store)
        server = create_plugin(options(acceptMoney="journal", generateAccount=True), services, nursery=nursery)
        assert isinstance(server, AccountsPlugin)

        async def never(_: bytes) -> bytes:
            await trio.sleep_forever()

        server.register_data_handler(never)
        await server.connect()
        peer, _ = await dial_keyed(server.address)
        account = server.account(hashed(TOKEN))
        await account.wait_connected()
        await peer.send_request(9, b"goes on")
        paying = await start(nursery, lambda: account.send_money(5, idempotency_key="k"))
        await peer.receive_packet()
        await server.disconnect()
        await wait_all_tasks_blocked()
        assert isinstance(paying[0], TransferInDoubtError)
        await peer.aclose()
        nursery.cancel_scope.cancel()


async def test_hanging_store_does_not_block_data_requests(store):
    """Transfers that wait for a disk would occupy all handlers of the link."""

    async with open_btp(listening(max_handlers=8, close_timeout=0.1), PluginServices(store=store)) as plugin:
        plugin.register_data_handler(echo)
        peer = await dial_in(plugin.address)
        await wait_all_tasks_blocked(0.02)
        store.may_begin = trio.Event()
        for number in range(20):
            await peer.send_packet(btp.Transfer(1000 + number, 1, ()))
        await peer.send_request(5, b"hello")
        with trio.fail_after(5):
            answer = await peer.receive_packet()
            assert (answer.request_id, answer.protocol_data[0].data) == (5, b"hello")
            assert plugin.statistics().handlers_running == 4
            store.may_begin.set()
            assert {(await peer.receive_packet()).request_id for _ in range(20)} == set(range(1000, 1020))
        await peer.aclose()
