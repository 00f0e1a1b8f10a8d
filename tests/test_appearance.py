"""What a plugin shows at a prompt: which one it is and how it is, no secret, and the names that one may use."""

import re
from typing import Any

import pytest
import trio
from support.pages import ROOT
from support.scripted import scripted

from trio_ledger_plugin import (
    AccountPlugin,
    AccountsOptions,
    AccountsPlugin,
    BtpOptions,
    BtpPlugin,
    HostInfo,
    HttpAccountsPlugin,
    HttpPlugin,
    LedgerPlugin,
    ListenerOptions,
    LoopbackPlugin,
    RemoteError,
    create_plugin,
    loopback_pair,
    open_plugin,
)
from trio_ledger_plugin.testing.conformance.assertions import echo

TOKEN = "canary-of-appearance"


async def test_plugin_shows_its_name_address_and_state(nursery: trio.Nursery) -> None:
    """A debugger with ten plugins would show ten times the address of an object in memory."""
    async with open_plugin(BtpOptions(listener=ListenerOptions(0, TOKEN)), data_handler=echo) as server:
        assert repr(server) == f"<BtpPlugin at {server.address}, waiting for its peer>"
        url = server.address.replace("://", f"://alice:{TOKEN}@")
        client = create_plugin(BtpOptions(server=url), nursery=nursery)
        assert repr(client) == f"<BtpPlugin 'alice' at {server.address}, not connected>"
        await client.connect()
        assert repr(client) == f"<BtpPlugin 'alice' at {server.address}, connected>"
        assert TOKEN not in repr(client) + repr(server)
        await client.aclose()
        assert repr(client) == f"<BtpPlugin 'alice' at {server.address}, closed>"
    async with loopback_pair() as (first, _):
        assert re.fullmatch(r"<LoopbackPlugin 'pair-[-0-9a-f]+', connected>", repr(first))


async def test_accounts_show_their_names() -> None:
    options = AccountsOptions(port=0, debug_host_ildcp_info=HostInfo("example.host", 9, "XRP"))
    async with open_plugin(options) as server:
        assert repr(server) == f"<AccountsPlugin at {server.address}, connected>"
        alice = server.account("alice")
        assert alice.account_name == "alice"
        assert repr(alice) == "<AccountPlugin 'alice', waiting for its peer>"


def test_plugin_whose_constructor_fails_can_be_shown() -> None:
    """The traceback of the constructor's error would be replaced by another."""
    assert repr(LoopbackPlugin.__new__(LoopbackPlugin)) == "<LoopbackPlugin, not made yet>"


PAGE = (ROOT / "docs" / "reference" / "api.md").read_text(encoding="utf-8")
CLASSES = (AccountPlugin, AccountsPlugin, BtpPlugin, HttpAccountsPlugin, HttpPlugin, LoopbackPlugin)


def documented(kind: type) -> set[str]:
    """Return the names that the reference has of a class, with those of its bases."""
    names: set[str] = set()
    for each in kind.__mro__:
        if members := re.search(rf"autoclass:: [\w.]+\.{each.__name__}\n   :members: (.*)", PAGE):
            names.update(members[1].split(", "))
    return {name for name in names if not name.startswith("_")}


@pytest.mark.parametrize("kind", CLASSES)
def test_dir_has_what_the_reference_has(kind: type[LedgerPlugin]) -> None:
    """Completion at a prompt would offer a hundred names, of which a user may use twenty; or hide one of these."""
    shown = set(dir(kind.__new__(kind)))
    assert documented(kind) <= shown
    assert not [name for name in shown if name.startswith("_")]
    known = {"account_name", "events", "options", "services", "version"}
    also = {"register_message_handler", "deregister_message_handler", "serve_stream", "serve_websocket", "asgi_app"}
    assert shown <= documented(kind) | known | also


async def test_dir_has_attributes_and_what_another_package_adds(nursery: trio.Nursery) -> None:
    plugin = scripted(nursery)
    assert {"events", "options", "services", "send_data", "ask"} <= set(dir(plugin))
    assert not {"context", "carry_data", "_connector"} & set(dir(plugin))


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b'{"message": "no such account", "code": 7}', "no such account"),
        (b"no such account", "no such account"),
        (b'{"message": 7}', '{"message": 7}'),
        (b"[1]", "[1]"),
        (b"\xff", "\N{REPLACEMENT CHARACTER}"),
        (b"[" * 100_000, "[" * 100_000),
    ],
)
def test_remote_error_has_the_peers_message(data: bytes, message: str) -> None:
    """Its reader would see JSON in place of a sentence."""
    error = RemoteError("F00", "NotAcceptedError", data=data)
    assert error.message == message
    assert str(error).startswith(f"the peer answered F00 NotAcceptedError: {message[:100]}")
    without: Any = RemoteError("F00", "NotAcceptedError")
    assert (without.message, str(without)) == ("", "the peer answered F00 NotAcceptedError")
