"""A BTP peer that does what a test says.

Invariant: a scripted peer sends nothing by itself: no pong, no answer and no closing handshake. It raises an error for
everything that the specifications do not allow the other end to send.
"""

from __future__ import annotations

from contextlib import asynccontextmanager
from datetime import UTC, datetime
from functools import partial
from typing import TYPE_CHECKING, NamedTuple, Self, TypeVar, cast
from urllib.parse import urlsplit

import trio

from ..btp.auth import auth_message
from ..btp.session import ILP, find_entry
from ..codec import btp
from ..net.sockets import abort_stream
from ..runtime.tasks import unwrap_group
from .raw_frames import BINARY, CLOSE, MASK, PING, PONG, read_head, upgrade_request, upgrade_response, write_frame

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable, Mapping

__all__ = ["ReceivedFrame", "ScriptError", "ScriptedPeer", "dial_stream", "ilp_data", "open_scripted_server"]

PacketT = TypeVar("PacketT", bound=btp.Packet)


class ScriptError(AssertionError):
    """The other end did something that the script does not expect or the specifications do not allow."""


class ReceivedFrame(NamedTuple):
    """A WebSocket frame that the other end sent.

    Attributes:
        opcode: ``raw_frames.BINARY``, ``CLOSE`` and so on.
        payload: The payload, unmasked.
    """

    opcode: int
    payload: bytes

    @property
    def close_code(self) -> int:
        """The status code of a Close."""
        assert self.opcode == CLOSE
        return int.from_bytes(self.payload[:2], "big")


class ScriptedPeer:
    """One end of a BTP connection that does what a test says, frame by frame.

    ``connect()``, ``dial()`` and ``accept()`` make one after the opening handshake. The constructor takes a stream that
    has completed it. Any Trio stream will do; with memory streams a ``MockClock`` works.

    Args:
        stream: The connection.
        client: Whether this is the client, which masks its frames.

    Attributes:
        stream: The connection.
        mask: The mask of its frames; None for a server.
    """

    def __init__(self, stream: trio.abc.Stream, *, client: bool) -> None:
        self.stream: trio.abc.Stream = stream
        self.mask: bytes | None = MASK if client else None
        self._client = client
        self._buffer = b""

    # The opening handshake.

    @classmethod
    async def connect(cls, stream: trio.abc.Stream) -> Self:
        """Perform a client's opening handshake over a stream to a server.

        Raises:
            ScriptError: The server refuses.
            EOFError: The connection ended.

        Cancellation: The stream is no longer usable.
        """
        await stream.send_all(upgrade_request())
        head = await read_head(stream)
        if not head.startswith(b"HTTP/1.1 101 "):
            raise ScriptError(f"the server refuses the handshake: {head!r}")
        return cls(stream, client=True)

    @classmethod
    async def dial(cls, address: str) -> Self:
        """Connect to a listener over TCP, and perform the opening handshake.

        Args:
            address: The listener's ``plugin.address``.

        Raises:
            OSError: Nothing listens there.
            ScriptError: The server refuses.

        Cancellation: The connection is closed.
        """
        stream = await dial_stream(address)
        try:
            return await cls.connect(stream)
        except BaseException:
            await abort_stream(stream)  # noqa: ASYNC102 (it waits for nothing)
            raise

    @classmethod
    async def accept(cls, stream: trio.abc.Stream) -> Self:
        """Perform a server's opening handshake over a stream from a client.

        Raises:
            EOFError: The connection ended.

        Cancellation: The stream is no longer usable.
        """
        await stream.send_all(upgrade_response(await read_head(stream)))
        return cls(stream, client=False)

    # Sending.

    def frame(
        self, payload: bytes = b"", opcode: int = BINARY, *, fin: bool = True, rsv: int = 0, form: int | None = None
    ) -> bytes:
        """Return the bytes of a frame from this end; for the arguments see ``raw_frames.write_frame``."""
        return write_frame(payload, opcode, mask=self.mask, fin=fin, rsv=rsv, form=form)

    async def send(self, *data: bytes) -> None:
        """Send bytes unchanged, in one piece: frames, parts of frames, or anything else.

        Cancellation: Any part of them may have been sent.
        """
        await self.stream.send_all(b"".join(data))

    async def send_packet(self, packet: btp.Packet) -> None:
        """Send a BTP packet.

        Cancellation: Any part of it may have been sent.
        """
        await self.send(self.frame(btp.encode(packet)))

    async def send_request(self, request_id: int, data: bytes) -> None:
        """Send a Message with data for the other end's data handler.

        Cancellation: Any part of it may have been sent.
        """
        await self.send(self.frame(btp.encode_ilp(btp.MESSAGE, request_id, data)))

    async def respond(self, request_id: int, data: bytes = b"") -> None:
        """Send a Response with data, whether the request exists or was answered already.

        Cancellation: Any part of it may have been sent.
        """
        await self.send(self.frame(btp.encode_ilp(btp.RESPONSE, request_id, data)))

    async def refuse(
        self, request_id: int, code: str = "F00", name: str = "NotAcceptedError", data: bytes = b""
    ) -> None:
        """Answer a request with an Error.

        Cancellation: Any part of it may have been sent.
        """
        await self.send_packet(btp.Error(request_id, code, name, datetime.now(UTC), data))

    # Receiving.

    async def receive(self) -> ReceivedFrame:
        """Receive one frame.

        Raises:
            ScriptError: RFC 6455 does not allow the other end to send it.
            EOFError: The connection ended.

        Cancellation: A partly received frame is lost.
        """
        first, second = await self._take(2)
        size = second & 0x7F
        if size > 125:
            size = int.from_bytes(await self._take(2 if size == 126 else 8), "big")
        if bool(second & 0x80) is self._client:
            raise ScriptError("the other end masks, and is a server" if self._client else "the other end masks nothing")
        key = await self._take(4) if second & 0x80 else bytes(4)
        payload = bytes(byte ^ key[i % 4] for i, byte in enumerate(await self._take(size)))
        if first & 0xF0 != 0x80:
            raise ScriptError(
                f"the other end sent a frame that begins with {first:#04x}: fragmented, or with reserved bits"
            )
        return ReceivedFrame(first & 0x0F, payload)

    async def receive_packet(self) -> btp.Packet:
        """Receive the next BTP packet; pings and pongs before it are ignored.

        Raises:
            ScriptError: Another frame came.
            DecodeError: The message is not a packet.
            EOFError: The connection ended.

        Cancellation: A partly received packet is lost.
        """
        while True:
            opcode, payload = await self.receive()
            if opcode == BINARY:
                return btp.decode(payload)
            if opcode not in (PING, PONG):
                raise ScriptError(f"a packet was expected, and a frame with opcode {opcode} came: {payload!r}")

    async def expect(self, kind: type[PacketT], *, data: bytes | None = None) -> PacketT:
        """Receive the next BTP packet, which must be of a given kind.

        Args:
            kind: ``btp.Message``, ``Transfer``, ``Response`` or ``Error``.
            data: The data that it must carry for, or from, a data handler; None for any.

        Raises:
            ScriptError: Another packet came.
            EOFError: The connection ended.

        Cancellation: A partly received packet is lost.
        """
        packet = await self.receive_packet()
        if not isinstance(packet, kind):
            raise ScriptError(f"a {kind.__name__} was expected, and this came: {packet}")
        if data is not None and ilp_data(packet) != data:
            raise ScriptError(f"a {kind.__name__} with {data!r} was expected, and it has {ilp_data(packet)!r}")
        # isinstance() with a type variable does not narrow a union for mypy.
        return cast("PacketT", packet)

    async def receive_close(self) -> int:
        """Receive up to the Close and return its code; frames before it are ignored.

        Raises:
            EOFError: The connection ended without a Close.

        Cancellation: The received frames are lost.
        """
        while True:
            received = await self.receive()
            if received.opcode == CLOSE:
                return received.close_code

    async def wait_eof(self) -> None:
        """Wait until either end has closed the connection, and close this end.

        Cancellation: The connection stays open.
        """
        try:
            while await self.stream.receive_some():
                pass
        except (trio.BrokenResourceError, trio.ClosedResourceError):
            pass
        await self.aclose()

    async def _take(self, count: int) -> bytes:
        while len(self._buffer) < count:
            data = await self.stream.receive_some()
            if not data:
                raise EOFError("the other end has closed the connection")
            self._buffer += data
        taken, self._buffer = self._buffer[:count], self._buffer[count:]
        return taken

    async def aclose(self) -> None:
        """Close the connection at once, without a closing handshake.

        Cancellation: It is closed nevertheless.
        """
        await abort_stream(self.stream)

    # Authentication (RFC-0023).

    async def authenticate(
        self, token: str, *, account: str = "", flags: Mapping[str, str] | None = None
    ) -> btp.Packet:
        """Send a client's credentials and return the server's answer, a Response or an Error.

        Args:
            token: The token.
            account: The account's name.
            flags: Further entries of the message.

        Raises:
            EOFError: The connection ended.

        Cancellation: The credentials may have been sent.
        """
        await self.send(self.frame(auth_message(1, account, token, flags or {})))
        return await self.receive_packet()

    async def let_in(self) -> btp.Message:
        """Accept a client's credentials without checking them, and return the message with them.

        Raises:
            EOFError: The connection ended.

        Cancellation: The client may have been accepted.
        """
        message = await self.expect(btp.Message)
        await self.send_packet(btp.Response(message.request_id))
        return message


async def dial_stream(address: str) -> trio.SocketStream:
    """Open a TCP connection to a listener.

    Args:
        address: The listener's ``plugin.address``.

    Raises:
        OSError: Nothing listens there.
    """
    url = urlsplit(address)
    return await trio.open_tcp_stream(url.hostname or "", url.port or 0)


def ilp_data(packet: btp.Packet) -> bytes | None:
    """Return the data that a packet carries for, or from, a data handler; None if it carries none."""
    return find_entry(packet.protocol_data, ILP)


@asynccontextmanager
async def open_scripted_server(
    serve: Callable[[trio.SocketStream], Awaitable[object]],
    *,
    credentials: str = "alice:token",
    host: str = "127.0.0.1",
) -> AsyncIterator[str]:
    """Listen for clients for the length of a block; a script serves each connection.

    Args:
        serve: Called with each connection before the opening handshake, which ``ScriptedPeer.accept`` performs. The
            connection is closed when it returns. That the client closed the connection is not an error; other errors
            leave the block.
        credentials: The part of the URL before its ``@``. The script decides which credentials it accepts.
        host: The address to listen on.

    Yields:
        The URL for a client's options, ``btp+ws://...``.

    Raises:
        OSError: The server cannot listen on the address.

    Cancellation: Closes every connection at once.
    """

    async def run(stream: trio.SocketStream) -> None:
        try:
            await serve(stream)
        except (EOFError, trio.BrokenResourceError):
            pass
        finally:
            await abort_stream(stream)  # noqa: ASYNC102 (it waits for nothing)

    error: BaseException | None = None
    try:
        async with trio.open_nursery() as nursery:
            listener = (await nursery.start(partial(trio.serve_tcp, run, 0, host=host)))[0]
            try:
                yield f"btp+ws://{credentials}@{host}:{listener.socket.getsockname()[1]}"
            finally:
                nursery.cancel_scope.cancel()
    except BaseExceptionGroup as group:
        error = unwrap_group(group)
    if error is not None:
        raise error
