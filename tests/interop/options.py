"""Options of a plugin and a Node peer that are connected to each other."""

from urllib.parse import urlsplit

from trio_ledger_plugin import LedgerPlugin
from trio_ledger_plugin.btp.plugin import BtpPlugin

TOKEN = "the-right-token"


def client_options(port: int, token: str = TOKEN) -> dict[str, object]:
    return {"plugin": "btp", "server": f"btp+ws://alice:{token}@127.0.0.1:{port}"}


def listener_options() -> dict[str, object]:
    return {"plugin": "btp", "listener": {"port": 0, "secret": TOKEN}}


def node_url(listener: LedgerPlugin, token: str = TOKEN) -> str:
    assert isinstance(listener, BtpPlugin)
    return f"btp+ws://alice:{token}@127.0.0.1:{urlsplit(listener.address).port}"
