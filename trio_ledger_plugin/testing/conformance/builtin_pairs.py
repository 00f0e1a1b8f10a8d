"""Pairs of this package's plugins: examples of factories, and the built-in ones of the command ``conformance``."""

from __future__ import annotations

from base64 import urlsafe_b64encode
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager
from functools import partial
from hashlib import sha256
from typing import TYPE_CHECKING, Any, Final
from uuid import uuid4

from ...btp.accounts import AccountsPlugin
from ...btp.plugin import BtpPlugin
from ...http.accounts import HttpAccountsPlugin
from ...http.plugin import HttpPlugin
from ...loopback import LoopbackPlugin
from ..proxy import FaultProxy, open_fault_proxy
from ..scripted_peer import dial_stream
from .pair import PairConfig, PairFactory, PluginPair

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Mapping, Sequence

    from ...btp.server import BtpServer
    from ...http.endpoint import HttpEndpoint

__all__ = [
    "FACTORIES",
    "btp_account",
    "btp_account_client",
    "btp_client",
    "btp_listener",
    "http",
    "http_account",
    "http_account_client",
    "loopback",
]

TOKEN: Final = "conformance-token-91c5e2"  # noqa: S105 (only for these checks)
# The name of an account whose client gives only a token.
ACCOUNT: Final = urlsafe_b64encode(sha256(TOKEN.encode()).digest()).decode().rstrip("=")
# Nothing listens on port 1.
NOWHERE: Final = "btp+ws://127.0.0.1:1"
SERVER: Final[Mapping[str, object]] = {
    "port": 0,
    "generate_account": True,
    "debug_host_ildcp_info": {"client_address": "test.conformance", "asset_scale": 9, "asset_code": "XRP"},
}


@asynccontextmanager
async def loopback(
    conditions: PairConfig, plugin_class: type[LoopbackPlugin] = LoopbackPlugin
) -> AsyncIterator[PluginPair]:
    """Give two plugins of one process."""
    name = f"conformance-{uuid4()}"
    yield PluginPair(
        plugin=conditions.make(plugin_class, {"name": name}),
        peer=conditions.of_peer.make(LoopbackPlugin, {"name": name}),
        new=conditions.new,
        options={"plugin": "loopback", "name": name},
    )


@asynccontextmanager
async def btp_client(conditions: PairConfig, plugin_class: type[BtpPlugin] = BtpPlugin) -> AsyncIterator[PluginPair]:
    """Give a client of a BTP server, and the listener that it dials."""
    listener = conditions.of_peer.make(BtpPlugin, {"listener": {"port": 0, "secret": TOKEN}})
    async with _network_to(listener) as network:
        url = _url(network)
        client = partial(conditions.make, plugin_class)
        # These plugins may share the store of the plugin under test.
        other = {"server": url, "ledger_id": "other"}
        yield PluginPair(
            plugin=client({"server": url, "btp_token": TOKEN}),
            peer=listener,
            new=conditions.new,
            options={"plugin": "btp", "server": url, "btp_token": TOKEN},
            without_credentials=partial(client, other),
            with_wrong_credentials=partial(client, {**other, "btp_token": f"not-{TOKEN}"}),
            unreachable=partial(client, {**other, "server": NOWHERE, "btp_token": TOKEN}),
            cut=network.cut,
            secrets=(TOKEN,),
        )


@asynccontextmanager
async def btp_listener(conditions: PairConfig, plugin_class: type[BtpPlugin] = BtpPlugin) -> AsyncIterator[PluginPair]:
    """Give a listener for one BTP client, and the client."""
    options: dict[str, object] = {"listener": {"port": 0, "secret": TOKEN}}
    listener = conditions.make(plugin_class, options)
    async with _network_to(listener) as network:
        yield PluginPair(
            plugin=listener,
            peer=conditions.of_peer.make(BtpPlugin, {"server": _url(network), "btp_token": TOKEN}),
            peer_dials=True,
            new=conditions.new,
            options={"plugin": "btp", **options},
            cut=network.cut,
            secrets=(TOKEN,),
        )


@asynccontextmanager
async def btp_account(conditions: PairConfig) -> AsyncIterator[PluginPair]:
    """Give one account of a server with many, and its client."""
    async with _account_and_client(conditions, conditions.of_peer) as (server, client, network):
        yield PluginPair(
            plugin=server.account(ACCOUNT),
            peer=client,
            peer_dials=True,
            stays_disconnected=False,
            new=conditions.new,
            options={"plugin": "btp-accounts", **SERVER},
            cut=network.cut,
            secrets=(TOKEN,),
        )


@asynccontextmanager
async def btp_account_client(conditions: PairConfig) -> AsyncIterator[PluginPair]:
    """Give the client of one account of a server with many, and the account."""
    async with _account_and_client(conditions.of_peer, conditions) as (server, client, network):
        yield PluginPair(plugin=client, peer=server.account(ACCOUNT), cut=network.cut, secrets=(TOKEN,))


@asynccontextmanager
async def _account_and_client(
    of_server: PairConfig, of_client: PairConfig
) -> AsyncIterator[tuple[AccountsPlugin, BtpPlugin, FaultProxy]]:
    server = of_server.make(AccountsPlugin, SERVER)
    await server.connect()
    async with _network_to(server) as network:
        client = of_client.make(BtpPlugin, {"server": _url(network), "btp_token": TOKEN})
        yield server, client, network


# HTTP has no connection that lasts, and no codes for errors but those of ILP packets, which the checks do not send.
HTTP: Final[Mapping[str, Any]] = {"has_money": False, "notices_losses": False, "carries_codes": False}


@asynccontextmanager
async def http(conditions: PairConfig) -> AsyncIterator[PluginPair]:
    """Give two ends of ILP over HTTP, each of which serves the other."""
    ends: list[HttpPlugin] = []
    async with AsyncExitStack() as stack:
        networks = [await stack.enter_async_context(_network_to_end(ends, number)) for number in (0, 1)]
        fields = [
            {
                "incoming": {"port": 0, "static_token": TOKEN},
                "outgoing": {"url": _http_url(networks[other]), "static_token": TOKEN},
            }
            for other in (1, 0)
        ]
        ends += conditions.make(HttpPlugin, fields[0]), conditions.of_peer.make(HttpPlugin, fields[1])
        yield PluginPair(
            plugin=ends[0],
            peer=ends[1],
            new=conditions.new,
            options={"plugin": "http", **fields[0]},
            secrets=(TOKEN,),
            **HTTP,
        )


@asynccontextmanager
async def http_account(conditions: PairConfig) -> AsyncIterator[PluginPair]:
    """Give one account of a server with many, and its client."""
    async with _http_account_and_client(conditions, conditions.of_peer) as (server, client, fields):
        yield PluginPair(
            plugin=server.account(ACCOUNT),
            peer=client,
            new=conditions.new,
            options={"plugin": "http-accounts", **fields},
            secrets=(TOKEN,),
            **HTTP,
        )


@asynccontextmanager
async def http_account_client(conditions: PairConfig) -> AsyncIterator[PluginPair]:
    """Give the client of one account of a server with many, and the account."""
    async with _http_account_and_client(conditions.of_peer, conditions) as (server, client, _):
        yield PluginPair(plugin=client, peer=server.account(ACCOUNT), secrets=(TOKEN,), **HTTP)


@asynccontextmanager
async def _http_account_and_client(
    of_server: PairConfig, of_client: PairConfig
) -> AsyncIterator[tuple[HttpAccountsPlugin, HttpPlugin, Mapping[str, object]]]:
    ends: list[HttpEndpoint] = []
    async with _network_to_end(ends, 0) as to_server, _network_to_end(ends, 1) as to_client:
        fields: Mapping[str, object] = {
            "incoming": {"port": 0},
            "outgoing": {"url": f"{_http_url(to_client)}/%", "static_token": TOKEN},
            "generate_account": True,
            "ildcp": SERVER["debug_host_ildcp_info"],
        }
        server = of_server.make(HttpAccountsPlugin, fields)
        await server.connect()
        client = of_client.make(
            HttpPlugin,
            {
                "incoming": {"port": 0, "static_token": TOKEN},
                "outgoing": {"url": _http_url(to_server), "static_token": TOKEN},
            },
        )
        ends += server, client
        yield server, client, fields


def _network_to_end(ends: Sequence[HttpEndpoint], number: int) -> AbstractAsyncContextManager[FaultProxy]:
    return open_fault_proxy(lambda: dial_stream(ends[number].address))


def _http_url(network: FaultProxy) -> str:
    assert network.address is not None
    return "http://{}:{}".format(*network.address)


@asynccontextmanager
async def _network_to(server: BtpServer) -> AsyncIterator[FaultProxy]:
    """Give a network to a server that can be cut. Each connection goes to the server's address at that time."""
    async with open_fault_proxy(lambda: dial_stream(server.address)) as network:
        yield network


def _url(network: FaultProxy) -> str:
    assert network.address is not None
    return "btp+ws://{}:{}".format(*network.address)


FACTORIES: Final[Mapping[str, Mapping[str, PairFactory]]] = {
    "loopback": {"loopback": loopback},
    "btp": {"btp client": btp_client, "btp listener": btp_listener},
    "btp-accounts": {"btp account": btp_account, "btp account's client": btp_account_client},
    "http": {"http": http},
    "http-accounts": {"http account": http_account, "http account's client": http_account_client},
}
