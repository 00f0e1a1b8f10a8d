"""What users of both clients would lose: the same URL in ilp-plugin-btp and here opens the same account."""

from __future__ import annotations

import pytest

from trio_ledger_plugin import fetch_ildcp, open_plugin

from .node import open_node_peer
from .test_accounts_interop import enter, serving, told_address

pytestmark = pytest.mark.interop

# A slash is sent encoded only: as it is, it ends the userinfo for both.
TOKENS = [
    *(
        "a=b",
        "a:b",
        "a@b",
        "a b",
        "a%2Fb",
        "ü",
        "100%",
        "a%20b",
        "K3xkYWxhIGhvIHdvcmxkIQ==",
        "x;y|z",
        "caf\u00e9\u20ac\U0001f4b6",
    ),
    *("'\"`", "<>{}", "[]^", "a%", "%zz", "~-._!$&()*+,", "a\tb"),
]


async def test_one_url_opens_one_account() -> None:
    """A token of `openssl rand -base64` ends in "="; the two clients would own two accounts, or one be refused."""
    async with serving(data_handler=None) as plugin, open_node_peer() as peer:
        for token in TOKENS:
            await enter(peer, plugin, f":{token}")
            theirs = await told_address(peer)
            await peer.disconnect()
            async with open_plugin({"server": plugin.address.replace("://", f"://:{token}@")}) as client:
                assert (await fetch_ildcp(client)).client_address == theirs, token


@pytest.mark.parametrize("token", ["a/b", "a\\b", "a?b", "a#b"])
async def test_url_that_javascript_refuses_is_refused_here(token: str) -> None:
    """What ends the userinfo in JavaScript must not be part of a token here."""
    url = f"btp+ws://:{token}@127.0.0.1:1"
    async with open_node_peer() as peer:
        with pytest.raises(Exception, match="Invalid URL"):
            await peer.connect(url)
    with pytest.raises(Exception, match="server"):
        async with open_plugin({"server": url}):
            raise AssertionError("opened")
