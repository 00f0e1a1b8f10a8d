"""Mistakes of newcomers, each with its error text, in Python and on the command line.

A text that changes is changed here on purpose: it says what is wrong, and what to do.
"""

import asyncio
import gc
import logging
import re
import socket
import traceback
from collections.abc import Awaitable, Callable, Generator
from functools import partial, wraps
from inspect import signature
from typing import Any
from unittest.mock import AsyncMock, Mock

import pytest
import trio
from support.ports import free_port
from support.programs import run

from trio_ledger_plugin import (
    ConnectOptions,
    ConnectTimeoutError,
    DataHandlerAlreadyRegisteredError,
    DecodeError,
    InvalidFieldsError,
    InvalidServicesError,
    MoneyHandlerAlreadyRegisteredError,
    NotAcceptedError,
    NotConnectedError,
    PluginClosedError,
    PluginServices,
    RemoteError,
    StoreError,
    create_plugin,
    fetch_ildcp,
    loopback_pair,
    open_plugin,
)
from trio_ledger_plugin.stores import open_sqlite_store
from trio_ledger_plugin.testing.conformance.assertions import echo

# Many of them start a program.
pytestmark = pytest.mark.slow

TOKEN = "newcomers-token"
CLIENT = {"server": f"btp+ws://alice:{TOKEN}@localhost:7768"}
ACCOUNTS = {
    "plugin": "btp-accounts",
    "port": 0,
    "debugHostIldcpInfo": {"clientAddress": "example.host", "assetScale": 9, "assetCode": "XRP"},
}
# Type checkers know what is wrong with these uses.
UNCHECKED_OPEN: Any = open_plugin
UNCHECKED_CREATE: Any = create_plugin
HOW_TO_OPEN = "a plugin is opened with 'async with open_plugin(...) as plugin:'"


async def discard(amount: str) -> None:
    pass


async def opened(opts: Any, services: Any = None, **more: Any) -> None:
    async with open_plugin(opts, services, **more):
        pass


async def read_error(kind: type[Exception], mistake: Callable[[], Awaitable[object]]) -> str:
    """Make a mistake; return the error text, which holds no token."""
    with pytest.raises(kind) as caught:
        await mistake()
    assert TOKEN not in str(caught.value)
    return str(caught.value)


# The URL


@pytest.mark.parametrize(
    ("server", "problem"),
    [
        ("ws://alice:{}@localhost", "begins with 'ws://', must begin with 'btp+ws://'"),
        ("http://alice:{}@localhost", "begins with 'http://', must begin with 'btp+ws://'"),
        ("https://alice:{}@localhost", "begins with 'https://', must begin with 'btp+wss://'"),
        ("alice:{}@localhost:7768", "must begin with 'btp+wss://' (TLS) or 'btp+ws://'"),
        ("btp+ws://", "names no host, must be like 'btp+wss://connector.example/path'"),
        (
            "btp+ws://localhost:alice:{}",
            "has a bad host, must be a name in ASCII, an IPv4 address, or an IPv6 address in []",
        ),
        ("btp+ws://alice:{}@localhost:99999", "has a bad port, must be a number from 1 to 65535"),
    ],
)
async def test_invalid_url(server, problem):
    server = server.format(TOKEN)
    text = await read_error(InvalidFieldsError, partial(opened, {"server": server}))
    assert text == f"BtpOptions, 1 wrong:\n- server: {problem}"
    if server.startswith("http"):
        # The command speaks HTTP as well.
        return
    code, _, stderr = await run("ping", server)
    assert (code, stderr) == (2, f"error: the URL {problem}; see trio-ledger-plugin ping --help\n")


@pytest.mark.parametrize("mark", ["/", "#", "?"])
async def test_token_with_a_character_that_ends_the_host(mark):
    """The bad port of the text would be a part of the token."""
    server = f"btp+ws://alice:to{mark}{TOKEN}@localhost:7768"
    problem = f"has a {mark!r} before its '@', must have none in the account and the token: "
    problem += "btp_account and btp_token take every character"
    text = await read_error(InvalidFieldsError, partial(opened, {"server": server}))
    assert text == f"BtpOptions, 1 wrong:\n- server: {problem}"
    code, _, stderr = await run("ping", server)
    hint = "here the token can be in TRIO_LEDGER_PLUGIN_SECRET"
    assert (code, stderr) == (2, f"error: the URL {problem}; {hint}; see trio-ledger-plugin ping --help\n")
    # If what comes first looks like a host, only the token is missing.
    text = await read_error(InvalidFieldsError, partial(opened, {"server": f"btp+ws://alice/{TOKEN}@localhost"}))
    assert text.endswith("; the URL has its @ behind the host, which a '/', '?' or '#' ends")


@pytest.mark.parametrize("token", ["a%2Fb", "a=b"])
async def test_token_with_a_percent_sign(token):
    """A newcomer encodes a slash by hand, and the server knows the slash."""
    async with open_plugin({"listener": {"port": 0, "secret": "a/b" if "%" in token else "a=b"}}) as server:
        url = server.address.replace("://", f"://alice:{token}@")
        text = await read_error(NotAcceptedError, partial(opened, {"server": url}))
        assert text.endswith(
            ": invalid auth_token; a % in the URL's account or token is sent as it stands there, as by ilp-plugin-btp: "
            "if the server knows other characters, give them as btp_account and btp_token"
        )


async def test_web_server_that_is_no_btp_endpoint():
    """A proxy may show a page for a moment, so it is tried again; what is wrong is told."""
    incoming = {"port": 0, "staticToken": TOKEN}
    async with open_plugin({"plugin": "http", "incoming": incoming}) as server:
        url = server.address.replace("http://", f"btp+ws://alice:{TOKEN}@")
        text = await read_error(ConnectTimeoutError, partial(opened, {"server": url}, connect=ConnectOptions(1_000)))
        assert text == (
            "not connected within 1 s: the WebSocket handshake was answered with a page, HTTP 200: a web server is "
            "there, and no BTP endpoint at this URL; check its host, port and path"
        )


async def test_a_token_in_the_clear_to_another_machine():
    server = f"btp+ws://alice:{TOKEN}@connector.example"
    problem = "not set, and the token would go to 'connector.example' unencrypted; "
    problem += "the server must be btp+wss:// (or set this)"
    text = await read_error(InvalidFieldsError, partial(opened, {"server": server}))
    assert text == f"BtpOptions, 1 wrong:\n- allow_insecure: {problem}"
    code, _, stderr = await run("ping", server)
    assert code == 2
    assert stderr == f"error: --allow-insecure: {problem}; see trio-ledger-plugin ping --help\n"


async def test_no_token():
    text = await read_error(InvalidFieldsError, partial(opened, {"server": "btp+ws://localhost"}))
    assert text == (
        "credentials are missing: put account and token into the server URL (btp+wss://account:token@host/path) "
        "or into btp_account and btp_token"
    )
    code, _, stderr = await run("ping", "btp+ws://localhost")
    problem = "the URL has no token, as in ACCOUNT:TOKEN@HOST, and TRIO_LEDGER_PLUGIN_SECRET is not set"
    assert (code, stderr) == (2, f"error: {problem}; see trio-ledger-plugin ping --help\n")


# The network


async def test_nothing_listens_there():
    port = free_port()
    server = f"btp+ws://alice:{TOKEN}@127.0.0.1:{port}"
    problem = f"cannot connect to btp+ws://127.0.0.1:{port}: Connection refused"
    text = await read_error(ConnectTimeoutError, partial(opened, {"server": server}, connect=ConnectOptions(300)))
    assert text == f"not connected within 0.3 s: {problem}"
    code, _, stderr = await run("ping", server, "--timeout", "0.3")
    hint = "is the server running, and are host and port right?"
    assert (code, stderr) == (3, f"error: not connected within 0.3 s: {problem}; {hint}\n")


@pytest.mark.parametrize("options", [{"timeout": 5}, {"timeout": 99.9}])
async def test_timeout_that_was_meant_in_seconds(options):
    """The error did not say that 5 are milliseconds."""
    server = f"btp+ws://alice:{TOKEN}@127.0.0.1:{free_port()}"
    text = await read_error(ConnectTimeoutError, partial(opened, {"server": server}, connect=ConnectOptions(**options)))
    hint = "(timeout is in milliseconds; ConnectOptions(seconds=...) takes seconds)"
    assert text.startswith(f"not connected within {options['timeout'] / 1000:g} s {hint}")


async def test_short_time_that_is_no_timeout_of_connect_has_no_hint():
    """A reader of the command line would look for an option that it does not have."""
    server = f"btp+ws://alice:{TOKEN}@127.0.0.1:{free_port()}"
    text = await read_error(ConnectTimeoutError, partial(opened, {"server": server, "connect_timeout": 0.005}))
    assert text.startswith("not connected within 0.005 s")
    assert "milliseconds" not in text


async def test_name_with_two_addresses_where_nothing_listens():
    """The traceback had a page for each address."""

    class TwoAddresses(trio.abc.HostnameResolver):
        async def getaddrinfo(self, *_: object) -> list[Any]:
            stream = socket.SOCK_STREAM
            return [(socket.AF_INET, stream, 6, "", (f"127.0.0.{last}", port)) for last in (1, 2)]

        async def getnameinfo(self, *_: object) -> tuple[str, str]:
            raise AssertionError("there is no request")

    port = free_port()
    trio.socket.set_custom_hostname_resolver(TwoAddresses())
    server = f"btp+ws://alice:{TOKEN}@two.localhost:{port}"
    with pytest.raises(ConnectTimeoutError) as caught:
        await opened({"server": server}, connect=ConnectOptions(300))
    problem = f"cannot connect to btp+ws://two.localhost:{port}: Connection refused"
    assert str(caught.value) == f"not connected within 0.3 s: {problem}"
    assert "Group" not in "".join(traceback.format_exception(caught.value))


async def test_tls_to_a_server_without_it():
    async with open_plugin({"listener": {"port": 0, "secret": TOKEN}}) as server:
        address = server.address.replace("btp+ws://", "btp+wss://")
        url = address.replace("://", f"://alice:{TOKEN}@")
        # OpenSSL's own words stand in between; they differ between its versions.
        wanted = (
            rf"not connected within 0\.3 s: TLS with {re.escape(address)} failed: \[SSL: .*\] .*"
            r"; does the server speak TLS\? if not, its URL begins with btp\+ws://"
        )
        text = await read_error(ConnectTimeoutError, partial(opened, {"server": url}, connect=ConnectOptions(300)))
        assert re.fullmatch(wanted, text)
        code, _, stderr = await run("ping", url, "--timeout", "0.3")
        assert code == 3
        assert re.fullmatch(f"error: {wanted}\n", stderr)


async def test_a_name_that_does_not_exist():
    """With the test's own resolver: the real one may take too long."""

    class NoNames(trio.abc.HostnameResolver):
        async def getaddrinfo(self, *_: object) -> list[Any]:
            raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")

        async def getnameinfo(self, *_: object) -> tuple[str, str]:
            raise AssertionError("there is no request")

    trio.socket.set_custom_hostname_resolver(NoNames())
    server = f"btp+wss://alice:{TOKEN}@no-such-name.example"
    text = await read_error(ConnectTimeoutError, partial(opened, {"server": server}, connect=ConnectOptions(1_000)))
    assert (
        text == "not connected within 1 s: cannot connect to btp+wss://no-such-name.example: Name or service not known"
    )


async def test_a_wrong_token():
    async with open_plugin({"listener": {"port": 0, "secret": "the right one"}}) as server:
        url = server.address.replace("://", f"://alice:{TOKEN}@")
        problem = "the server refuses the credentials: the peer answered F00 NotAcceptedError: invalid auth_token"
        assert await read_error(NotAcceptedError, partial(opened, {"server": url})) == problem
        code, _, stderr = await run("ping", url)
        hint = "check the token in the URL or in TRIO_LEDGER_PLUGIN_SECRET"
        assert (code, stderr) == (4, f"error: {problem}; {hint}\n")
        assert await run("ildcp", url) == (4, "", stderr)


async def test_a_port_in_use():
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        problem = f"cannot listen on 127.0.0.1 port {port}: Address already in use"
        text = await read_error(OSError, partial(opened, {"listener": {"port": port, "secret": TOKEN}}))
        assert text.partition("] ")[2] == problem
        code, _, stderr = await run("serve", "--port", str(port))
        assert (code, stderr) == (1, f"error: {problem}; choose another with --host or --port\n")


async def test_ildcp_of_a_server_that_only_echoes():
    """``serve`` echoes by default."""
    async with open_plugin({"listener": {"port": 0, "secret": TOKEN}}, data_handler=echo) as server:
        url = server.address.replace("://", f"://alice:{TOKEN}@")
        problem = "the peer sent the ILDCP request back; it only echoes"
        async with open_plugin({"server": url}) as client:
            assert await read_error(DecodeError, partial(fetch_ildcp, client)) == problem
        code, _, stderr = await run("ildcp", url)
        hint = "connectors answer ILDCP, and so does 'trio-ledger-plugin serve --accounts'"
        assert (code, stderr) == (1, f"error: the peer's answer is not an ILDCP response: {problem}; {hint}\n")


# Options and services


@pytest.mark.parametrize(
    ("options", "problem"),
    [
        ({"respose_timeout": 5}, "'respose_timeout': unknown, did you mean 'response_timeout'?"),
        ({"responseTimeuot": 5}, "'responseTimeuot': unknown, did you mean 'responseTimeout'?"),
        ({"generateAccount": False}, "'generateAccount': unknown, an option of 'btp-accounts' and 'http-accounts'"),
        ({"name": "x"}, "'name': unknown, an option of 'loopback'"),
        ({"secret": TOKEN}, "'secret': unknown, did you mean 'listener.secret'?"),
        ({"port": 7768}, "'port': unknown, did you mean 'listener.port'?"),
        (
            {"response_timeout": "5"},
            "response_timeout: got '5', must be a number of seconds above 0, or infinity for no limit",
        ),
        (
            {"responseTimeout": "5"},
            "responseTimeout: got '5', must be a number of milliseconds above 0, or infinity for no limit",
        ),
    ],
)
async def test_unknown_option(options, problem):
    assert await read_error(InvalidFieldsError, partial(opened, {**CLIENT, **options})) == (
        f"BtpOptions, 1 wrong:\n- {problem}"
    )


@pytest.mark.parametrize(
    ("name", "hint"),
    [
        ("btp-acounts", "; did you mean 'btp-accounts'?"),
        ("bpt", "; did you mean 'btp'?"),
        ("ilp-plugin-bpt", "; did you mean 'ilp-plugin-btp'?"),
        ("ilp-plugin-mini-acounts", "; did you mean 'ilp-plugin-mini-accounts'?"),
        # npm's, whose beginning alone is like that of others.
        ("ilp-plugin-xrp-paychan", ""),
    ],
)
async def test_unknown_plugin(name, hint):
    text = await read_error(InvalidFieldsError, partial(opened, {"plugin": name}))
    installed = "btp, btp-accounts, http, http-accounts, loopback"
    assert text == f"plugin is {name!r}; installed are {installed}{hint}"


@pytest.mark.parametrize(
    ("timeout", "kind", "text"),
    [
        ("5000", TypeError, "timeout is a number of milliseconds, not str"),
        (True, TypeError, "timeout is a number of milliseconds, not bool"),
        (-1, InvalidFieldsError, "timeout: got -1, must be milliseconds, 0 or more"),
    ],
)
def test_invalid_timeout(timeout, kind, text):
    with pytest.raises(kind) as caught:
        ConnectOptions(timeout)
    assert str(caught.value) == text


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        ({"connect": 5000}, "options is a ConnectOptions, such as ConnectOptions(seconds=5), not int"),
        ({"services": {}}, "services is a PluginServices or None, not dict"),
        ({"data_handler": b"echo"}, "a data handler is an async function, not bytes"),
        ({"opts": "btp"}, "opts is an options object or a mapping, not str"),
        ({"nursery": "n"}, "nursery is a trio.Nursery or None, not str"),
    ],
)
async def test_an_argument_of_a_wrong_type(arguments, text):
    assert await read_error(TypeError, partial(opened, **{"opts": CLIENT, **arguments})) == text


@pytest.mark.parametrize(
    ("services", "text"),
    [
        (
            {"log": logging.getLogger("x")},
            "log: a logging.Logger formats otherwise; give trio_ledger_plugin.log.StdlibLog(logger)",
        ),
        (
            {"log": logging},
            "log: a logging.Logger formats otherwise; give trio_ledger_plugin.log.StdlibLog(logger)",
        ),
        ({"store": "wallet.db"}, "store: str has no method put, get, delete"),
        (
            {"store": open_sqlite_store("wallet.db")},
            "store: _AsyncGeneratorContextManager has no method put, get, delete; open it first, with 'async with'",
        ),
    ],
    ids=["a logger", "the module of loggers", "a path", "a store that is not open"],
)
def test_invalid_service(services, text):
    with pytest.raises(TypeError) as caught:
        PluginServices(**services)
    assert str(caught.value) == text


async def test_usernames_without_a_store():
    text = await read_error(InvalidServicesError, partial(opened, {**ACCOUNTS, "generateAccount": False}))
    assert text == "store: missing, generate_account=False needs one to keep the accounts' tokens"


async def test_two_plugins_on_one_store(tmp_path):
    path = tmp_path / "wallet.db"
    async with open_sqlite_store(path) as store, open_plugin({"plugin": "loopback"}, PluginServices(store=store)):
        text = await read_error(
            InvalidServicesError, partial(opened, {"plugin": "loopback"}, PluginServices(store=store))
        )
        assert text == "store: another open plugin keeps ledger 'main' in it; give each its own ledger_id"

        async def open_again() -> None:
            async with open_sqlite_store(path):
                pass

        assert await read_error(StoreError, open_again) == (
            f"{path} is open in this program already; give that store to each plugin, and each plugin a ledger_id of "
            "its own"
        )


# Opening


@pytest.mark.parametrize(
    ("mistake", "kind", "text"),
    [
        (lambda: UNCHECKED_OPEN(CLIENT).send_data(b""), AttributeError, f"no 'send_data' here: {HOW_TO_OPEN}"),
        (lambda: UNCHECKED_OPEN(CLIENT).__enter__(), TypeError, HOW_TO_OPEN),
        (lambda: UNCHECKED_OPEN(CLIENT).__await__(), TypeError, HOW_TO_OPEN),
        (
            lambda: UNCHECKED_CREATE(CLIENT),
            TypeError,
            "create_plugin() missing 1 required keyword-only argument: 'nursery'",
        ),
    ],
    ids=["no async with", "plain with", "await", "create without a nursery"],
)
async def test_plugin_opened_in_a_wrong_way(mistake, kind, text):
    with pytest.raises(kind) as caught:
        mistake()
    assert str(caught.value) == text


async def test_plain_with_and_await_as_a_newcomer_writes_them():
    with pytest.raises(TypeError, match="async with open_plugin"), UNCHECKED_OPEN(CLIENT):
        pass
    with pytest.raises(TypeError, match="async with open_plugin"):
        await UNCHECKED_OPEN(CLIENT)


def test_asyncio_in_place_of_trio():
    with pytest.raises(RuntimeError) as caught:
        asyncio.run(opened({"plugin": "loopback"}))
    assert str(caught.value) == "open_plugin() needs Trio: run the program with trio.run(main), not with asyncio"


async def test_opening_the_same_object_again_names_the_mistake() -> None:
    """A loop that opens again after a failure would end with an AttributeError of contextlib."""
    opening = open_plugin({"plugin": "loopback"})
    async with opening:
        pass
    with pytest.raises(RuntimeError, match=r"for two blocks: call it again for each 'async with'"):
        async with opening:
            raise AssertionError("opened")


# Sending


@pytest.mark.parametrize(
    ("send", "kind", "text"),
    [
        (lambda p: p.send_data("hi"), TypeError, "data is bytes-like, not str; text becomes bytes with .encode()"),
        (lambda p: p.send_money(1.5), TypeError, "amount is decimal text or an int, not float"),
        (
            lambda p: p.send_money(-1),
            InvalidFieldsError,
            "amount is -1; it must be a whole number from 1 to 2**64-1, in digits",
        ),
        (
            lambda p: p.send_money("1.5"),
            InvalidFieldsError,
            "amount is '1.5'; it must be a whole number from 1 to 2**64-1, in digits",
        ),
    ],
)
async def test_what_cannot_be_sent(send, kind, text):
    async with loopback_pair() as (alice, _):
        assert await read_error(kind, partial(send, alice)) == text


async def test_sending_before_connect_and_after_close(nursery):
    plugin = create_plugin(CLIENT, nursery=nursery)
    for send in (partial(plugin.send_data, b""), partial(plugin.send_money, 5)):
        assert await read_error(NotConnectedError, send) == (
            "not connected; nothing was sent: connect() connects, and wait_connected() waits for a peer"
        )
    await plugin.aclose()
    for use in (partial(plugin.send_data, b""), partial(plugin.send_money, 5), plugin.connect):
        assert await read_error(PluginClosedError, use) == "the plugin is closed; open a new one"


def test_an_await_that_was_forgotten():
    """Python itself reports this, with the method's name."""

    async def forget() -> None:
        async with loopback_pair() as (alice, _):
            alice.send_data(b"x")  # type: ignore[unused-coroutine]  # that is the mistake
            alice.connect()  # type: ignore[unused-coroutine]  # likewise
            gc.collect()

    with pytest.warns(RuntimeWarning) as warned:
        trio.run(forget)
    assert [str(each.message) for each in warned] == [
        "coroutine 'LedgerPlugin.send_data' was never awaited",
        "coroutine 'LedgerPlugin.connect' was never awaited",
    ]


async def test_a_plugin_in_another_thread():
    """It would wait for ever for a task of another Trio run."""
    async with loopback_pair() as (alice, bob):
        bob.register_data_handler(echo)
        uses = (partial(alice.send_data, b""), partial(alice.send_money, 5), alice.connect, alice.aclose)

        def use_elsewhere() -> list[str]:
            texts = []
            for use in uses:
                with pytest.raises(RuntimeError) as caught:
                    trio.run(use)
                texts.append(str(caught.value))
            return texts

        for text in await trio.to_thread.run_sync(use_elsewhere):
            assert (
                text == "the plugin belongs to another thread; call it as trio.from_thread.run(plugin.send_data, data)"
            )
        # And that is how it is done.
        advised = partial(trio.from_thread.run, alice.send_data, b"hello")
        assert await trio.to_thread.run_sync(advised) == b"hello"


# Files and packets


async def test_a_ledger_that_the_file_does_not_have(tmp_path):
    """Zeros in place of an error would look like an account without transfers."""
    path = tmp_path / "wallet.db"
    for ledger in ("wallet", "other"):
        options = {"plugin": "loopback", "ledger_id": ledger}
        async with (
            open_sqlite_store(path) as store,
            open_plugin({"plugin": "loopback"}, money_handler=discard),
            open_plugin(options, PluginServices(store=store)) as plugin,
        ):
            await plugin.send_money(5)
    problem = "this file has no ledger 'main'; --ledger takes one of: 'other', 'wallet'"
    for args in ((), ("--json",), ("--confirm", "x"), ("--reset-level",)):
        code, stdout, stderr = await run("transfers", str(path), *args)
        assert (code, stdout) == (2, "")
        assert stderr == f"error: {problem}; see trio-ledger-plugin transfers --help\n"
    code, stdout, stderr = await run("transfers", str(path), "--ledger", "wallet")
    assert (code, stderr) == (0, "")
    assert stdout.endswith("sent 5, received 0, in doubt 0\n")


async def test_unknown_key(tmp_path):
    path = tmp_path / "wallet.db"
    async with open_sqlite_store(path) as store, open_plugin({"plugin": "loopback"}, PluginServices(store=store)):
        pass
    for option in ("--confirm", "--reject"):
        code, _, stderr = await run("transfers", str(path), option, "nokey")
        hint = f"without {option} this command lists the keys, each with its account"
        assert (code, stderr) == (
            1,
            f"error: no transfer was sent under the key 'nokey'; nothing was changed; {hint}\n",
        )


@pytest.mark.parametrize(
    ("digits", "problem"),
    [
        ("0c", "this is not an ILP packet, or not a whole one: the data ends before a length"),
        (
            "06 00 00 00 01 05",
            "this is not a BTP packet, or not a whole one: a length announces 5 bytes, but 0 follow",
        ),
        ("hello", "this is not hexadecimal: character 1 is not a digit"),
        ("ff", "255 is not the type of a BTP or ILP packet"),
    ],
)
async def test_invalid_packet(digits, problem):
    code, _, stderr = await run("decode", digits)
    assert (code, stderr) == (5, f"error: {problem}\n")


# Handlers


async def test_no_handler_at_the_peer():
    async with loopback_pair() as (alice, _):
        assert await read_error(RemoteError, partial(alice.send_data, b"x")) == (
            "the peer answered T00 UnreachableError: no data handler is registered"
        )
        assert await read_error(RemoteError, partial(alice.send_money, 5)) == (
            "the peer answered T00 UnreachableError: no money handler is registered"
        )


@pytest.mark.parametrize("method", ["register_data_handler", "register_money_handler"])
async def test_a_second_handler(method: str):
    kind = method.split("_")[1]
    error = DataHandlerAlreadyRegisteredError if kind == "data" else MoneyHandlerAlreadyRegisteredError
    async with loopback_pair() as (alice, _):
        getattr(alice, method)(echo)
        with pytest.raises(error) as caught:
            getattr(alice, method)(echo)
    assert str(caught.value) == f"a {kind} handler is registered already; call deregister_{kind}_handler() first"


@pytest.mark.parametrize("kind", ["data", "money"])
async def test_plain_function_is_refused_as_a_handler(kind: str):
    """It would fail at the first request, and at the first money after it has paid out."""

    def handle(_: Any) -> bytes:
        return b""

    class Shop:
        def handle(self, _: Any) -> bytes:
            return b""

        async def __call__(self, _: Any) -> bytes:
            return b""

    def delegating(data: Any) -> Awaitable[Any]:
        return text_of(data)

    async with loopback_pair() as (alice, _):
        register, deregister = (getattr(alice, f"{verb}register_{kind}_handler") for verb in ("", "de"))
        for plain in (handle, partial(handle), Shop().handle):
            with pytest.raises(TypeError) as caught:
                register(plain)
            assert str(caught.value) == (
                f"a {kind} handler is an async function, and handle() is not; begin it with 'async def', or annotate "
                "that it returns an Awaitable"
            )
        for usable in (echo, partial(text_of), Shop(), delegating, lambda data: text_of(data[:1])):
            register(usable)
            deregister()
    with pytest.raises(TypeError, match="data handler is an async function"):
        await opened({"plugin": "loopback"}, data_handler=handle)


async def no_argument() -> bytes:
    return b""


async def two_arguments(one: Any, other: Any) -> bytes:
    return b""


async def named_argument(*, data: Any) -> bytes:
    return b""


async def many_arguments(*values: Any, **named: Any) -> bytes:
    return b""


class Stateless:
    @staticmethod
    async def __call__(data: Any) -> bytes:
        return b""


def injecting(function: Callable[..., Awaitable[bytes]]) -> Callable[[Any], Awaitable[bytes]]:
    """Decorate a function that takes one argument more than it is called with."""

    @wraps(function)
    async def inner(data: Any) -> bytes:
        return await function(data, "injected")

    return inner


@pytest.mark.parametrize("kind", ["data", "money"])
async def test_handler_with_other_arguments_is_refused(kind: str):
    """It would fail at the first request, and the peer's first money would be refused."""
    argument = {"data": "data", "money": "amount"}[kind]
    async with loopback_pair() as (alice, _):
        register, deregister = (getattr(alice, f"{verb}register_{kind}_handler") for verb in ("", "de"))
        for wrong, reason in (
            (no_argument, "too many positional arguments"),
            (two_arguments, "missing a required argument: 'other'"),
            (named_argument, "too many positional arguments"),
            (lambda: text_of(b""), "too many positional arguments"),
        ):
            with pytest.raises(TypeError) as caught:
                register(wrong)
            assert str(caught.value) == (
                f"a {kind} handler is called as handler({argument}), and {wrong.__name__}() cannot be: {reason}"
            )
        claims_none = partial(many_arguments)
        claims_none.__signature__ = signature(no_argument)  # type: ignore[attr-defined]  # a decorator may set it
        for usable in (
            many_arguments,
            partial(two_arguments, 1),
            injecting(two_arguments),
            Stateless(),
            AsyncMock(),
            Mock(),
            claims_none,
            # What a builtin takes may not be known.
            dict,
        ):
            register(usable)
            deregister()


async def text_of(data: bytes) -> str:
    return "text"


async def nothing_of(data: bytes) -> None:
    pass


class Later:
    """A coroutine that does not warn when it is dropped."""

    def __await__(self) -> Generator[None, None, bytes]:
        yield
        return b""


async def forgetful(data: bytes) -> object:
    return Later()


@pytest.mark.parametrize(
    ("handler", "text"),
    [
        (
            lambda data: data,
            """TypeError("object bytes can't be used in 'await' expression")""",
        ),
        (text_of, "TypeError('what a data handler returns is bytes-like, not str; text becomes bytes with .encode()')"),
        (nothing_of, "TypeError('what a data handler returns is bytes-like, not NoneType')"),
        (
            forgetful,
            """TypeError("what a data handler returns is bytes-like, not Later; an 'await' is missing before it")""",
        ),
    ],
    ids=["a lambda", "text", "None", "a coroutine"],
)
async def test_a_data_handler_that_is_wrong(handler, text, caplog):
    """The peer gets only a reference; the log of the handler's side has it with the advice."""
    async with loopback_pair() as (alice, bob):
        bob.register_data_handler(handler)
        told = await read_error(RemoteError, partial(alice.send_data, b"x"))
    found = re.fullmatch(r"the peer answered F00 NotAcceptedError: the data handler failed, reference (\w+)", told)
    assert found
    # Python's own words for the first of them are others from 3.14 on.
    said = re.sub(r"'bytes' object can't be awaited", "object bytes can't be used in 'await' expression", caplog.text)
    hint = " (is it an async function?)" if "await" in text else ""
    assert f"the data handler failed, reference {found[1]}{hint}: {text}\n    Traceback (most recent" in said


# Options of commands


@pytest.mark.parametrize(
    ("line", "problem"),
    [
        ("serve --replication none", "--replication needs --store with the URL of a PostgreSQL database"),
        (
            "serve --replication none --store no-such/x.db",
            "--replication needs --store with the URL of a PostgreSQL database",
        ),
        ("serve --proxy-protocol", "--proxy-protocol needs --trusted-proxy: no other address may connect then"),
        (
            "serve --trusted-proxy 10.0.0.1 --trusted-proxy here",
            (
                "--trusted-proxy: got 'here', must be IP addresses or networks in their shortest form, such as "
                "('192.0.2.1', '10.0.0.0/8')"
            ),
        ),
        ("serve --host=", "--host: got '', must be a host name or an IP address (str), or '*' for every address"),
        (
            "serve --store=",
            "Invalid value for '--store': a store is a file, or a URL that begins with postgresql://",
        ),
        (
            "transfers mysql://localhost/wallet",
            "Invalid value for 'DB': a store is a file, or a URL that begins with postgresql://",
        ),
        (
            "ping --timeout 1s btp+ws://:token@localhost",
            "Invalid value for '--timeout': it is a number of seconds, such as 10 or 0.5",
        ),
        (
            "bench --plot no-such/plot.svg",
            "Invalid value for '--plot': the directory of 'no-such/plot.svg' does not exist",
        ),
    ],
)
async def test_option_that_would_do_nothing_or_fail_later(line, problem):
    """It was ignored, or the error spoke of Python, or came minutes later."""
    command, *rest = line.split()
    port = ("--port", "0") if command == "serve" else ()
    code, _, stderr = await run(command, *port, *rest)
    assert (code, stderr) == (2, f"error: {problem}; see trio-ledger-plugin {command} --help\n")
