"""How many modules a message passes; the page about the layers names them."""

import sys
from types import FrameType

from support.peers import TOKEN, listening, open_btp

from trio_ledger_plugin import open_plugin
from trio_ledger_plugin.testing.conformance.assertions import echo

PREFIX = "trio_ledger_plugin."
SOCKETS = f"{PREFIX}net.sockets"


async def test_message_passes_at_most_eight_modules_to_the_socket():
    passed: list[str] = []

    def record(frame: FrameType, event: str, _arg: object) -> None:
        module = frame.f_globals.get("__name__", "")
        if event == "call" and module.startswith(PREFIX) and SOCKETS not in passed:
            passed.append(module)

    async with open_btp(listening(), data_handler=echo) as server:
        port = server.address.rpartition(":")[2]
        async with open_plugin({"server": f"btp+ws://:{TOKEN}@127.0.0.1:{port}"}) as client:
            await client.send_data(b"first")
            sys.setprofile(record)
            try:
                await client.send_data(b"second")
            finally:
                sys.setprofile(None)
    assert passed[0] == f"{PREFIX}plugin"
    assert passed[-1] == SOCKETS
    assert len(set(passed)) <= 8, passed
