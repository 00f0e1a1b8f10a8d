"""The admin page of plugins that run, asked with bytes, and transfers that are in doubt."""

from __future__ import annotations

import json
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

import pytest
import trio

from support.accounts import enter, open_accounts, options
from support.http import talk
from support.ledgers import HeldStore
from trio_ledger_plugin import TransferInDoubtError
from trio_ledger_plugin.stores import open_sqlite_store

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

    from trio_ledger_plugin.admin import Admin
    from trio_ledger_plugin.btp.accounts import AccountsPlugin

__all__ = ["ask", "get_accounts", "get_json", "leave_in_doubt", "open_bank", "request", "settle"]


@asynccontextmanager
async def open_bank(path: Path, patience: float = 0.1) -> AsyncIterator[tuple[AccountsPlugin, HeldStore]]:
    """Open a server with a store, and the client bob that never answers.

    Deadlines are checked as often as ``patience`` says, so a test that jumps over minutes gives more of it.
    """
    async with open_sqlite_store(path) as inner:
        store = HeldStore(inner)
        opts = options(generateAccount=False, response_timeout=patience)
        async with open_accounts(opts, store=store) as server:
            bob = await enter(server, "bob")
            try:
                yield server, store
            finally:
                await bob.aclose()


def request(path: str, *lines: str, method: str = "GET", body: bytes = b"") -> bytes:
    """Return the bytes of a request; a line replaces the usual one of its name."""
    usual = {"host": "Host: 127.0.0.1:9000"}
    if body or method == "POST":
        usual["content-type"] = "Content-Type: application/json"
        usual["content-length"] = f"Content-Length: {len(body)}"
    usual |= {line.partition(":")[0].lower(): line for line in lines}
    return "\r\n".join([f"{method} {path} HTTP/1.1", *usual.values(), "", ""]).encode() + body


async def ask(admin: Admin, path: str, *lines: str, **how: Any) -> tuple[int, str, bytes]:
    """Send a request over a new connection; return the status, the head and the body of the response."""
    status, head, body = await talk(admin.address, request(path, *lines, **how))
    return status, head.decode(), body


async def get_json(admin: Admin, path: str, *lines: str) -> Any:
    status, _, body = await ask(admin, path, *lines)
    assert status == 200, body
    return json.loads(body)


async def get_accounts(admin: Admin, query: str = "") -> Any:
    """Ask for the accounts as the page does: again, until the server has looked at them."""
    while True:
        answer = await get_json(admin, f"/api/accounts?{query}")
        if answer["age"] is not None:
            return answer
        await trio.sleep(0.3)


async def settle(admin: Admin, key: str, outcome: str, account: str = "bob", **more: str) -> tuple[int, str]:
    wish = {"plugin": "0", "account": account, "key": key, "outcome": outcome, **more}
    status, _, body = await ask(admin, "/api/settle", method="POST", body=json.dumps(wish).encode())
    return status, body.decode()


async def leave_in_doubt(server: AccountsPlugin, amount: int, key: str | None = None, account: str = "bob") -> None:
    """Send money to a client that never answers; the server waits for its answer ``response_timeout`` seconds."""
    with pytest.raises(TransferInDoubtError):
        await server.account(account).send_money(amount, idempotency_key=key)
