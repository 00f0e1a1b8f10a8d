"""A server of many accounts, its clients, and the packets between them."""

from __future__ import annotations

from base64 import urlsafe_b64encode
from contextlib import asynccontextmanager, suppress
from datetime import UTC, datetime, timedelta
from hashlib import sha256
from typing import TYPE_CHECKING, Any

from support.peers import TOKEN, Peer, dial
from trio_ledger_plugin import LedgerPlugin, LedgerPluginError, PluginServices, open_plugin
from trio_ledger_plugin.btp.accounts import AccountsPlugin
from trio_ledger_plugin.codec import btp, ilp

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

__all__ = [
    "CONDITION",
    "FULFILL",
    "HOST",
    "INFO",
    "PREIMAGE",
    "answer",
    "ask",
    "code_of",
    "enter",
    "hashed",
    "leave",
    "open_accounts",
    "options",
    "prepare",
    "start_asking",
]

HOST = "example.host"
INFO = {"clientAddress": HOST, "assetScale": 9, "assetCode": "XRP"}
PREIMAGE = bytes(range(32))
CONDITION = sha256(PREIMAGE).digest()
FULFILL = ilp.encode(ilp.Fulfill(PREIMAGE, b"done"))


def hashed(token: str) -> str:
    return urlsafe_b64encode(sha256(token.encode()).digest()).decode().rstrip("=")


def options(**more: Any) -> dict[str, Any]:
    return {"plugin": "btp-accounts", "port": 0, "debugHostIldcpInfo": INFO, **more}


@asynccontextmanager
async def open_accounts(
    opts: Any = None, *, store: Any = None, log: Any = None, **how: Any
) -> AsyncIterator[AccountsPlugin]:
    async with open_plugin(opts or options(), PluginServices(store=store, log=log), **how) as plugin:
        assert isinstance(plugin, AccountsPlugin)
        yield plugin


async def enter(plugin: AccountsPlugin, account: str = "", token: str = TOKEN) -> Peer:
    """Connect as an account's client."""
    peer = await dial(plugin.address)
    answer = await peer.authenticate(token, account=account)
    assert answer == btp.Response(1), answer
    return peer


def prepare(destination: str, lifetime: float = 30, data: bytes = b"") -> bytes:
    expires_at = datetime.now(UTC) + timedelta(seconds=lifetime)
    # A packet has whole milliseconds, and rounding up would exceed the lifetime.
    expires_at = expires_at.replace(microsecond=expires_at.microsecond // 1000 * 1000)
    return ilp.encode(ilp.Prepare(10, expires_at, CONDITION, destination, data))


async def answer(peer: Peer, response: bytes) -> bytes:
    """Take the next request, answer it, and return it."""
    request = await peer.receive_packet()
    await peer.respond(request.request_id, response)
    data: bytes = request.protocol_data[0].data
    return data


async def leave(peer: Peer) -> None:
    """Be sent away, and go."""
    assert await peer.receive_close() == 1000
    await peer.aclose()


async def ask(peer: Peer, data: bytes, request_id: int = 7) -> Any:
    await peer.send_request(request_id, data)
    packet = await peer.receive_packet()
    assert packet.request_id == request_id
    return packet


async def start_asking(plugin: LedgerPlugin) -> None:
    """Send a request, and do not mind how it ends."""
    with suppress(LedgerPluginError):
        await plugin.send_data(b"?")


def code_of(response: bytes) -> str:
    packet = ilp.decode(response)
    assert isinstance(packet, ilp.Reject)
    assert packet.triggered_by == HOST
    return packet.code
