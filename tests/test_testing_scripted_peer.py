"""The scripted peer sends what the script says and nothing else, and checks what it receives."""

from __future__ import annotations

from typing import Any

import pytest
import trio
from trio.testing import MockClock, memory_stream_pair

from trio_ledger_plugin import (
    ConnectionLostError,
    DecodeError,
    NotAcceptedError,
    RemoteError,
    ResponseTimeoutError,
    open_plugin,
)
from trio_ledger_plugin.btp.server import BtpServer
from trio_ledger_plugin.codec import btp
from trio_ledger_plugin.testing import ScriptedPeer, ScriptError, open_scripted_server
from trio_ledger_plugin.testing.raw_frames import CLOSE, PING, PONG, TEXT, write_frame
from trio_ledger_plugin.testing.scripted_peer import ilp_data

# Two entries of one name: a response that can be read, and breaks the protocol.
TWICE = b"\x01\x02" + 2 * b"\x03ilp\x00\x01x"


async def ask(url: str, data: bytes = b"question") -> Any:
    async with open_plugin({"plugin": "btp", "server": url, "response_timeout": 0.3}) as plugin:
        try:
            return await plugin.send_data(data)
        except Exception as error:  # noqa: BLE001 (kept for the test)
            return error


async def test_server_accepts_expects_and_answers() -> None:
    async def serve(stream: trio.SocketStream) -> None:
        peer = await ScriptedPeer.accept(stream)
        credentials = await peer.let_in()
        assert [entry.data for entry in credentials.protocol_data] == [b"", b"bob", b"secret"]
        request = await peer.expect(btp.Message, data=b"question")
        await peer.respond(request.request_id, b"answer")
        await peer.receive_close()

    async with open_scripted_server(serve, credentials="bob:secret") as url:
        assert await ask(url) == b"answer"


@pytest.mark.parametrize(
    ("answer", "kind"),
    [
        (lambda peer, number: peer.refuse(number, "F08", "InsufficientBalanceError"), RemoteError),
        (lambda peer, number: peer.aclose(), ConnectionLostError),
        (lambda peer, number: peer.respond(number + 1, b"of another"), ResponseTimeoutError),
        (lambda peer, number: peer.send(peer.frame(b"\x01\x02")), ResponseTimeoutError),
        (
            lambda peer, number: peer.send(
                peer.frame(btp.encode(btp.Response(number))[:5] + bytes([len(TWICE)]) + TWICE)
            ),
            DecodeError,
        ),
    ],
    ids=["refused", "cut", "wrong id", "malformed", "malformed response"],
)
async def test_invalid_answers(answer: Any, kind: type[Exception]) -> None:
    async def serve(stream: trio.SocketStream) -> None:
        peer = await ScriptedPeer.accept(stream)
        await peer.let_in()
        await answer(peer, (await peer.expect(btp.Message)).request_id)
        if kind is not ConnectionLostError:
            await peer.receive_close()

    async with open_scripted_server(serve) as url:
        assert isinstance(await ask(url), kind)


async def test_answers_out_of_order_twice_and_late() -> None:
    outcomes: dict[bytes, Any] = {}

    async def serve(stream: trio.SocketStream) -> None:
        peer = await ScriptedPeer.accept(stream)
        await peer.let_in()
        requests = [await peer.expect(btp.Message) for _ in range(3)]
        for request in reversed(requests):
            await peer.respond(request.request_id, b"to %s" % ilp_data(request))
            await peer.respond(request.request_id, b"once more")
        await peer.receive_close()

    async with open_scripted_server(serve) as url, open_plugin({"plugin": "btp", "server": url}) as plugin:

        async def call(data: bytes) -> None:
            outcomes[data] = await plugin.send_data(data)

        async with trio.open_nursery() as nursery:
            for data in (b"1", b"2", b"3"):
                nursery.start_soon(call, data)
        assert outcomes == {data: b"to %s" % data for data in (b"1", b"2", b"3")}


async def test_a_client_on_memory_streams_under_a_mock_clock(autojump_clock: MockClock) -> None:
    """The same against a listener, without a socket: minutes pass at once."""

    async def slow(data: bytes) -> bytes:
        await trio.sleep(20)
        return data

    async with (
        open_plugin({"plugin": "btp", "listener": {"port": None, "secret": "token"}}, data_handler=slow) as plugin,
        trio.open_nursery() as nursery,
    ):
        assert isinstance(plugin, BtpServer)
        ours, theirs = memory_stream_pair()
        nursery.start_soon(plugin.serve_stream, theirs)
        peer = await ScriptedPeer.connect(ours)
        assert await peer.authenticate("token", account="me", flags={"more": "x"}) == btp.Response(1)
        await peer.send_request(7, b"in parts"[:4])
        whole = peer.frame(btp.encode_ilp(btp.MESSAGE, 8, b"torn"))
        await peer.send(whole[:5])
        await trio.sleep(1)
        await peer.send(whole[5:])
        assert (await peer.expect(btp.Response, data=b"in p")).request_id == 7
        assert (await peer.expect(btp.Response, data=b"torn")).request_id == 8
        assert trio.current_time() > 20
        await peer.send(peer.frame(b"are you there?", PING))
        assert (await peer.receive()).opcode == PONG
        await peer.send_packet(btp.Transfer(9, 5))
        assert (await peer.expect(btp.Error)).code == "T00"
        await peer.send(peer.frame(b"\x03\xe8", CLOSE))
        assert await peer.receive_close() == 1000
        await peer.wait_eof()


async def test_a_client_dials_a_listener() -> None:
    async with open_plugin({"plugin": "btp", "listener": {"port": 0, "secret": "token"}}) as plugin:
        peer = await ScriptedPeer.dial(plugin.address)
        answer = await peer.authenticate("another")
        assert isinstance(answer, btp.Error)
        await peer.aclose()


@pytest.mark.parametrize(
    ("sent", "told"),
    [
        (write_frame(btp.encode(btp.Response(1))), "a Message was expected, and this came: Response"),
        (write_frame(btp.encode_ilp(btp.MESSAGE, 1, b"x")), "b'y' was expected, and it has b'x'"),
        (write_frame(btp.encode(btp.Message(1))), "b'y' was expected, and it has None"),
        (write_frame(b"text", TEXT), "opcode 1 came: b'text'"),
        (write_frame(b"", fin=False), "begins with 0x02"),
        (write_frame(b"", rsv=4), "begins with 0xc2"),
        (write_frame(b"", mask=b"abcd"), "masks, and is a server"),
    ],
)
async def test_unexpected_packet_is_a_script_error(sent: bytes, told: str) -> None:
    ours, theirs = memory_stream_pair()
    await theirs.send_all(sent)
    with pytest.raises(ScriptError) as caught:
        await ScriptedPeer(ours, client=True).expect(btp.Message, data=b"y")
    assert told in str(caught.value)


async def test_end_of_connection_is_not_a_packet() -> None:
    ours, theirs = memory_stream_pair()
    await theirs.aclose()
    with pytest.raises(EOFError):
        await ScriptedPeer(ours, client=False).receive()
    ours, theirs = memory_stream_pair()
    await theirs.send_all(b"GET / HTTP/1.1\r\n")
    await theirs.aclose()
    with pytest.raises(EOFError):
        await ScriptedPeer.accept(ours)


async def test_refused_handshake_is_a_script_error() -> None:
    ours, theirs = memory_stream_pair()
    await theirs.send_all(b"HTTP/1.1 403 Forbidden\r\n\r\n")
    with pytest.raises(ScriptError, match="403"):
        await ScriptedPeer.connect(ours)


@pytest.mark.parametrize("form", [1, 2, 8])
async def test_frames_are_read_in_every_form_of_length(form: int) -> None:
    ours, theirs = memory_stream_pair()
    await theirs.send_all(write_frame(b"x" * 100, form=form))
    assert (await ScriptedPeer(ours, client=True).receive()).payload == b"x" * 100


async def test_script_error_is_not_in_a_group() -> None:
    async def serve(stream: trio.SocketStream) -> None:
        peer = await ScriptedPeer.accept(stream)
        await peer.let_in()
        await peer.expect(btp.Transfer)

    with pytest.raises(ScriptError, match="a Transfer was expected"):
        async with open_scripted_server(serve) as url:
            await ask(url)


async def test_credentials_can_be_refused() -> None:
    async def serve(stream: trio.SocketStream) -> None:
        peer = await ScriptedPeer.accept(stream)
        message = await peer.expect(btp.Message)
        await peer.refuse(message.request_id)

    async with open_scripted_server(serve) as url:
        with pytest.raises(NotAcceptedError):
            await ask(url)


async def test_a_server_that_refuses_leaves_no_open_connection() -> None:
    async def serve(stream: trio.SocketStream) -> None:
        await stream.send_all(b"HTTP/1.1 503 Busy\r\n\r\n")
        assert await stream.receive_some() != b""
        assert await stream.receive_some() == b""
        gone.set()

    gone = trio.Event()
    async with open_scripted_server(serve) as url:
        with pytest.raises(ScriptError, match="503"):
            await ScriptedPeer.dial(url)
        with trio.fail_after(5):
            await gone.wait()
