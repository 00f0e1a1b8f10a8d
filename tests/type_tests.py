"""Read by mypy, never run: what a program that uses the public names may rely on."""

from __future__ import annotations

from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, assert_type

import trio

from trio_ledger_plugin import (
    AccountConnected,
    AccountDisconnected,
    AccountPlugin,
    AccountsOptions,
    AccountsPlugin,
    BtpOptions,
    BtpPlugin,
    Connected,
    ConnectOptions,
    Disconnected,
    EventsDropped,
    ExchangePlugin,
    Failed,
    HttpAccountsOptions,
    HttpAccountsPlugin,
    HttpOptions,
    HttpPlugin,
    IncomingOptions,
    InsufficientBalanceError,
    InvalidFieldsError,
    JournalEntry,
    LedgerPlugin,
    LedgerPluginError,
    ListenerOptions,
    Log,
    LoopbackOptions,
    LoopbackPlugin,
    MoneyLevel,
    PluginOptions,
    PluginServices,
    RemoteError,
    Store,
    Totals,
    TransactionalStore,
    TransferDirection,
    TransferInDoubtError,
    Transfers,
    TransferState,
    create_plugin,
    current_transfer,
    loopback_pair,
    open_plugin,
    options_from_environment,
)
from trio_ledger_plugin.accounts.account import AccountSnapshot
from trio_ledger_plugin.events import Event
from trio_ledger_plugin.http.asgi import AsgiApp
from trio_ledger_plugin.log import StdlibLog
from trio_ledger_plugin.secret import Secret
from trio_ledger_plugin.statistics import Statistics
from trio_ledger_plugin.stores import MemoryStore, SqliteStore, open_sqlite_store
from trio_ledger_plugin.telemetry import Telemetry
from trio_ledger_plugin.testing import (
    ConformanceSuite,
    FaultProxy,
    FaultyLoopback,
    open_fault_proxy,
    open_faulty_loopback,
    open_scripted_server,
    run_conformance,
)
from trio_ledger_plugin.testing.conformance import Report
from trio_ledger_plugin.transfer import Transfer

if TYPE_CHECKING:
    import sqlite3
    from collections.abc import AsyncIterator, Awaitable, Callable, Mapping

    from trio_ledger_plugin.testing import PairConfig, PluginPair
    from trio_ledger_plugin.testing.conformance import PairFactory


async def on_data(data: bytes) -> bytes:
    return data


async def on_money(amount: str) -> None:
    transfer = current_transfer()
    assert_type(transfer, Transfer)
    assert_type(transfer.amount, str)
    assert_type(transfer.account, str)
    assert_type(transfer.key, str | None)


class OnData:
    async def __call__(self, data: bytes) -> bytes:
        return data


async def opening(nursery: trio.Nursery, opts: Mapping[str, object]) -> None:
    services = PluginServices(store=MemoryStore(), log=StdlibLog())
    connect = ConnectOptions(timeout=5000)
    async with open_plugin(
        opts, services, connect=connect, data_handler=on_data, money_handler=on_money, nursery=nursery
    ) as plugin:
        assert_type(plugin, LedgerPlugin)
    async with open_plugin({"plugin": "btp", "server": "btp+ws://a:b@localhost"}, data_handler=OnData()):
        pass
    async with open_plugin(LoopbackOptions(name="x")):
        pass
    async with open_plugin(BtpOptions(listener=ListenerOptions(0, Secret("s")))):
        pass
    async with open_plugin(options_from_environment()):
        pass
    async with loopback_pair() as pair:
        assert_type(pair, tuple[LoopbackPlugin, LoopbackPlugin])
    assert_type(create_plugin(opts, nursery=nursery), LedgerPlugin)
    assert_type(options_from_environment({}), dict[str, object])
    open_plugin("btp")  # type: ignore[call-overload]  # a name is no mapping
    open_plugin(opts, data_handler=lambda data: data)  # type: ignore[arg-type, return-value]  # handlers are async
    open_plugin(opts, connect=5000)  # type: ignore[call-overload]  # a ConnectOptions
    create_plugin(opts)  # type: ignore[call-overload]  # needs a nursery for its tasks
    with open_plugin(opts):  # type: ignore[attr-defined]  # async with
        pass
    await open_plugin(opts)  # type: ignore[misc]  # likewise
    await open_plugin(opts).send_data(b"")  # type: ignore[attr-defined]  # likewise
    try:
        BtpOptions(server="btp+wss://h", btp_token="t", max_handler_bytes=1)
    except InvalidFieldsError as error:
        assert_type(error.problems, tuple[tuple[str, str], ...])


async def opening_by_options(nursery: trio.Nursery, incoming: IncomingOptions, stream: trio.SocketStream) -> None:
    """The class of the options object says which plugin it is."""
    async with open_plugin(AccountsOptions(port=0), data_handler=on_data) as accounts:
        assert_type(accounts, AccountsPlugin)
        assert_type(accounts.account("alice"), AccountPlugin)
        assert_type(accounts.accounts()[0], AccountSnapshot)
        await accounts.serve_stream(stream)
        accounts.acount("alice")  # type: ignore[attr-defined]  # a slip of the finger
    async with open_plugin(BtpOptions(server="btp+wss://h"), nursery=nursery) as btp:
        assert_type(btp, BtpPlugin)
    async with open_plugin(HttpOptions(incoming=incoming)) as http:
        assert_type(http, HttpPlugin)
        assert_type(http.asgi_app, AsgiApp)
    async with open_plugin(HttpAccountsOptions(incoming=incoming)) as http_accounts:
        assert_type(http_accounts, HttpAccountsPlugin)
    async with open_plugin(LoopbackOptions()) as loopback:
        assert_type(loopback, LoopbackPlugin)
    assert_type(create_plugin(AccountsOptions(), nursery=nursery), AccountsPlugin)
    assert_type(create_plugin(LoopbackOptions(), nursery=nursery), LoopbackPlugin)
    plugins: list[LedgerPlugin] = [accounts, btp, http, http_accounts, loopback]
    assert_type(plugins[0].options, PluginOptions)
    subclass: type[ExchangePlugin] = LoopbackPlugin
    assert_type(subclass, type[ExchangePlugin])


async def using(plugin: LedgerPlugin) -> None:
    assert_type(plugin.version, int)
    assert_type(await plugin.send_data(b""), bytes)
    await plugin.send_data(bytearray(b""))
    await plugin.send_data(memoryview(b""))
    assert_type(plugin.is_connected(), bool)
    assert_type(plugin.statistics(), Statistics)
    assert_type(plugin.statistics().calls_in_flight, int)
    assert_type(plugin.events, trio.MemoryReceiveChannel[Event])
    await plugin.send_money("5", idempotency_key="k")
    await plugin.send_money(5)
    await plugin.send_money(5.0)  # type: ignore[arg-type]  # money is exact
    await plugin.send_data("text")  # type: ignore[arg-type]  # data is bytes
    plugin.register_data_handler(on_data)
    plugin.register_data_handler(OnData())
    plugin.register_data_handler(on_money)  # type: ignore[arg-type]  # takes text, gives nothing
    plugin.register_money_handler(on_money)
    plugin.register_money_handler(on_data)  # type: ignore[arg-type]  # takes bytes
    await plugin.connect(ConnectOptions(timeout=float("inf")))
    await plugin.connect(ConnectOptions())


def on_transfer(connection: sqlite3.Connection, transfer: Transfer) -> None:
    assert_type(transfer.amount, str)


async def on_async_transfer(connection: sqlite3.Connection, transfer: Transfer) -> None:
    pass


async def keeping_books(opts: Mapping[str, object]) -> None:
    async with open_sqlite_store("wallet.db") as database:
        assert_type(database, SqliteStore)
        transactional: TransactionalStore[sqlite3.Connection] = database
        services = PluginServices(store=transactional)
        async with open_plugin(opts, services, transactional_money_handler=on_transfer) as plugin:
            assert_type(plugin.transfers, Transfers)
            totals = await plugin.transfers.totals()
            assert_type(totals, Totals)
            assert_type(totals.in_doubt, int)
            async for entry in plugin.transfers.walk(state=TransferState.IN_DOUBT, direction=TransferDirection.OUT):
                assert_type(entry, JournalEntry)
                assert_type(entry.key, str)
                assert_type(entry.level, MoneyLevel)
                await plugin.transfers.confirm(entry.key)
            plugin.register_transactional_money_handler(on_transfer)
            plugin.register_transactional_money_handler(on_async_transfer)  # type: ignore[arg-type]  # a plain function
            plugin.transfers.walk(state="in_doubt")  # type: ignore[arg-type]  # an enum's member


def observing(plugin: LedgerPlugin) -> None:
    telemetry = Telemetry()
    telemetry.observe(plugin, account="alice")
    telemetry.observe("alice")  # type: ignore[arg-type]  # a plugin


async def testing(pair: PairFactory, serve: Callable[[trio.SocketStream], Awaitable[None]]) -> None:
    async with open_fault_proxy(("127.0.0.1", 7768)) as proxy:
        assert_type(proxy, FaultProxy)
    async with open_faulty_loopback() as faulty:
        assert_type(faulty, FaultyLoopback)
    async with open_scripted_server(serve) as url:
        assert_type(url, str)
    report = await run_conformance(pair, transactional=True)
    assert_type(report, Report)
    assert_type(report.passed, bool)


async def make_subject(conditions: PairConfig) -> PluginPair:
    raise NotImplementedError


class TestMyPlugin(ConformanceSuite):
    @asynccontextmanager
    async def pair(self, conditions: PairConfig) -> AsyncIterator[PluginPair]:
        yield await make_subject(conditions)


async def reading(plugin: LedgerPlugin) -> str:
    async for event in plugin.events:
        match event:
            case Connected():
                return "connected"
            case Disconnected(reason=reason):
                assert_type(reason, str)
            case Failed(error=error):
                assert_type(error, Exception)
            case EventsDropped(count=count):
                assert_type(count, int)
            case AccountConnected(name=name) | AccountDisconnected(name=name):
                assert_type(name, str)
    return "closed"


def inspecting(error: LedgerPluginError, remote: RemoteError, doubt: TransferInDoubtError) -> None:
    assert_type(error.name, str)
    assert_type(InsufficientBalanceError.code, str)
    assert_type(remote.code, str)
    assert_type(remote.data, bytes)
    assert_type(doubt.key, str)
    assert_type(doubt.amount, str)


class HostStore:
    """A service of the application needs no base class."""

    async def put(self, key: str, value: str) -> None: ...

    async def get(self, key: str) -> str | None: ...

    async def delete(self, key: str) -> None: ...


store: Store = HostStore()
log: Log = StdlibLog()
