"""Messages of other sub-protocols than ``ilp`` go to a handler of their own."""

from typing import Any

import pytest
from support.accounts import enter, hashed, open_accounts
from support.peers import linked

from trio_ledger_plugin import DataHandlerAlreadyRegisteredError, NotConnectedError
from trio_ledger_plugin.codec import btp
from trio_ledger_plugin.testing.conformance.assertions import Recorder, echo

INFO = btp.ProtocolData("info", 0, b"?")
NOTE = btp.ProtocolData("note", 1, b"behind it")
ILP = btp.ProtocolData("ilp", 0, b"ask")


async def answer_to(peer: Any, *entries: btp.ProtocolData) -> Any:
    await peer.send(peer.frame(btp.encode(btp.Message(7, entries))))
    return await peer.receive_packet()


async def test_handler_gets_account_and_entries_and_answers() -> None:
    seen = []

    async def on_message(account: str, protocol_data: tuple[btp.ProtocolData, ...]) -> list[btp.ProtocolData]:
        seen.append((account, protocol_data))
        return [btp.ProtocolData("info", 2, b"{}"), NOTE]

    async with open_accounts(data_handler=echo) as server:
        server.register_message_handler(on_message)
        peer = await enter(server, token="a")
        answer = await answer_to(peer, INFO, NOTE)
        assert answer == btp.Response(7, (btp.ProtocolData("info", 2, b"{}"), NOTE))
        # What is not the first entry asks for nothing.
        await answer_to(peer, INFO, ILP)
        assert seen == [(hashed("a"), (INFO, NOTE)), (hashed("a"), (INFO, ILP))]
        assert await answer_to(peer, ILP, INFO) == btp.Response(7, (ILP,))
        assert len(seen) == 2
        server.deregister_message_handler()
        assert (await answer_to(peer, INFO)).code == "F00"
        assert server.statistics().requests_received == 4
        await peer.aclose()


async def test_plugin_with_one_peer_has_no_account_name() -> None:
    async def on_message(account: str, protocol_data: tuple[btp.ProtocolData, ...]) -> tuple[btp.ProtocolData, ...]:
        assert account == ""
        return protocol_data

    async with linked() as (plugin, peer):
        plugin.register_message_handler(on_message)
        assert await answer_to(peer, INFO) == btp.Response(7, (INFO,))


@pytest.mark.parametrize(
    "entries",
    [
        [btp.ProtocolData("\u00fc", 0, b"")],
        [INFO, INFO],
        [btp.ProtocolData("info", 0, bytes(70_000))],
        ["info"],
        None,
    ],
    ids=["no IA5", "twice", "too long", "no entry", "nothing"],
)
async def test_entries_that_cannot_be_sent_are_an_error(entries: Any) -> None:
    async def on_message(account: str, protocol_data: object) -> Any:
        return entries

    log = Recorder()
    async with open_accounts(data_handler=echo, log=log) as server:
        server.register_message_handler(on_message)
        peer = await enter(server)
        answer = await answer_to(peer, INFO)
        assert (answer.code, answer.name) == ("F00", "NotAcceptedError")
        assert b"message handler failed, reference" in answer.data
        assert any("the message handler failed" in line for line in log.lines)
        assert await answer_to(peer, ILP) == btp.Response(7, (ILP,))
        await peer.aclose()


async def test_error_of_the_handler_reaches_the_peer_under_its_code() -> None:
    async def on_message(account: str, protocol_data: object) -> Any:
        raise NotConnectedError("internal detail")

    async with linked() as (plugin, peer):
        plugin.register_message_handler(on_message)
        answer = await answer_to(peer, INFO)
        assert answer.code == "F00"
        assert b"internal" not in answer.data


async def test_registration_is_checked() -> None:
    async def on_message(account: str, protocol_data: object) -> Any:
        return ()

    async with open_accounts() as server:
        with pytest.raises(TypeError, match="a message handler is an async function"):
            server.register_message_handler(7)  # type: ignore[arg-type]  # the test's subject
        server.register_message_handler(on_message)
        with pytest.raises(DataHandlerAlreadyRegisteredError, match="deregister_message_handler"):
            server.register_message_handler(on_message)
